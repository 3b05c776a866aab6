"""A cell's name: a hash of everything that can change its result, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vitlab.config import CellConfig, experiment

SEMANTICS = 2
"""Raised whenever the same configuration would give other numbers.

2: the last block computes the class token alone, which rounds differently.
"""


def identity(cell: CellConfig) -> str:
    """ "c" and 11 hexadecimal digits: the same for equal experiments, whatever the hardware, paths or labels.

    It starts with a letter because Hydra reads bare digits as a number. The pre-training is part of the
    configuration, and so of the identity.
    """
    return recorded_identity(experiment(cell), SEMANTICS)


def recorded_identity(experiment: Mapping[str, Any], semantics: int) -> str:
    """The identity of a plain experiment (see `config.experiment`), such as a record's `config.yaml` holds."""
    content = {"semantics": semantics, "experiment": experiment}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "c" + hashlib.sha256(text.encode()).hexdigest()[:11]


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
