"""Figures of what a model knows of place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vitlab.explain.plot.style import COLOURS, RC, SIMILARITY

FINE = 5
"""Cells of the sheet across one similarity, so that the gaps between the maps of a small grid are narrow too."""


def draw_similarity(similarity: np.ndarray, *, title: str) -> Figure:
    """A map for each patch's position, at that patch's place: (gh, gw, gh, gw) on one scale, -1 to 1."""
    rows, columns = similarity.shape[:2]
    similarity = similarity.repeat(FINE, 2).repeat(FINE, 3)
    height, width = similarity.shape[2:]
    gap = round(min(height, width) / 10)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i in range(rows):
        for j in range(columns):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = similarity[i, j]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(6.6, 5.4 * sheet.shape[0] / sheet.shape[1] + 0.75), layout="constrained")
        axis = figure.subplots()
        shown = axis.imshow(sheet, cmap=SIMILARITY, vmin=-1, vmax=1, interpolation="nearest")
        step = max(1, math.ceil(max(rows, columns) / 14))
        across, down = range(0, columns, step), range(0, rows, step)
        axis.set_xticks([j * (width + gap) + (width - 1) / 2 for j in across], [str(j + 1) for j in across])
        axis.set_yticks([i * (height + gap) + (height - 1) / 2 for i in down], [str(i + 1) for i in down])
        axis.tick_params(length=0)
        axis.set_xlabel("patch column")
        axis.set_ylabel("patch row")
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(shown, ax=axis, shrink=0.8, aspect=25, pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label("cosine similarity")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def draw_filters(filters: np.ndarray, *, title: str) -> Figure:
    """Filters (n, 3, p, p) in [0, 1], seven to a row, the strongest component first."""
    columns = min(7, len(filters))
    rows = math.ceil(len(filters) / columns)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(0.85 * columns + 0.2, 0.85 * rows + 0.5), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.set_axis_off()
        for axis, image in zip(axes, filters, strict=False):
            axis.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def draw_distance(distances: Mapping[str, np.ndarray], *, title: str, uniform: float) -> Figure:
    """Mean attention distance (L, H) in pixels of each checkpoint: a dot per head, a line for the layers' mean."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axis = figure.subplots()
        spread = min(0.3, 0.12 * (len(distances) - 1))
        for place, (label, values) in enumerate(distances.items()):
            colour = COLOURS[place % len(COLOURS)]
            layers = np.arange(1, len(values) + 1) + np.linspace(-spread, spread, len(distances))[place]
            axis.plot(np.repeat(layers, values.shape[1]), values.flatten(), "o", ms=4, color=colour, alpha=0.45, mew=0)
            axis.plot(layers, values.mean(1), "-", lw=1.8, color=colour, label=label)
        axis.axhline(uniform, color="0.55", lw=1, ls="--", zorder=0)
        axis.annotate(
            "uniform\nattention", (1.01, uniform), xycoords=("axes fraction", "data"), va="center", fontsize=8,
            color="0.4", annotation_clip=False,
        )  # fmt: skip
        axis.set_xlabel("layer")
        axis.set_ylabel("mean attention distance (pixels)")
        count = max(len(v) for v in distances.values())
        axis.set_xticks(range(1, count + 1, max(1, math.ceil(count / 12))))
        axis.set_ylim(0, max(uniform, *(v.max() for v in distances.values())) * 1.12)
        axis.spines[["top", "right"]].set_visible(False)
        if len(distances) > 1:
            axis.legend(frameon=False, fontsize=8)
        figure.suptitle(title, x=0.01, ha="left")
    return figure
