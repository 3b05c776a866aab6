"""What a user asked for, and the names that cells and studies get from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.config import GROUPS, CellConfig, Config
from vitlab.core.files import clean_name


@dataclass(frozen=True)
class Request:
    """One cell as the user asked for it: Hydra's overrides, and the configuration they compose to."""

    overrides: tuple[str, ...]
    config: Config


def name_cells(requests: Sequence[Request]) -> list[str]:
    """A short name for each request, of what varies between them: `randaug/s1`."""
    rows = [_traits(request) for request in requests]
    keys = dict.fromkeys(key for row in rows for key in row)
    varying = [key for key in keys if len({row.get(key) for row in rows}) > 1] or ["augment"]
    names = []
    for request, row in zip(requests, rows, strict=True):
        parts = [
            str(row[key]) if key in GROUPS else f"{key.split('.')[-1]}={row[key]}" for key in varying if key in row
        ]
        names.append("/".join([*parts, f"s{request.config.cell.seed}"]))
    return names


def name_pretrainings(requests: Sequence[Request], named: Callable[[CellConfig], str]) -> dict[str, str]:
    """Identity → name of every pre-training: its data, its seed, and between them what tells it from the others."""
    found: dict[str, tuple[CellConfig, dict[str, str]]] = {}
    for request in requests:
        if (before := request.config.cell.pretraining) is not None:
            below = {k: v for k, v in _traits(request).items() if k.startswith("pretrain.")}
            found.setdefault(named(before), (before, below))
    keys = dict.fromkeys(key for _, below in found.values() for key in below)
    varying = [key for key in keys if len({below.get(key) for _, below in found.values()}) > 1]
    names = {}
    for key, (cell, below) in found.items():
        told = [f"{k.removeprefix('pretrain.').split('.')[-1]}={below[k]}" for k in varying if k in below]
        names[key] = "/".join(["pretrain", str(cell.dataset.name), *told, f"s{cell.seed}"])
    return {key: name if list(names.values()).count(name) == 1 else f"{name}/{key[:5]}" for key, name in names.items()}


def _traits(request: Request) -> dict[str, Any]:
    traits: dict[str, Any] = {group: request.config.labels.get(group, "") for group in GROUPS}
    for override in request.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in request.config.idle or key.startswith("model."):
            continue  # it changes nothing, or the model's label says it
        if key not in GROUPS and key != "seed" and "@" not in key:
            traits[key] = value
    return traits


def study_name(config: Config, requests: Sequence[Request]) -> str:
    """The study's name: given, or the experiment's, or made of the data set and of what varies."""
    if config.study.name is not None:
        return config.study.name
    rows = [_traits(request) for request in requests]
    varying = [key for key in rows[0] if len({row.get(key) for row in rows}) > 1]
    names = list(dict.fromkeys(str(request.config.cell.dataset.name) for request in requests))
    data, label = "-".join(names[:3]), config.labels.get("dataset", "")
    parts = [label if label.startswith(names[0]) else data, *(key.split(".")[-1] for key in varying)]
    return clean_name("_".join(parts), "study")
