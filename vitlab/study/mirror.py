"""W&B shows what the record holds. The truth is on the disk: whatever goes wrong here harms no run."""

from __future__ import annotations

import base64
import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitlab.config import WandbConfig
from vitlab.core.errors import one_line
from vitlab.core.integrity import DIGEST, digest_of
from vitlab.core.metrics import PRIMARY, row_key
from vitlab.study.contents import load_predictions
from vitlab.study.record import Record
from vitlab.study.record_schema import summary_figures
from vitlab.train.events import Interrupted


class Mirror:
    """A W&B run with the cell's identity as its id. `mode=disabled` costs nothing: wandb is not imported."""

    def __init__(
        self, wandb: WandbConfig, *, identity: str, name: str, study: str, folder: Path, config: dict[str, Any]
    ) -> None:
        self._run: Any = None
        self.offline = False
        if wandb.mode == "disabled":
            return
        mode: Any = _mode(wandb)
        self.offline = mode == "offline"
        try:
            import wandb as sdk

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._run = sdk.init(
                    project=wandb.project, entity=wandb.entity, id=identity, name=name, group=study, config=config,
                    tags=[study, *wandb.tags], dir=str(folder), mode=mode, resume="allow",
                    settings=sdk.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
                )  # fmt: skip
        except Exception as error:
            self._give_up(error)

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
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        print(f"W&B: {error} (the record on disk is complete; `wandb sync` or a later run uploads what is missing)")
        self._run = None


def _mode(wandb: WandbConfig) -> str:
    """`auto` is online where a key is configured (WANDB_API_KEY, or `wandb login`), else offline."""
    if wandb.mode != "auto":
        return wandb.mode
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return "online" if netrc.is_file() and "wandb" in netrc.read_text(errors="replace", encoding="utf-8") else "offline"


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
