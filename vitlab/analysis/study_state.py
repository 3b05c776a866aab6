"""What the page of a study shows while the study is not finished: its cells, how far each is, what they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENDED = ("finished", "failed", "damaged")
"""States of cells that nothing will change any more."""


@dataclass(frozen=True)
class CellState:
    """One cell of a study."""

    id: str
    name: str
    """`randaug/s1`."""
    state: str
    """As in `study.status`: finished, running, stale, queued, failed, damaged, interrupted or not begun."""
    mark: str
    """The sign of its state."""
    about: str = ""
    """What else is known of its state: the job, the reason that Slurm gives, since when."""
    part: str = "cell"
    """cell or pretraining."""
    rows: Sequence[Mapping[str, Any]] = ()
    """The rows of its metrics.jsonl."""
    epochs: int | None = None
    rate: float | None = None
    """Images per second."""
    ends: str | None = None
    """The time of day at which it is expected to end."""
    spent: float | None = None
    """Device-hours; None where that is not known, here as below."""
    to_come: float | None = None
    folder: str = ""
    """The address of its record."""
    failure: str = ""
    log: tuple[str, ...] = ()
    """The last lines of the log of a cell that has failed or is stale."""

    @property
    def epoch(self) -> int:
        """The last epoch that has ended; 0 before the first."""
        return self.rows[-1]["epoch"] if self.rows else 0

    @property
    def is_coming(self) -> bool:
        return self.state not in ENDED

    @property
    def group(self) -> str:
        """Its name without its seed: cells of one group share a panel of curves."""
        name, _, seed = self.name.rpartition("/s")
        return name if seed.isdigit() else self.name

    @property
    def seed(self) -> str:
        return self.name.removeprefix(self.group).strip("/") or self.id


@dataclass(frozen=True)
class StudyState:
    """A study of which cells are still to be trained."""

    name: str
    cells: tuple[CellState, ...]
    counts: Mapping[str, int]
    """State → number of cells."""
    written: float
    """When this was found out, in seconds since 1970."""
    ends: str | None
    """When the last cell is expected to end if as many train at once as now; None where that is not known."""
    at_once: int
    """How many cells train now."""
    command: str
    """What to type to keep its page current."""
    refresh: int = 15
    """After how many seconds a browser reads the page again."""
    patience: int = 300
    """After how many seconds without a new page nobody seems to write it."""
    problem: str = ""
    """Why there is no table."""

    @property
    def share(self) -> float:
        """The part of all epochs that has been trained."""
        known = [cell for cell in self.cells if cell.epochs]
        total = sum(cell.epochs or 0 for cell in known)
        done = sum((cell.epochs or 0) if cell.state == "finished" else cell.epoch for cell in known)
        return done / total if total else 0.0
