"""The tasks that are not a study of cells: each takes the run's configuration and returns its closing lines."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from vitlab.config import Config

TASKS = {
    "evaluate": "vitlab.cli.evaluate_task:run_evaluate",
    "explain": "vitlab.cli.explain_task:run_explain",
    "fractaldb": "vitlab.cli.fractal_task:run_fractaldb",
    "pack": "vitlab.cli.pack_task:run_pack",
    "preview": "vitlab.cli.preview_task:run_preview",
}
"""Task → where its function is; imported only when it runs."""


def load_task(place: str) -> Callable[[Config], list[str]]:
    """The function at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
