"""Figures of explanations, from arrays and text: tiles of heat maps, position figures, perturbation curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from vitlab.core.files import make_folder
from vitlab.core.picture_files import save_figure

if TYPE_CHECKING:
    from vitlab.explain.faithfulness import Curves

HEAT = "inferno"
"""Perceptually uniform, in order of lightness: read alike in grey and by the colour-blind."""
SIMILARITY = "viridis"
SMOOTH = 192
"""Pixels that an overlay's longer side has at least."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
"""Okabe and Ito's palette."""
METHOD_TITLES = {
    "rollout": "Attention Rollout",
    "generic": "Generic attention",
    "lrp": "Transformer LRP",
    "attnlrp": "AttnLRP",
    "random": "random",
}
METHOD_SOURCES = {
    "rollout": "Attention Rollout (Abnar & Zuidema 2020), which knows no class",
    "generic": "generic attention (Chefer et al., ICCV 2021)",
    "lrp": "Transformer-Explainability, LRP (Chefer et al., CVPR 2021)",
    "attnlrp": "AttnLRP (Achtibat et al. 2024), positive part",
}
INK = "0.15"
RC: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "figure.titlesize": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": "0.4", "pdf.fonttype": 42,
}  # fmt: skip


def scaled(heat: np.ndarray) -> np.ndarray:
    """The positive part of a map (gh, gw), from its least (0) to its greatest value (1); all 0 where all are alike."""
    positive = np.clip(heat.astype(np.float64), 0, None)
    low, high = positive.min(), positive.max()
    return (positive - low) / (high - low) if high > low else np.zeros_like(positive)


def enlarged(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map in [0, 1], bicubically interpolated to `size` (height, width)."""
    image = Image.fromarray(heat.astype(np.float32), mode=None)
    return np.clip(np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC)), 0, 1)


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8, greyed, under the heat map's colours; the hotter, the more opaque. In [0, 1].

    Small pictures are enlarged by whole factors first, so that the heat map's blending is smooth.
    """
    factor = max(1, -(-SMOOTH // max(picture.shape[:2])))
    picture = picture.repeat(factor, 0).repeat(factor, 1) / 255.0
    height, width = picture.shape[:2]
    strength = enlarged(scaled(heat), (height, width))
    grey = (picture @ np.array([0.299, 0.587, 0.114]))[..., None]
    base = 0.4 * picture + 0.6 * grey
    opacity = (0.12 + 0.8 * strength)[..., None]
    return np.clip((1 - opacity) * base + opacity * colormaps[HEAT](strength)[..., :3], 0, 1)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.pdf into a folder that is made where it is missing."""
    make_folder(stem.parent)
    return save_figure(figure, stem, dpi=160)


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


PANELS = (
    ("most_first", "most relevant removed first", "class kept (%)", "lower is better"),
    ("least_first", "least relevant removed first", "class kept (%)", "higher is better"),
    ("deletion", "deletion", "probability of the class (%)", "lower is better"),
    ("insertion", "insertion", "probability of the class (%)", "higher is better"),
)


def draw_perturbation_curves(curves: Mapping[str, Curves], *, title: str) -> Figure:
    """Four panels; bands are the standard error over images; the random baseline is grey."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12.4, 3.2), layout="constrained")
        axes = figure.subplots(1, 4)
        colours = iter(COLOURS)
        styles = {m: ("0.5", "--") if m == "random" else (next(colours), "-") for m in curves}
        for axis, (name, heading, ylabel, better) in zip(axes, PANELS, strict=True):
            for method, curve in curves.items():
                colour, line = styles[method]
                share, values = 100 * curve.share.numpy(), 100 * getattr(curve, name).numpy()
                mean, error = values.mean(1), values.std(1, ddof=1) / values.shape[1] ** 0.5
                axis.plot(share, mean, line, color=colour, lw=1.7, label=METHOD_TITLES[method])
                axis.fill_between(share, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
            axis.set_title(f"{heading}\n({better})")
            axis.set_xlabel("patches " + ("given (%)" if name == "insertion" else "removed (%)"))
            axis.set_ylabel(ylabel)
            axis.set_ylim(-2, 102)
            axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
        figure.suptitle(title, x=0.005, ha="left")
    return figure
