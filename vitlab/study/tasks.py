"""The tasks that are not a study of cells: each takes the run's configuration and returns its closing lines."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from vitlab.config import Config

TASKS = {
    "evaluate": "vitlab.train.evaluate_task:run_evaluate",
    "fractaldb": "vitlab.data.fractal_task:run_fractaldb",
    "pack": "vitlab.data.pack_task:run_pack",
    "preview": "vitlab.data.preview:run_preview",
}
"""Task → where its function is; imported only when it runs. `explain` is added by run.py, which sees all layers."""


def load_task(place: str) -> Callable[[Config], list[str]]:
    """The function at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
