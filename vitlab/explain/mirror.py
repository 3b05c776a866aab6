"""Figures in W&B, where it is on. Whatever goes wrong there, the files are on the disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlab.config import Config


def mirror_figures(config: Config, kind: str, figures: Sequence[Path]) -> None:
    """Log png files as images of one W&B run of the type `explain`.

    With `wandb.mode=auto` only where W&B would be online: pictures are no record, so none are kept for later.
    """
    if config.wandb.mode == "disabled" or not figures:
        return
    mode: Any = config.wandb.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "disabled")
        if mode in ("offline", "disabled"):
            return
    try:
        import wandb

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = wandb.init(
                project=config.wandb.project, entity=config.wandb.entity, name=f"explain-{kind}", job_type="explain",
                tags=["explain", *config.wandb.tags], dir=str(figures[0].parent), mode=mode,
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
                config={"explain": dict(config.options), "checkpoint": config.checkpoint},
            )  # fmt: skip
            run.log({figure.stem: wandb.Image(str(figure)) for figure in figures})
            run.finish()
    except Exception as error:
        print(f"W&B: {error} (the figures are on the disk)")


def _has_key() -> bool:
    import wandb

    return bool(wandb.api.api_key)
