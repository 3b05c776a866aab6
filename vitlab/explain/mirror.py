"""Figures in W&B, where it is on. Whatever goes wrong there, the files are on the disk."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from vitlab.config import Config
from vitlab.core.wandb import asked_mode, choose_mode, quiet_settings


def mirror_figures(config: Config, kind: str, figures: Sequence[Path]) -> None:
    """Log png files as images of one W&B run of the type `explain`.

    With `wandb.mode=auto` only where W&B would be online: pictures are no record, so none are kept for later.
    """
    if not figures or asked_mode(config.wandb.mode) == "disabled":
        return
    choice = choose_mode(config.wandb.mode)
    if choice.mode != "online" and config.wandb.mode != "offline":
        if choice.why in ("no answer", "key refused"):
            said = "did not answer" if choice.why == "no answer" else "does not accept the key (wandb login --relogin)"
            print(f"W&B: {choice.url} {said}; the figures are on the disk")
        return
    try:
        import wandb

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = wandb.init(
                project=config.wandb.project, entity=config.wandb.entity, name=f"explain-{kind}", job_type="explain",
                tags=["explain", *config.wandb.tags], dir=str(figures[0].parent), mode=choice.mode,
                settings=quiet_settings(choice.mode),
                config={"explain": dict(config.options), "checkpoint": config.checkpoint},
            )  # fmt: skip
            run.log({figure.stem: wandb.Image(str(figure)) for figure in figures})
            run.finish()
    except Exception as error:
        print(f"W&B: {error} (the figures are on the disk)")
