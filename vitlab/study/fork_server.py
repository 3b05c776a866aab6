"""The fork server that starts the processes of this machine: heavy modules cost seconds once and nothing per cell."""

from __future__ import annotations

import multiprocessing as mp
import os
from pathlib import Path
from typing import Any

from vitlab.config import Config


def fork_server(config: Config) -> Any:
    """The start method whose processes have torch, timm and, where it is used, W&B loaded."""
    _make_importable()
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["vitlab.study.preload", *(["wandb"] if config.wandb.mode != "disabled" else [])])
    return context


def _make_importable() -> None:
    """Let the fork server import vitlab from any working directory; where it cannot, it silently preloads nothing."""
    root = str(Path(__file__).parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, known)])
