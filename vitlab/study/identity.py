"""A cell's name: a hash of everything that can change its result, and of nothing else."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import typing
from collections.abc import Mapping
from typing import Any

from vitlab.config import CellConfig, plain
from vitlab.config.schema import neutral_value, shared_experiment
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
        if isinstance(value, Mapping) and key in inner:
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
