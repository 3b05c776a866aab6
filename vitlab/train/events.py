"""What a training reports while it runs: `fit` yields these, in this order, and whoever runs it records them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitlab.core.errors import UserError


@dataclass(frozen=True)
class Staged:
    """The data set is copied to a disk of the node (`dataset.stage`), or ways to run the step are tried (`tune`).
    Yielded any number of times, before `Started`."""

    text: str
    to: str = "view"
    """`view`: shown until the next one; `screen`: a line there and in the log; `log`: a line there alone."""


@dataclass(frozen=True)
class Started:
    """The model is built and the checkpoint, if any, is loaded. Yielded once."""

    epoch: int
    """Epochs that an earlier attempt has finished."""
    step: int
    """Optimizer steps that an earlier attempt has finished."""
    total_steps: int
    fingerprint: str = ""
    """Of the data set's files."""
    derived: Mapping[str, Any] | None = None
    """What follows from the configuration, the data and the device: result.json's `derived`."""


@dataclass(frozen=True)
class Progressed:
    """Training moves on. Yielded about twice a second."""

    step: int
    images_per_second: float


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is trained and, where it is due, evaluated. `row` is its line of metrics.jsonl."""

    row: Mapping[str, Any]

    @property
    def epoch(self) -> int:
        """Epochs finished so far; 1 after the first."""
        return self.row["epoch"]


Event = Staged | Started | Progressed | EpochEnded


class Interrupted(Exception):
    """Training was asked to stop and has saved its state; starting it again continues exactly there."""


class DivergedError(UserError):
    """The loss is not finite: the recipe does not train this model."""
