"""METRICS: every figure of an evaluation, with its name, title, unit, direction and format, written once.

A metric has one name from the evaluation to the table: `top1`. A prefix names the evaluation:
`last.` (needed in data frames only), `best.`, `ema.` (of the averaged weights), `ema.best.`. W&B groups by `/`: an
epoch's row has `eval/top1`, a run's summary `last/top1`. Code takes all of these from `Figure`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vitlab.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    Compute = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation: the mean over all images of a value for each."""

    name: str
    title: str
    unit: str = ""
    """% for percent; empty for a number without a unit."""
    better: Literal["higher", "lower"] = "higher"
    decimals: int = 2
    module: str = ""
    """The plugin that registered it; empty for what ships."""
    counts: bool = False
    """Whether each image counts 0 or 100, so that one image is the smallest step."""
    compute: Compute | None = None
    """(logits (B, C) float32, labels (B,) int64) → (B,), for a plugin's metric."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1", "%", counts=True),
        Metric("top5", "top-5", "%", counts=True),
        Metric("loss", "loss", "nats", "lower", 4),
    )
}
PRIMARY = "top1"
"""The metric that chooses the best epoch, and that a table shows without `metric=`."""
SELECTIONS = {
    "last": "at the last epoch (no model selection)",
    "best": "at the best epoch, chosen on the evaluation set by top-1",
    "ema.last": "of the averaged weights at the last epoch (no model selection)",
    "ema.best": "of the averaged weights at their best epoch, chosen on the evaluation set by top-1",
}
"""Evaluation of a cell → its name in a caption."""


def register_metric(
    name: str, *, title: str | None = None, unit: str = "", better: Literal["higher", "lower"] = "higher",
    decimals: int = 2,
) -> Callable[[Compute], Compute]:  # fmt: skip
    """Register a function of logits (B, C) float32 and labels (B,) int64 that returns a value for each image (B,).

    Its mean over all images is in every row and result, and `analyze.py metric=NAME` makes a table of it. Raises
    ConfigError for a name that is taken or is no identifier.
    """

    def decorate(compute: Compute) -> Compute:
        module = compute.__module__
        if not name.isidentifier() or (name in METRICS and METRICS[name].module != module):
            known = ", ".join(METRICS)
            raise ConfigError("plugins", f"{module} registers the metric {name!r}; taken or no identifier ({known})")
        METRICS[name] = Metric(name, title or name, unit, better, decimals, module, compute=compute)
        return compute

    return decorate


@dataclass(frozen=True)
class Figure:
    """One metric of one of a cell's evaluations: what a column of a table shows."""

    selection: str
    metric: Metric

    @property
    def column(self) -> str:
        """Its name in results and data frames: `last.top1`, `ema.best.loss`."""
        return f"{self.selection}.{self.metric.name}"

    @property
    def summary_key(self) -> str:
        """Its name in the summary of a W&B run: `last/top1`, `ema/best/loss`."""
        return self.column.replace(".", "/")

    @property
    def row_key(self) -> str:
        """Its name in an epoch's row: `eval/top1`, or `eval_ema/top1` for averaged weights."""
        return row_key(self.metric.name, averaged=self.selection.startswith("ema"))

    @property
    def name(self) -> str:
        """Its name in `metric=`, in CSV files and in those of published values: `top1`, `best.top1`, `ema.top1`."""
        prefix = {"last": "", "best": "best.", "ema.last": "ema.", "ema.best": "ema.best."}[self.selection]
        return prefix + self.metric.name

    @property
    def title(self) -> str:
        """For the head of a column: `top-1`, `best top-1`, `EMA top-1`."""
        prefix = {"last": "", "best": "best ", "ema.last": "EMA ", "ema.best": "best EMA "}[self.selection]
        return prefix + self.metric.title

    @property
    def label(self) -> str:
        """For an axis: `top-1 (%)`."""
        return f"{self.title} ({self.metric.unit})" if self.metric.unit else self.title

    @property
    def points(self) -> str:
        """The unit of a difference: percentage points, or the metric's own unit."""
        return "points" if self.metric.unit == "%" else self.metric.unit or "units"

    def shown(self, value: float, sign: bool = False) -> str:
        """A value with the metric's decimals."""
        return f"{value:{'+' if sign else ''}.{self.metric.decimals}f}"


def row_key(metric: str, averaged: bool = False) -> str:
    """The key of a metric in an epoch's row."""
    return f"{'eval_ema' if averaged else 'eval'}/{metric}"


def figure(text: str = PRIMARY) -> Figure:
    """The figure that `metric=` means: `top1` and `last.top1` are the last epoch's, `ema.top1` is `ema.last.top1`.

    Raises ConfigError for an unknown metric or selection.
    """
    selection, _, name = text.rpartition(".")
    selection = {"": "last", "ema": "ema.last"}.get(selection, selection)
    if name not in METRICS or selection not in SELECTIONS:
        raise ConfigError(
            "metric", f"got {text!r}, allowed: {', '.join(METRICS)}, alone for the last epoch, or after best., ema. or "
            "ema.best. (for instance metric=ema.top1)"
        )  # fmt: skip
    return Figure(selection, METRICS[name])


def figures() -> list[Figure]:
    """Every metric of every evaluation."""
    return [Figure(selection, metric) for selection in SELECTIONS for metric in METRICS.values()]
