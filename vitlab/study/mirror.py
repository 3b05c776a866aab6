"""W&B shows what the record holds. The truth is on the disk: whatever goes wrong here harms no run."""

from __future__ import annotations

import base64
import contextlib
import json
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitlab.config import WandbConfig
from vitlab.core.errors import UserError, one_line
from vitlab.core.integrity import DIGEST, digest_of
from vitlab.core.metrics import PRIMARY, row_key
from vitlab.core.wandb import Choice, choose_mode, quiet_settings
from vitlab.study.contents import load_predictions
from vitlab.study.record import Record, summary_figures
from vitlab.train.events import Interrupted

OUTCOME = "wandb.json"
"""In a cell's folder: how its last attempt was logged, and whether all of it reached the server."""


class Mirror:
    """A W&B run with the cell's identity as its id. `mode=disabled` costs nothing: wandb is not imported."""

    def __init__(
        self, wandb: WandbConfig, *, identity: str, name: str, study: str, folder: Path, config: dict[str, Any]
    ) -> None:
        self._run: Any = None
        self._record = Record(folder)
        self._outcome: dict[str, Any] = {}
        choice = choose_mode(wandb.mode)
        if choice.mode == "disabled":
            self._note(mode="disabled", why="asked", uploaded=False)
            return
        about = dict(
            project=wandb.project, entity=wandb.entity, id=identity, name=name, group=study, config=config,
            tags=[study, *wandb.tags], dir=str(folder), resume="allow",
        )  # fmt: skip
        error = self._start(choice, about)
        if error is not None and choice.mode == "online":  # it answered, and would not have the run
            error = self._start(Choice("offline", "no answer", choice.url), about, one_line(error))
        if error is not None:
            self._give_up(error)

    def _start(self, choice: Choice, about: dict[str, Any], error: str = "") -> Exception | None:
        """Begin the run; returns what went wrong."""
        try:
            import wandb as sdk

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._run = sdk.init(**about, mode=choice.mode, settings=quiet_settings(choice.mode))
        except Exception as wrong:
            return wrong
        page = self._run.url if choice.mode == "online" else None
        self._note(mode=choice.mode, why=choice.why, server=choice.url, page=page, error=error, uploaded=False)
        return None

    def _note(self, **changes: Any) -> None:
        self._outcome |= changes
        with contextlib.suppress(OSError, UserError):  # the record itself says when a disk is full
            self._record.write(OUTCOME, self._outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """End the run where `finish` has not: as failed for an error, as it is for `Interrupted`."""
        if isinstance(error, Interrupted) or error is None:
            self.finish(None)
        elif isinstance(error, Exception):
            self.finish({"failure": one_line(error)}, exit_code=1)

    def describe(self, config: dict[str, Any]) -> None:
        """Set further keys of the run's configuration, or other values."""
        if self._run is not None:
            try:
                self._run.config.update(config, allow_val_change=True)
            except Exception as error:
                self._give_up(error)

    def log(self, row: Mapping[str, Any]) -> None:
        if self._run is not None:
            try:
                self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])
            except Exception as error:
                self._give_up(error)

    def finish(self, summary: dict[str, Any] | None, exit_code: int = 0) -> None:
        """End the run; `summary` holds the headline figures, flat."""
        if self._run is not None:
            try:
                figures = summary_figures(summary or {})
                self._run.summary.update((summary or {}) | ({DIGEST: digest_of(figures)} if figures else {}))
                self._run.finish(exit_code=exit_code)
                self._run = None
                self._note(uploaded=self._outcome.get("mode") == "online")
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._note(error=one_line(error))
        self._record.log(f"W&B: {one_line(error)} (the record on disk is complete)")


def packed_hits(folder: Path) -> str | None:
    """Which evaluation images the last epoch's model gets right, in their order: bits, compressed, in base64.

    1 kB for ImageNet's 50,000, so that checkpoints can be compared from W&B alone.
    """
    arrays = load_predictions(Record(folder))
    if arrays is None:
        return None
    hits = arrays["label"] == arrays["top5"][:, 0]
    return f"{len(hits)}:{base64.b64encode(zlib.compress(np.packbits(hits).tobytes())).decode()}"


def packed_curve(rows: list[dict[str, Any]]) -> str:
    """The primary metric over the epochs as JSON, `[[epoch, top1], …]`: learning curves without a query per run."""
    key = row_key(PRIMARY)
    return json.dumps([[row["epoch"], row[key]] for row in rows if key in row])


def flat_summary(result: dict[str, Any]) -> dict[str, Any]:
    """result.json's figures as W&B summary keys: last/top1, ema/best/top1, num_parameters, …"""
    flat: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, dict) and key != "derived":
            flat |= {f"{key}/{inner}": v for inner, v in flat_summary(value).items()}
        elif not isinstance(value, dict):
            flat[key] = value
    return flat
