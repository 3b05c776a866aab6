"""METRICS: every figure of an evaluation, with its name, title, unit, direction and format, written once.

A metric has one name from the evaluation to the table: `top1` is `eval/top1` in an epoch's row, `last.top1` in a
result and in a table's `metric=`, which also knows `best.top1`, `ema.top1` (averaged weights) and `ema.best.top1`.
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
    compute: Compute | None = None
    """(logits (B, C) float32, labels (B,) int64) → (B,), for a plugin's metric."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1", "%"),
        Metric("top5", "top-5", "%"),
        Metric("loss", "loss", "nats", "lower", 4),
    )
}
PRIMARY = "top1"
"""What the best epoch is chosen by, and what a table shows unless `metric=` says otherwise."""
SELECTIONS = {
    "last": "the last epoch", "best": "the best epoch", "ema.last": "averaged weights, the last epoch",
    "ema.best": "averaged weights, the best epoch",
}  # fmt: skip
"""Which evaluation of a cell a figure is of → its title."""


def register_metric(
    name: str, *, title: str | None = None, unit: str = "", better: Literal["higher", "lower"] = "higher",
    decimals: int = 2,
) -> Callable[[Compute], Compute]:  # fmt: skip
    """Register a function of logits (B, C) float32 and labels (B,) int64 that returns a value for each image (B,).

    Its mean over all images stands in every row and result, and `analyze.py metric=NAME` makes a table of it. Raises
    ConfigError for a name that is taken or is no identifier.
    """

    def decorate(compute: Compute) -> Compute:
        module = compute.__module__
        if not name.isidentifier() or (name in METRICS and METRICS[name].module != module):
            known = ", ".join(METRICS)
            raise ConfigError("plugins", f"{module} registers the metric {name!r}; taken or no identifier ({known})")
        METRICS[name] = Metric(name, title or name, unit, better, decimals, module, compute)
        return compute

    return decorate


def column(text: str) -> str:
    """The column that `metric=` means: `top1` and `last.top1` → `last.top1`, `ema.top1` → `ema.last.top1`.

    Raises ConfigError for an unknown metric or selection.
    """
    selection, _, name = text.rpartition(".")
    selection = {"": "last", "ema": "ema.last"}.get(selection, selection)
    if name not in METRICS or selection not in SELECTIONS:
        raise ConfigError(
            "metric", f"got {text!r}, allowed: one of {', '.join(METRICS)}, alone or after one of last., best., ema., "
            "ema.best. (for instance metric=ema.top1)"
        )  # fmt: skip
    return f"{selection}.{name}"


def metric_of(column: str) -> Metric:
    """The metric of a column such as `ema.last.top1`."""
    return METRICS[column.rpartition(".")[2]]
