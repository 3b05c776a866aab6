"""A cell's identity: a hash of everything that can change its result, and of nothing else; and its name for people."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.config import GROUPS, CellConfig, Config, plain
from vitlab.config.schema import neutral_value, shared_experiment
from vitlab.core.files import clean_name
from vitlab.core.plugins import DATASETS, POLICIES, source_digest

SEMANTICS = 3
"""Raised whenever the same configuration would give other numbers, or another rule makes names of configurations.

2: the last block computes the class token alone, which rounds differently.
3: the numbers of 2; the hash leaves out every field that has its neutral value, so that a new field that is off
   changes no name. Records named by the older rule are found under their older names.
"""
_WHOLE = 2
"""Up to this the hash was of the whole configuration."""


def identity(cell: CellConfig) -> str:
    """ "c" and 11 hexadecimal digits: the same for equal experiments, whatever the hardware, paths or labels.

    It starts with a letter because Hydra reads bare digits as a number. The pre-training is part of the
    configuration, and so of the identity; so are the files of the plugins that the cell uses.
    """
    return _hash(SEMANTICS, _deviations(cell), plugins_of(cell))


def older_identity(cell: CellConfig) -> str:
    """The name that the rule before this one gave to the same numbers."""
    return _hash(_WHOLE, shared_experiment(cell))


def recorded_identity(experiment: Mapping[str, Any], semantics: int, plugins: Mapping[str, str] | None = None) -> str:
    """The identity of a plain experiment (see `config.experiment`), such as a record's `config.yaml` holds."""
    return _hash(semantics, deviations(experiment, CellConfig) if semantics > _WHOLE else experiment, plugins)


def _hash(semantics: int, experiment: Mapping[str, Any], plugins: Mapping[str, str] | None = None) -> str:
    content: dict[str, Any] = {"semantics": semantics, "experiment": experiment}
    if plugins:
        content["plugins"] = dict(plugins)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "c" + hashlib.sha256(text.encode()).hexdigest()[:11]


def deviations(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """What differs from the neutral values of the dataclass `cls`, in plain values; 5.0 and 5 are one number.

    Keys that `cls` has not, of another version, are kept. Every neutral value is written down in a test: one that
    changed would give an old name to another experiment.
    """
    neutral, inner = _schema(cls)
    found = {}
    for key, value in values.items():
        if key in inner and isinstance(value, Mapping):
            found[key] = deviations(value, inner[key])
        elif key not in neutral or _number(value) != neutral[key]:
            found[key] = _number(value)
    return found


@functools.lru_cache(maxsize=8192)
def _deviations(config: Any) -> dict[str, Any]:
    """`deviations` of a config's experiment; cells that have a group in common share its part."""
    neutral, _ = _schema(type(config))
    found = {}
    for key, value in shared_experiment(config).items():
        own = getattr(config, key)
        if dataclasses.is_dataclass(own):
            found[key] = _deviations(own)
        elif key not in neutral or _number(value) != neutral[key]:
            found[key] = _number(value)
    return found


@functools.cache
def _schema(cls: type) -> tuple[dict[str, Any], dict[str, type]]:
    """The neutral value of each field that has one, and the dataclass of each field that holds one."""
    neutral, inner = {}, {}
    for name, hint in typing.get_type_hints(cls).items():
        kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        if kinds:
            inner[name] = typing.cast(type, kinds[0])
        if (value := neutral_value(cls, name)) is not dataclasses.MISSING:
            neutral[name] = _number(plain(value))
    return neutral, inner


def _number(value: Any) -> Any:
    """Whole numbers without a fraction, as YAML and JSON may give them either way."""
    if isinstance(value, list):
        return [_number(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plugins_of(cell: CellConfig) -> dict[str, str]:
    """Module → digest of its file, of every plugin that registered something that the cell uses."""
    modules = set()
    for part in (cell, cell.pretraining):
        if part is not None:
            modules.add(DATASETS.plugin(part.dataset.kind))
            modules.add(POLICIES.plugin((part.augment.auto_augment or "").partition("-")[0]))
    return {module: source_digest(module) for module in sorted(m for m in modules | {_of_model(cell)} if m)}


def _of_model(cell: CellConfig) -> str | None:
    """The plugin that registered the cell's model with timm, which it has imported; None for timm's own."""
    timm = sys.modules.get("timm")
    if timm is None or not timm.is_model(cell.model.name):
        return None
    module = timm.model_entrypoint(cell.model.name).__module__
    return None if module.partition(".")[0] == "timm" else module


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """What differs between two plain configurations, one line each: `recipe.lr: 0.001 → 0.002`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in dict.fromkeys([*old, *new]):
            inner = f"{key}.{name}" if key else name
            lines += differences(old.get(name), new.get(name), inner)
        return lines
    return [] if old == new else [f"{key}: {_show(old)} → {_show(new)}"]


def _show(value: Any) -> str:
    return "off" if value is None else str(value)


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
    """Identity → name of every pre-training: its data, its seed, and between them what differs from the others."""
    found: dict[str, tuple[CellConfig, dict[str, str]]] = {}
    for request in requests:
        if (before := request.config.cell.pretraining) is not None:
            below = {k: v for k, v in _traits(request).items() if k.startswith("pretrain.")}
            found.setdefault(named(before), (before, below))
    keys = dict.fromkeys(key for _, below in found.values() for key in below)
    varying = [key for key in keys if len({below.get(key) for _, below in found.values()}) > 1]
    names = {}
    for key, (cell, below) in found.items():
        differing = [f"{k.removeprefix('pretrain.').split('.')[-1]}={below[k]}" for k in varying if k in below]
        names[key] = "/".join(["pretrain", str(cell.dataset.name), *differing, f"s{cell.seed}"])
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
