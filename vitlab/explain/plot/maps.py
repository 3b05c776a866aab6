"""Pictures and their heat maps in a grid, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vitlab.explain.plot.style import HEAT, RC, overlay, scaled

TILE = 1.9
"""Inches of a tile's side."""
LONG = 24
"""Letters of a tile's title, beyond which all titles of the figure are set smaller."""


@dataclass(frozen=True)
class Tile:
    """A cell of the grid: a picture (H, W, 3) uint8, a map (gh, gw), or one over the other."""

    title: str = ""
    picture: np.ndarray | None = None
    heat: np.ndarray | None = None


def draw_tiles(rows: Sequence[Sequence[Tile]], *, title: str, row_labels: Sequence[str] = ()) -> Figure:
    """The grid, with one colour bar: every map is shown from its own least (0) to its own greatest value (1)."""
    height, width = len(rows), max(len(row) for row in rows)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(TILE * width + 0.95, (TILE + 0.25) * height + 0.55), layout="constrained")
        axes = figure.subplots(height, width, squeeze=False)
        longest = max((len(line) for row in rows for tile in row for line in tile.title.splitlines()), default=0)
        size = 9 if longest <= LONG else 7.5
        for line, row in zip(axes, rows, strict=True):
            for axis in line[len(row) :]:
                axis.set_axis_off()
            for axis, tile in zip(line, row, strict=False):
                _draw_tile(axis, tile, size)
        for line, label in zip(axes, row_labels, strict=False):
            line[0].set_ylabel(label, fontsize=9)
        colours = ScalarMappable(Normalize(0, 1), HEAT)
        shrink = 0.9 if height == 1 else 1.6 / height
        bar = figure.colorbar(colours, ax=axes, shrink=shrink, aspect=22, pad=0.015, ticks=[0, 0.5, 1])
        turn = "\n" if height == 1 else " "  # a single row is not as high as the sentence is long
        bar.set_label(f"from the map's least{turn}to its greatest value")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def _draw_tile(axis: Axes, tile: Tile, size: float) -> None:
    if tile.picture is not None and tile.heat is not None:
        axis.imshow(overlay(tile.picture, tile.heat), interpolation="nearest")
    elif tile.heat is not None:
        axis.imshow(scaled(tile.heat), cmap=HEAT, vmin=0, vmax=1, interpolation="nearest")
    elif tile.picture is not None:
        axis.imshow(tile.picture, interpolation="nearest")
    axis.set_title(tile.title, fontsize=size)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
