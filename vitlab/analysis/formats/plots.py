"""Figures of a table, as png and pdf: differences with intervals, learning curves, accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitlab.analysis.formats.grids import shown_classes
from vitlab.analysis.table_model import Entry, Table
from vitlab.core.comparisons import Comparison
from vitlab.core.metrics import METRICS, PRIMARY
from vitlab.core.metrics import Figure as Shown

KINDS = {"up": ("#0072B2", "^"), "down": ("#D55E00", "v"), "level": ("#6E7781", "D"), "same": ("#009E73", "s")}
"""Verdict → Okabe and Ito's colour, which the colour-blind can distinguish, and a marker of its own."""
MOST_CURVES = 10
"""Seeds drawn per condition; more would be a smear."""
LearningCurves = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""Condition → for each seed the rows of its metrics.jsonl; data sets of one row are side by side."""


def verdict(comparison: Comparison) -> str:
    """up, down, same (within the margin asked for), or level: the interval holds zero, or there is none."""
    if not comparison.significant:
        return "same" if comparison.same else "level"
    return "up" if (comparison.delta or 0) > 0 else "down"


def draw_differences(table: Table) -> Figure:
    """Every seed's difference to its baseline's mean, the mean, and the simultaneous interval where there is one.

    Where a margin was asked for, a band marks it.
    """
    count = len(table.datasets)
    size = (5.4 * count, 1.1 + 0.36 * len(table.rows))
    figure = Figure(figsize=size)
    axes = figure.subplots(1, count, squeeze=False, sharey=True)
    for axis, dataset in zip(axes[0], table.datasets, strict=True):
        if table.margin is not None:
            axis.axvspan(-table.margin, table.margin, color=KINDS["same"][0], alpha=0.12, lw=0, zorder=0)
        for place, row in enumerate(table.rows):
            if (centre := row.entries[dataset].centre) is not None:
                _draw_row(axis, place, row.entries[dataset], centre)
        axis.axvline(0, color="0.55", lw=1, ls=(0, (2, 2)), zorder=0)
        axis.set_yticks(range(len(table.rows)), [r.label for r in table.rows])
        axis.set_xlabel(f"{table.figure.title} compared with {table.against} ({table.figure.points})")
        if count > 1:
            axis.set_title(dataset, fontsize=10)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.margins(y=0.08)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    return figure


def _draw_row(axis: Axes, place: int, entry: Entry, centre: float) -> None:
    values, c = entry.scores, entry.comparison
    if not values:
        return
    colour, marker = KINDS[verdict(c)]
    if c.low is not None and c.high is not None:
        axis.plot([c.low, c.high], [place, place], "-", color=colour, lw=2.2, solid_capstyle="round")
    axis.plot([v - centre for v in values], [place] * len(values), "o", mfc="white", mec="0.45", ms=4.5)
    axis.plot([c.mean - centre], [place], marker, color=colour, ms=7.5, mec="white")


def draw_classes(table: Table) -> Figure:
    """A panel for each row: the classes that lose and gain most, with their simultaneous intervals."""
    groups = shown_classes(table)
    across = min(3, len(groups))
    down = math.ceil(len(groups) / across)
    size = (3.6 * across + 0.8, (0.9 + 0.24 * max(map(len, groups))) * down)
    figure = Figure(figsize=size)
    axes = figure.subplots(down, across, squeeze=False, sharex=True)
    places = axes.ravel()
    for axis, effects in zip(places, groups, strict=False):
        for place, effect in enumerate(effects):
            c = effect.comparison
            colour, marker = KINDS[verdict(c)]
            if c.low is not None and c.high is not None:
                axis.plot([c.low, c.high], [place, place], "-", color=colour, lw=2, solid_capstyle="round")
            axis.plot([c.delta or 0.0], [place], marker, color=colour, ms=6, mec="white")
        axis.axvline(0, color="0.55", lw=1, ls=(0, (2, 2)), zorder=0)
        axis.set_yticks(range(len(effects)), [e.name for e in effects], fontsize=8)
        on = f" on {effects[0].dataset}" if len(table.datasets) > 1 else ""
        axis.set_title(f"{effects[0].row}{on}", fontsize=9)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.invert_yaxis()
    for axis in places[len(groups) :]:
        axis.set_visible(False)
    figure.supxlabel(f"difference to {table.against} in {METRICS[PRIMARY].title} of a class (points)", fontsize=9)
    figure.tight_layout()
    return figure


def draw_curves(curves: LearningCurves, shown: Shown, datasets: int = 1) -> Figure:
    """The metric over the epochs: a panel per condition, a line per seed (the first ten), the baseline's dashed.

    The first `datasets` conditions are the baseline, on one data set each.
    """
    across = min(4, max(1, len(curves)))
    down = max(1, math.ceil(len(curves) / across))
    size = (2.4 * across, 0.35 + 1.75 * down)
    figure = Figure(figsize=size)
    places = figure.subplots(down, across, squeeze=False).ravel()  # matplotlib's shared axes take quadratic time
    lines = {label: _lines(seeds, shown.row_key) for label, seeds in curves.items()}
    epochs, values = (_limits([p for drawn in lines.values() for line in drawn for p in line[:, i]]) for i in (0, 1))
    bases = list(lines.values())[:datasets]
    for place, (axis, (label, drawn)) in enumerate(zip(places, lines.items(), strict=False)):
        if place >= datasets:
            _draw_lines(axis, bases[place % datasets], color="0.45", lw=0.9, ls=(0, (3, 2)))
        _draw_lines(axis, drawn, color=KINDS["up"][0], lw=1.2)
        axis.set(xlim=epochs, ylim=values)
        axis.set_title(label, fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.tick_params(labelsize=8, labelleft=place % across == 0, labelbottom=place + across >= len(curves))
        axis.grid(axis="y", color="0.9", lw=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in places[len(curves) :]:
        axis.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(shown.label, fontsize=9)
    figure.tight_layout()
    return figure


def _lines(seeds: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[np.ndarray]:
    """The points (epochs, 2) of each seed that is drawn and has any."""
    lines = [np.array([(r["epoch"], r[key]) for r in rows if key in r], float) for rows in seeds[:MOST_CURVES]]
    return [line for line in lines if len(line)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis that all panels have: that of the finite values, and a margin."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    margin = 0.05 * (max(known) - min(known)) or 0.5
    return min(known) - margin, max(known) + margin


def _draw_lines(axis: Axes, lines: Sequence[np.ndarray], **style: Any) -> None:
    axis.add_collection(LineCollection([line for line in lines if len(line) > 1], **style))
    for line in lines:
        if len(line) == 1:
            axis.plot(*line.T, marker="o", ms=3, **style)


def draw_cost(table: Table) -> Figure:
    """The metric's mean against device-hours per cell, names at the right edge so that none hides another."""
    several = len(table.datasets) > 1
    points = [
        (entry.comparison.mean, entry.device_hours / entry.comparison.n,
         f"{row.label} ({dataset})" if several else row.label)
        for row in table.rows
        for dataset, entry in row.entries.items()
        if entry.device_hours and entry.comparison.n
    ]  # fmt: skip
    room = 0.3 + 0.075 * max((len(name) for _, _, name in points), default=0)  # inches, for the longest name
    figure = Figure(figsize=(4.2 + room, 3.8))
    axis = figure.subplots()
    for mean, hours, _ in points:
        axis.plot([hours], [mean], "o", color=KINDS["up"][0], ms=6, mec="white", clip_on=False)
    axis.set_xlabel("device-hours per cell")
    axis.set_ylabel(table.figure.label)
    axis.margins(x=0.12, y=0.08)
    axis.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.65 / (4.2 + room), right=4.1 / (4.2 + room), bottom=0.15, top=0.96)
    low, high = axis.get_ylim()
    below = -math.inf
    for mean, hours, name in sorted(points):
        at = max((mean - low) / (high - low), below + 0.055)  # in shares of the axis, from below
        below = at
        axis.annotate(
            name, (hours, mean), (1.03, at), xycoords="data", textcoords="axes fraction", fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": "0.8", "lw": 0.7, "shrinkB": 3}, annotation_clip=False, zorder=0,
        )  # fmt: skip
    return figure
