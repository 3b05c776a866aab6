"""Which checkpoints an explanation reads: found before torch is imported, so that a wrong name is refused at once."""

from __future__ import annotations

from pathlib import Path

from vitlab.config import Config, ConfigError, find_checkpoint
from vitlab.core.hub import INDEX
from vitlab.core.integrity import misfit, read_mapping

_STUDY = {"cells": [{"id": str, "name?": str, "part?": str}]}
"""What is read of a study's file."""


def named_checkpoints(config: Config) -> list[tuple[str, str | None]]:
    """The checkpoints of `checkpoint=`, with labels; a study's file (`studies/NAME.json`) means its cells.

    Raises ConfigError where there is no such file, cell or study.
    """
    given = config.checkpoint
    names: list[tuple[str, str | None]] = []
    for name in [given] if isinstance(given, str) else list(given or ()):
        if not name.endswith(".json") or name.endswith(INDEX):
            names.append((name, None))
            continue
        study = read_mapping(Path(name), "give a study's file, DIR/studies/NAME.json, or checkpoints")
        if problem := "there is no such file" if study is None else misfit(study, _STUDY):
            raise ConfigError("checkpoint", f"{name!r} is no study's file ({problem})")
        assert study is not None, "as checked"
        names += [(cell["id"], cell.get("name")) for cell in study["cells"] if cell.get("part", "cell") == "cell"]
    if not names:
        raise ConfigError(
            "checkpoint",
            "task=explain reads one or several; give a file, a cell's folder or identity, or a study's file",
        )
    for name, _ in names:
        find_checkpoint(name, config.output_dir)
    return names
