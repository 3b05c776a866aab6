"""Figures of a table, as png and pdf: differences with intervals, learning curves, accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from vitlab.analysis.table import Table

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999"]
"""Okabe and Ito's palette, which the colour-blind can tell apart."""
MOST_CURVES = 10
Curves = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""Condition → for each seed the rows of its metrics.jsonl."""


def draw_differences(table: Table) -> Figure:
    """Every seed's difference to the baseline's mean, the mean, and the simultaneous interval where there is one."""
    count = len(table.datasets)
    figure, axes = plt.subplots(
        1, count, figsize=(5.2 * count, 0.5 + 0.42 * len(table.rows) + 0.6), squeeze=False, sharey=True
    )
    for axis, dataset in zip(axes[0], table.datasets, strict=True):
        base = table.rows[0].entries[dataset]
        centre = base.mean("last.top1")
        for place, row in enumerate(table.rows):
            entry = row.entries[dataset]
            values = entry.values.get("last.top1", ())
            if centre is None or not values:
                continue
            colour = COLOURS[place % len(COLOURS)]
            axis.plot([v - centre for v in values], [place] * len(values), "o", color=colour, alpha=0.45, ms=5)
            c = entry.comparison
            axis.plot([c.mean - centre], [place], "D", color=colour, ms=7, mec="white")
            if c.low is not None and c.high is not None:
                axis.plot([c.low, c.high], [place, place], "-", color=colour, lw=2)
        axis.axvline(0, color="0.6", lw=1, zorder=0)
        axis.set_yticks(range(len(table.rows)), [r.label for r in table.rows])
        axis.set_xlabel(f"top-1 beside {table.rows[0].label} (points)")
        axis.set_title(dataset)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    return figure


def draw_curves(curves: Curves) -> Figure:
    """Top-1 over the epochs, a line per seed (of the first ten), a colour per condition."""
    figure, axis = plt.subplots(figsize=(6.4, 4))
    for place, (label, seeds) in enumerate(curves.items()):
        for number, rows in enumerate(seeds[:MOST_CURVES]):
            points = [(r["epoch"], r["eval/top1"]) for r in rows if "eval/top1" in r]
            if points:
                axis.plot(*zip(*points, strict=True), color=COLOURS[place % len(COLOURS)], lw=1.5,
                          label=label if number == 0 else None)  # fmt: skip
    axis.set_xlabel("epoch")
    axis.set_ylabel("top-1 (%)")
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def draw_cost(table: Table) -> Figure:
    """Mean top-1 against device-hours per seed."""
    figure, axis = plt.subplots(figsize=(5.2, 4))
    for place, row in enumerate(table.rows):
        for dataset in table.datasets:
            entry = row.entries[dataset]
            mean = entry.mean("last.top1")
            if mean is None or not entry.device_hours:
                continue
            hours = entry.device_hours / entry.comparison.n
            axis.plot([hours], [mean], "o", color=COLOURS[place % len(COLOURS)], ms=8)
            axis.annotate(f" {row.label}", (hours, mean), fontsize=8, va="center")
    axis.set_xlabel("device-hours per cell")
    axis.set_ylabel("top-1 (%)")
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.pdf, byte-identical for the same figure (no dates inside); closes it."""
    png, pdf = path.with_suffix(".png"), path.with_suffix(".pdf")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    plt.close(figure)
    return [png, pdf]
