"""Image operations on batches, one parameter per sample, with Pillow's arithmetic.

Every operation takes uint8 images (n, 3, H, W) and its parameter (n,), and returns new uint8 images. What AutoAugment
and RandAugment mean is fixed by Pillow's rounding (trained models have seen it), so it is kept: pixel-wise operations
agree with Pillow within one grey level. Nothing here reads a value back from the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _per_image(value: Tensor) -> Tensor:
    """(n,) → (n, 1, 1, 1)."""
    return value.view(-1, 1, 1, 1)


def _truncate(value: Tensor) -> Tensor:
    """Float grey levels to uint8 as C casts them, after clipping."""
    return value.clamp(0, 255).to(torch.uint8)


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """base + factor x (images - base): Pillow's ImageEnhance."""
    base = base.float()
    return _truncate(base + _per_image(factor) * (images.float() - base))


def _grey(images: Tensor) -> Tensor:
    """Luma (n, 1, H, W) as Pillow's convert("L"): ITU-R 601-2 in 16-bit fixed point."""
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).unsqueeze(1)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel to the full range."""
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    scale = 255 / (high - low).clamp_min(1)
    stretched = _truncate((values - low) * scale + 1e-3)  # Pillow computes in double; the nudge undoes float32's error
    return torch.where(high > low, stretched, images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Flatten every channel's histogram (Pillow's ImageOps.equalize)."""
    n, channels = images.shape[:2]
    flat = images.reshape(n * channels, -1).long()
    histogram = torch.zeros(n * channels, 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    levels = torch.arange(256, device=images.device)
    highest = torch.where(histogram > 0, levels, 0).amax(1, keepdim=True)
    step = (flat.shape[1] - histogram.gather(1, highest)) // 255
    below = histogram.cumsum(1) - histogram
    table = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, levels)
    return table.to(torch.uint8).gather(1, flat).view_as(images)


def invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` (0 to 8) highest bits; 0 gives black, where current Pillow raises an error."""
    mask = (256 - 2 ** (8 - bits.long())).to(torch.uint8)
    return images & _per_image(mask)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels from `threshold` (0 to 256) on."""
    return torch.where(images.int() < _per_image(threshold.int()), images, 255 - images)


def solarize_add(images: Tensor, add: Tensor) -> Tensor:
    """Add to the levels below 128."""
    brighter = (images.int() + _per_image(add.int())).clamp_max(255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Saturation: 0 grey, 1 unchanged."""
    return _blend(_grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0 the mean grey, 1 unchanged."""
    mean = _grey(images).double().mean((1, 2, 3), keepdim=True) if images.device.type != "mps" else None
    mean = _grey(images).float().mean((1, 2, 3), keepdim=True) if mean is None else mean
    return _blend((mean + 0.5).floor(), images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0 black, 1 unchanged."""
    return _truncate(images.float() * _per_image(factor))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0 smoothed by Pillow's SMOOTH kernel, 1 unchanged; the outermost pixels stay."""
    if min(images.shape[2:]) < 3:
        return images.clone()
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    values = images.float()
    smooth = values.clone()
    inner = F.conv2d(values, (kernel / 13).expand(3, 1, 3, 3), groups=3)
    smooth[:, :, 1:-1, 1:-1] = (inner + 0.5).floor()
    return _blend(smooth, images, factor)


class Geometry:
    """The geometric operations, with the colour that fills what comes from outside, and an interpolation."""

    def __init__(self, fill: tuple[int, int, int], interpolation: str) -> None:
        self.fill = fill
        self._taps = _cubic_taps if interpolation == "bicubic" else _linear_taps

    def shear_x(self, images: Tensor, factor: Tensor) -> Tensor:
        rows = torch.arange(images.shape[2], device=images.device) + 0.5
        return self._shift_rows(images, factor[:, None] * rows)

    def shear_y(self, images: Tensor, factor: Tensor) -> Tensor:
        return self.shear_x(images.mT, factor).mT

    def translate_x(self, images: Tensor, share: Tensor) -> Tensor:
        """Move by `share` of the width."""
        return self._shift_rows(images, (share * images.shape[3])[:, None].expand(-1, images.shape[2]))

    def translate_y(self, images: Tensor, share: Tensor) -> Tensor:
        return self.translate_x(images.mT, share).mT

    def _shift_rows(self, images: Tensor, shift: Tensor) -> Tensor:
        """Pixel x of row y comes from x + shift[y]; `shift` (n, H) in pixels."""
        n, channels, height, width = images.shape
        position = torch.arange(width, device=images.device) + shift.float()[:, None, :, None]  # (n, 1, H, W)
        value = torch.zeros(1, device=images.device)
        for tap, weight in self._taps(position, width):
            value = value + weight * images.gather(3, tap.expand(n, channels, height, width)).float()
        inside = (position >= -0.5) & (position < width - 0.5)
        return torch.where(inside, _truncate(value), self._filling(images))

    def rotate(self, images: Tensor, degrees: Tensor) -> Tensor:
        """Turn counter-clockwise about the centre."""
        n, channels, height, width = images.shape
        angle = -torch.deg2rad(degrees).float().view(-1, 1, 1)
        cosine, sine = angle.cos(), angle.sin()
        y = torch.arange(height, device=images.device).view(1, -1, 1) + 0.5 - height / 2
        x = torch.arange(width, device=images.device).view(1, 1, -1) + 0.5 - width / 2
        column = cosine * x + sine * y + (width / 2 - 0.5)  # (n, H, W)
        row = -sine * x + cosine * y + (height / 2 - 0.5)
        flat = images.flatten(2)
        value = torch.zeros(1, device=images.device)
        columns = self._taps(column, width)
        for row_tap, row_weight in self._taps(row, height):
            for column_tap, column_weight in columns:
                at = (row_tap * width + column_tap).view(n, 1, -1).expand(n, channels, height * width)
                pixels = flat.gather(2, at).view(n, channels, height, width).float()
                value = value + (row_weight * column_weight).unsqueeze(1) * pixels
        inside = (column >= -0.5) & (column < width - 0.5) & (row >= -0.5) & (row < height - 0.5)
        return torch.where(inside.unsqueeze(1), _truncate(value), self._filling(images))

    def _filling(self, images: Tensor) -> Tensor:
        return torch.tensor(self.fill, dtype=torch.uint8).to(images.device, non_blocking=True).view(1, 3, 1, 1)


def _linear_taps(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """(index, weight) of the pixels that make up each position; indices outside are clamped to the border."""
    low = position.floor()
    far = position - low
    first = low.long()
    return [((first + k).clamp(0, size - 1), weight) for k, weight in enumerate((1 - far, far))]


def _cubic_taps(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """As `_linear_taps`, for the cubic of Pillow's transforms: Keys' with a = -1 (its resize has a = -0.5)."""
    low = position.floor()
    d = position - low
    first = low.long() - 1
    weights = (
        ((-d + 2) * d - 1) * d,
        (d - 2) * d * d + 1,
        ((-d + 1) * d + 1) * d,
        (d - 1) * d * d,
    )
    return [((first + k).clamp(0, size - 1), weight) for k, weight in enumerate(weights)]


def build_operations(fill: tuple[int, int, int], interpolation: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Every operation by its name."""
    geometry = Geometry(fill, interpolation)
    plain = (autocontrast, equalize, invert, posterize, solarize, solarize_add, color, contrast, brightness, sharpness)
    moving = (geometry.rotate, geometry.shear_x, geometry.shear_y, geometry.translate_x, geometry.translate_y)
    return {operation.__name__: operation for operation in (*plain, *moving)}
