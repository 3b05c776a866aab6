"""TrivialAugment (Müller & Hutter, ICCV 2021), the wide space: one operation for each image, at a random strength.

Operations, ranges and bins are those of torchvision's TrivialAugmentWide with its defaults: geometric operations take
the nearest pixel and bring black into view.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from vitlab.core.plugins import register_operation, register_policy
from vitlab.core.random import Draws
from vitlab.data.augment.affine import Geometry
from vitlab.data.augment.policies import Plan, random_signs

BINS = 31
_LINE = np.linspace(0.0, 1.0, BINS)
_NONE = np.zeros(BINS)
_PIXELS = np.array([*range(16), *range(17, 31), 32.0])  # 32 x the line, cut off: float32 puts the middle below 16
SPACE: dict[str, tuple[str, np.ndarray, bool]] = {
    "Identity": ("", _NONE, False),
    "ShearX": ("nearest_shear_x", 0.99 * _LINE, True),
    "ShearY": ("nearest_shear_y", 0.99 * _LINE, True),
    "TranslateX": ("nearest_shift_x", _PIXELS, True),
    "TranslateY": ("nearest_shift_y", _PIXELS, True),
    "Rotate": ("nearest_rotate", 135.0 * _LINE, True),
    "Brightness": ("brightness", 0.99 * _LINE, True),
    "Color": ("color", 0.99 * _LINE, True),
    "Contrast": ("contrast", 0.99 * _LINE, True),
    "Sharpness": ("sharpness", 0.99 * _LINE, True),
    "Posterize": ("posterize", 8 - np.round(np.arange(BINS) / ((BINS - 1) / 6)), False),
    "Solarize": ("solarize", 255.0 * (1 - _LINE), False),
    "AutoContrast": ("autocontrast", _NONE, False),
    "Equalize": ("equalize", _NONE, False),
}
"""torchvision's name → our operation ("" for none), its value in each bin, and whether a sign is drawn."""
ENHANCING = ("brightness", "color", "contrast", "sharpness")
"""Their value is added to 1, which leaves an image as it is."""


@register_policy("trivial")
def plan_trivial(options: Mapping[str, float], draws: Draws) -> Plan:
    """One of the 14 operations for each sample, at one of 31 strengths, all equally often."""
    kind, bin_ = draws.integers("trivial", len(SPACE)), draws.integers("trivial_level", BINS)
    names = np.array([name for name, _, _ in SPACE.values()], dtype=object)[kind]
    values = np.array([levels for _, levels, _ in SPACE.values()])[kind, bin_]
    signed = np.array([signed for _, _, signed in SPACE.values()])[kind]
    values = np.where(signed, values * random_signs(draws, "trivial_sign", 1), values)
    return Plan(names, np.where(np.isin(names.astype(str), ENHANCING), 1 + values, values))


_NEAREST = Geometry((0, 0, 0), "nearest")


@register_operation("nearest_shear_x")
def nearest_shear_x(images: Tensor, factor: Tensor) -> Tensor:
    """Row y moves by factor x y pixels: about the top left corner."""
    return _NEAREST.shear_x(images, factor)


@register_operation("nearest_shear_y")
def nearest_shear_y(images: Tensor, factor: Tensor) -> Tensor:
    return _NEAREST.shear_y(images, factor)


@register_operation("nearest_shift_x")
def nearest_shift_x(images: Tensor, pixels: Tensor) -> Tensor:
    return _NEAREST.shift_x(images, pixels)


@register_operation("nearest_shift_y")
def nearest_shift_y(images: Tensor, pixels: Tensor) -> Tensor:
    return _NEAREST.shift_y(images, pixels)


@register_operation("nearest_rotate")
def nearest_rotate(images: Tensor, degrees: Tensor) -> Tensor:
    return _NEAREST.rotate(images, degrees)
