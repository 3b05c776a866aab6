"""3-Augment of DeiT III (Touvron et al., ECCV 2022): greyscale, solarization or Gaussian blur, one for each image.

The recipe adds colour jitter 0.3, which is `augment.color_jitter`. Blur has Pillow's arithmetic: three passes of a box
of fractional width (ImageFilter.GaussianBlur).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vitlab.core.plugins import register_operation, register_policy
from vitlab.core.random import Draws
from vitlab.data.augment.operations import luma
from vitlab.data.augment.policies import Plan

SIGMA = (0.1, 2.0)
"""Radius of the blur in pixels, drawn uniformly."""
THRESHOLD = 128
PASSES = 3


@register_policy("three")
def plan_three(options: Mapping[str, float], draws: Draws) -> Plan:
    """One of the three operations for each sample, equally often."""
    names = np.array(["grayscale", "solarize", "gaussian_blur"], dtype=object)
    chosen = draws.integers("three", 3)
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws.uniform("three_blur")
    return Plan(names[chosen], np.choose(chosen, [np.zeros_like(sigma), np.full_like(sigma, THRESHOLD), sigma]))


@register_operation("grayscale")
def grayscale(images: Tensor, _: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(images).to(torch.uint8).expand(-1, 3, -1, -1)


@register_operation("gaussian_blur")
def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur with standard deviation `sigma` (n,), at most 2 pixels, in Pillow's fixed-point arithmetic."""
    reach, inner, outer = (part.view(-1, 1, 1, 1) for part in _box(sigma.to(images.device)))
    blurred = images.long()
    for axis in (3, 2):
        for _ in range(PASSES):
            blurred = _pass(blurred, reach, inner, outer, axis)
    return blurred.to(torch.uint8)


def _box(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the box that PASSES times gives `sigma` (n,): whole pixels on each side of the centre, the weight of each of
    those, and that of the two fractional pixels beyond them, all (n,) int64; a box's weights add up to 2**24.

    From the variance of a box with fractional edges (Gwosdek et al., "Theoretical foundations of Gaussian convolution
    by extended box filtering", SSVM 2011), rounded as Pillow rounds.
    """
    variance = sigma.float().square() / PASSES
    whole = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    inner = ((1 << 24) / (2 * (whole + part) + 1)).long()
    outer = torch.div((1 << 24) - (2 * whole.long() + 1) * inner, 2, rounding_mode="floor")
    return whole.long(), inner, outer


def _pass(values: Tensor, reach: Tensor, inner: Tensor, outer: Tensor, axis: int) -> Tensor:
    """One box filter along `axis`; beyond the border its pixels repeat."""
    length = values.shape[axis]
    total = torch.zeros_like(values)
    place = torch.arange(length, device=values.device)
    for distance in range(-2, 3):
        weight = torch.where(reach >= abs(distance), inner, torch.where(reach + 1 == abs(distance), outer, 0))
        total += weight * values.index_select(axis, (place + distance).clamp(0, length - 1))
    return (total + (1 << 23)) >> 24
