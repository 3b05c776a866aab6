"""Image operations on batches, one parameter per sample, with Pillow's arithmetic.

Every operation takes uint8 images (n, 3, H, W) and its parameter (n,), and returns new uint8 images. What AutoAugment
and RandAugment mean is fixed by Pillow's rounding (trained models have seen it), so it is kept: the operations here
agree with Pillow within one grey level. Nothing reads a value back from the device.

What maps levels to levels is done through a table of 256 entries. Sums and products are separate steps, each rounded
once: the same bits in whatever batch, and on whatever device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitlab.core.plugins import OPERATIONS
from vitlab.data.augment.affine import Geometry

LEVELS = 256


def to_levels(value: Tensor) -> Tensor:
    """Float grey levels, clipped in place, to uint8 as C casts them. (A CPU is three times faster by way of int32.)"""
    value = value.clamp_(0, 255)
    return (value if value.is_cuda else value.to(torch.int32)).to(torch.uint8)


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """base + factor x (images - base): Pillow's ImageEnhance. `base` is float and broadcasts to `images`."""
    return to_levels(images.float().sub_(base).mul_(factor.view(-1, 1, 1, 1)).add_(base))


def _levels(images: Tensor) -> Tensor:
    """(1, 1, 256) int64."""
    return torch.arange(LEVELS, device=images.device).view(1, 1, -1)


def _look_up(table: Tensor, images: Tensor) -> Tensor:
    """Replace every level by its entry in `table` (n, 1 or 3, 256), clipped to a byte."""
    table = table.clamp(0, 255).to(torch.uint8).expand(-1, 3, -1)
    return table.gather(2, images.flatten(2).long()).view_as(images)


def luma(images: Tensor) -> Tensor:
    """Luma (n, 1, H, W) int32 as Pillow's convert("L"): ITU-R 601-2 in 16-bit fixed point."""
    red, green, blue = images.unbind(1)
    luma = torch.full(red.shape, 0x8000, dtype=torch.int32, device=images.device)
    luma.add_(red, alpha=19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return luma.bitwise_right_shift_(16).unsqueeze(1)


def flip(images: Tensor, _: Tensor) -> Tensor:
    """Left to right."""
    return images.flip(3)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel to the full range."""
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).long(), flat.amax(2, keepdim=True).long()
    stretched = (_levels(images) - low) * 255 // (high - low).clamp_min(1)
    return _look_up(torch.where(high > low, stretched, _levels(images)), images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flatten every channel's histogram (Pillow's ImageOps.equalize)."""
    flat = images.flatten(2).long()
    histogram = torch.zeros(*flat.shape[:2], LEVELS, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    levels = _levels(images)
    highest = torch.where(histogram > 0, levels, 0).amax(2, keepdim=True)
    step = (flat.shape[2] - histogram.gather(2, highest)) // 255
    below = histogram.cumsum(2) - histogram
    table = torch.where(step > 0, (step // 2 + below) // step.clamp_min(1), levels)
    return table.clamp_max(255).to(torch.uint8).gather(2, flat).view_as(images)


def invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` (0 to 8) highest bits; 0 gives black, where current Pillow raises an error."""
    mask = (256 - 2 ** (8 - bits.long())).to(torch.uint8)
    return images & mask.view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels from `threshold` (0 to 256) on."""
    levels = _levels(images)
    return _look_up(torch.where(levels < threshold.view(-1, 1, 1), levels, 255 - levels), images)


def solarize_add(images: Tensor, add: Tensor) -> Tensor:
    """Add to the levels below 128."""
    levels = _levels(images)
    return _look_up(torch.where(levels < 128, levels + add.long().view(-1, 1, 1), levels), images)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0 black, 1 unchanged."""
    return to_levels(images.float().mul_(factor.view(-1, 1, 1, 1)))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0 the mean grey, 1 unchanged."""
    grey = luma(images).flatten(1)
    count = grey.shape[1]
    mean = (2 * grey.sum(1) + count) // (2 * count)  # rounded, halves upwards, without a float
    return _blend(mean.float().view(-1, 1, 1, 1), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Saturation: 0 grey, 1 unchanged."""
    return _blend(luma(images).float(), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0 smoothed by Pillow's SMOOTH kernel (5 in the middle, 1 around, over 13), 1 unchanged. The rim stays."""
    sharpened = images.clone()
    if min(images.shape[2:]) < 3:
        return sharpened
    values = images.to(torch.int16)
    wide = values[..., :-2] + values[..., 1:-1] + values[..., 2:]
    total = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:] + 4 * values[:, :, 1:-1, 1:-1]
    smooth = total.float().mul_(1 / 13).add_(0.5).floor_()
    sharpened[:, :, 1:-1, 1:-1] = _blend(smooth, images[:, :, 1:-1, 1:-1], factor)
    return sharpened


class Operations(dict[str, Callable[[Tensor, Tensor], Tensor]]):
    """Operations by name; those of further policies and of plugins are looked up when they are first needed."""

    def __missing__(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        self[name] = OPERATIONS[name]
        return self[name]


def build_operations(fill: tuple[int, int, int], interpolation: str) -> Operations:
    """Every operation by its name. `fill` (0 to 255) is the colour of what geometric operations bring into view."""
    geometry = Geometry(fill, interpolation)
    levels = (autocontrast, equalize, invert, posterize, solarize, solarize_add, brightness, contrast)
    others = (color, sharpness, flip)
    moving = (geometry.rotate, geometry.shear_x, geometry.shear_y, geometry.translate_x, geometry.translate_y)
    return Operations({operation.__name__: operation for operation in (*levels, *others, *moving)})
