"""What all figures share: colours, the blending of a heat map with its picture, and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

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
    """Write `stem`.png and `stem`.pdf, without dates inside."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")
    figure.savefig(png, dpi=160, metadata={"Software": None})
    figure.savefig(pdf, dpi=160, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]
