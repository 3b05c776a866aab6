"""Which file a user means. Nothing here reads one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.core.errors import ConfigError

_OF_A_DATASET = ("root", "pack", "class_list")
PATHS = (
    "output_dir", "checkpoint", "pretrain.path", "pack.path", "preview.file", "fractaldb.export", "fractaldb.preview",
    "preview.images", "explain.images", "explain.output", "tables_dir", "reference", "logs",
    *(f"{group}.{key}" for group in ("dataset", "pretrain.dataset") for key in _OF_A_DATASET),
)  # fmt: skip
"""The keys whose values are files or folders, of both commands."""
_VARIABLE = re.compile(r"\$(\w+)")


def expanded(path: str, key: str = "") -> str:
    """`path` with a leading `~` and every `$NAME` replaced, as a shell does.

    Raises ConfigError, naming `key`, where the environment has no such variable and no such file is there.
    """
    whole = os.path.expandvars(os.path.expanduser(path))
    if (missing := _VARIABLE.search(whole)) and not Path(whole).exists():
        raise ConfigError(key, f"got {path!r}, and the environment has no variable {missing[1]}; give the whole path")
    return whole


def with_whole_paths(composed: Mapping[str, Any]) -> dict[str, Any]:
    """A composed configuration in which `expanded` has been applied to every value of `PATHS`."""
    found = dict(composed)
    for key in PATHS:
        *groups, last = key.split(".")
        level = found
        for group in groups:
            if not isinstance(level.get(group), Mapping):
                break
            level[group] = level = dict(level[group])
        else:
            value = level.get(last)
            if isinstance(value, str):
                level[last] = expanded(value, key)
            elif isinstance(value, list | tuple):
                level[last] = [expanded(v, key) if isinstance(v, str) else v for v in value]
    return found


def find_checkpoint(name: str, output_dir: str, key: str = "checkpoint") -> Path:
    """A file, a cell's folder (its last.pt), or a cell's identity below `output_dir`.

    Raises ConfigError, naming `key`, where there is none.
    """
    for path in (Path(name), Path(output_dir) / name):
        if path.is_file():
            return path
        if path.is_dir():
            if (path / "last.pt").is_file():
                return path / "last.pt"
            raise ConfigError(key, f"no last.pt in {str(path)!r}; has the cell been trained?")
    raise ConfigError(
        key, f"no file, cell folder or identity {name!r} (also looked in {output_dir!r}); give a checkpoint file"
    )
