"""The models of a table and of a study that is not finished, from which every format and the page are rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vitlab.analysis.scatter import Scatter
from vitlab.analysis.statistics import CheckpointComparison
from vitlab.core.comparisons import Comparison, Group, Rule
from vitlab.core.metrics import PRIMARY, Figure, figure


@dataclass(frozen=True)
class TableSpec:
    """The layout of a table: `conf/table/*.yaml`."""

    name: str
    title: str
    study: str | None = None
    reading: str | None = None
    factor: str | None = None
    """The group whose options are the rows; null: whatever varies."""
    rows: tuple[str, ...] | None = None
    baseline: str | None = None
    """A row, or in a table of several groups the ablated group's choice, which is then each block's baseline."""
    against: Literal["block", "one"] | None = None
    """Whether each block has a baseline of its own, or all rows have one; null: blocks, where there are several."""
    statistics: Rule = "auto"
    margin: float | None = None
    """In points: differences that are shown to be smaller are called the same."""
    ticks: Mapping[str, str] = field(default_factory=dict)
    """Column title → the configuration's key that it shows on (✓) or off (✗)."""
    footnotes: Mapping[str, str] = field(default_factory=dict)
    """Row → what a reader should know of it."""
    reference: str | None = None
    metric: str = PRIMARY
    """What is compared: a name of METRICS, alone or after best., ema. or ema.best."""
    columns: tuple[Literal["scatter"], ...] = ()
    """Further columns: scatter shows where the width of the intervals comes from."""
    per_class: bool = False
    """Whether every class is compared too."""
    pairs: tuple[tuple[str, ...], ...] = ()
    """Further pairs of rows to compare, the second with the first; their p-values are adjusted by Holm's method."""
    mixed_data: bool = False
    """Whether cells that were evaluated on other images than the rest are shown, with a note, or left out."""


@dataclass(frozen=True)
class Entry:
    """One condition on one data set."""

    values: dict[str, tuple[float, ...]]
    """Figure (last.top1, last.top5, best.top1, …) → the value of every seed."""
    seeds: tuple[int, ...]
    comparison: Comparison
    best: bool
    """Not significantly different from the best of its data set."""
    checkpoint: CheckpointComparison | None
    missing: tuple[str, ...]
    """Cells without a result, in words."""
    ids: tuple[str, ...]
    parameters: int | None
    device_hours: float | None
    """Of all seeds together."""
    images: int | None = None
    """The fewest evaluation images of its cells; None where not known."""
    metric: str = figure().column
    """The column that is compared."""
    versus: str | None = None
    """The row that it is compared with."""
    centre: float | None = None
    """That row's mean on this data set."""
    scatter: Scatter | None = None
    """Where the width of its interval comes from; None below two seeds."""
    settings: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """What may explain a difference to a published value (SETTINGS) → the values that the cells have."""

    @property
    def resolution(self) -> float:
        """The change of the metric by one evaluation image; 0 where that is not known."""
        return 100 / self.images if self.images and figure(self.metric).metric.counts else 0.0

    @property
    def group(self) -> Group:
        """Its seeds' values of the metric, as the comparisons take them."""
        return Group(self.scores, self.seeds, self.resolution)

    @property
    def scores(self) -> tuple[float, ...]:
        """Every seed's value of the metric that the table compares."""
        return self.values.get(self.metric, ())

    def mean(self, figure: str) -> float | None:
        values = self.values.get(figure, ())
        return float(np.mean(values)) if values else None


SETTINGS = ("recipe.epochs", "recipe.batch_size", "recipe.ema_decay")


@dataclass(frozen=True)
class Row:
    label: str
    ticks: dict[str, tuple[bool, bool]]
    """Column title → (on, differs from the baseline)."""
    entries: dict[str, Entry]
    """Data set → entry."""
    notes: tuple[str, ...] = ()
    """Its footnotes: the layout's remark, gaps, confounds."""


@dataclass(frozen=True)
class ClassEffect:
    """A comparison of one class of a row with the same class of its baseline, in percent of the class's images."""

    row: str
    versus: str
    dataset: str
    name: str
    images: int
    base: float
    """The baseline's mean."""
    comparison: Comparison
    """Simultaneous over the classes of the row."""


@dataclass(frozen=True)
class Pair:
    """A comparison of two rows on one data set; None where n cannot support a figure."""

    first: str
    second: str
    dataset: str
    n: tuple[int, int]
    delta: float
    """Second minus first, in the metric's unit (percentage points for a percentage)."""
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    caption: str
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    """Block by block, each block's baseline first."""
    findings: tuple[str, ...]
    """A sentence per data set and row other than the baseline, in their order."""
    detectable: tuple[str, ...]
    """What the seeds could have found."""
    notes: tuple[str, ...]
    """What concerns the whole table."""
    flags: tuple[str, ...]
    """Gaps and confounds, of rows and of the whole, which `strict=true` refuses."""
    pairs: tuple[Pair, ...] = ()
    anova: tuple[dict[str, Any], ...] = ()
    reference: tuple[dict[str, Any], ...] = ()
    classes: tuple[ClassEffect, ...] = ()
    confusions: tuple[str, ...] = ()
    """What is confused more than by the baseline, and which classes cannot be compared."""
    statistics: Rule = "auto"
    margin: float | None = None
    metric: str = PRIMARY
    """As in TableSpec."""
    columns: tuple[str, ...] = ()
    """As in TableSpec."""
    against: str = ""
    """What the rows are compared with, in words."""

    @property
    def figure(self) -> Figure:
        """What is compared."""
        return figure(self.metric)


@dataclass(frozen=True)
class Context:
    """What a file holds in addition to the table."""

    provenance: str = ""
    """One line on the cells and the code that the table was made from."""
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] = field(default_factory=dict)
    """Condition → the rows of metrics.jsonl of each of its seeds."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Identity → where its run can be looked at."""
    study: StudyState | None = None
    """Where the cells stand, for the page of a study that is not finished."""


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
