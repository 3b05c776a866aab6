"""Paths in configurations: expand them, find checkpoints. No file is read here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.core.errors import ConfigError
from vitlab.core.hub import WEIGHTS, fetch, named_on_hub

_OF_A_DATASET = ("root", "pack", "class_list", "table", "eval_table")
PATHS = (
    "output_dir", "checkpoint", "pretrain.path", "pack.path", "preview.file", "fractaldb.export", "fractaldb.preview",
    "preview.images", "explain.images", "explain.output", "export.to", "tables_dir", "reference", "logs",
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
    """A file, a cell's folder (its last.pt), a cell's identity below `output_dir`, a folder as hubs and transformers
    make them (its weights, or the index of their shards), or a model on the Hugging Face hub, downloaded once.

    Raises ConfigError, naming `key`, where there is none.
    """
    for path in (Path(name), Path(output_dir) / name):
        if path.is_file():
            return path
        if path.is_dir():
            return _weights_in(path, key)
    if (on_hub := named_on_hub(name)) is not None:
        return fetch(on_hub, key)
    raise ConfigError(
        key, f"no file, cell folder or identity {name!r} (also looked in {output_dir!r}); give a checkpoint file"
    )


def _weights_in(folder: Path, key: str) -> Path:
    if (folder / "last.pt").is_file():
        return folder / "last.pt"
    if (folder / "config.yaml").is_file():
        raise ConfigError(key, f"no last.pt in {str(folder)!r}; has the cell been trained?")
    for weights in WEIGHTS:
        if (folder / weights).is_file():
            return folder / weights
    inside = sorted(file.name for file in folder.iterdir() if file.suffix in (".pth", ".pt", ".safetensors", ".npz"))
    if len(inside) == 1:
        return folder / inside[0]
    held = f"it holds {', '.join(inside[:3])}; give one of them" if inside else "has the cell been trained?"
    raise ConfigError(key, f"no last.pt in {str(folder)!r}, nor {', '.join(WEIGHTS[:2])}; {held}")
