"""Moving pixels about: shear, translate and rotate batches of images as Pillow's `transform` does.

Positions are in source pixels, centres at whole numbers. A position up to half a pixel beyond the border takes the
border's pixels in place of missing ones; further out is the fill colour.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROUNDING = 1e-4
"""More than float32's error of an interpolated level: in a flat region the level itself must not be cut to the next."""


def _linear_weights(d: Tensor) -> tuple[Tensor, ...]:
    """Weights of the two pixels around a position that is `d` (0 to 1) beyond the first."""
    return 1 - d, d


def _cubic_weights(d: Tensor) -> tuple[Tensor, ...]:
    """Weights of four pixels; the position is `d` beyond the second.

    The cubic of Pillow's transforms, Keys' with a = -1 (its resize has a = -0.5).
    """
    square = d * d
    cube = square * d
    return 2 * square - d - cube, cube - 2 * square + 1, d + square - cube, cube - square


def _nearest_weights(d: Tensor) -> tuple[Tensor, ...]:
    """All of the nearer of the two pixels around a position that is `d` (0 to 1) beyond the first."""
    second = (d >= 0.5).to(d.dtype)
    return 1 - second, second


WEIGHTS = {"nearest": _nearest_weights, "bilinear": _linear_weights, "bicubic": _cubic_weights}


class Geometry:
    """Operations that move pixels. `fill` is the colour of what comes from outside the image; `interpolation` is
    nearest, bilinear or bicubic."""

    def __init__(self, fill: tuple[int, int, int], interpolation: str) -> None:
        self.fill = torch.tensor(fill, dtype=torch.float32).view(1, 3, 1, 1)
        self.weights = WEIGHTS[interpolation]
        self.taps = 4 if interpolation == "bicubic" else 2
        self.before = self.taps // 2 - 1
        """How many of the taps' pixels come before the one below the position."""

    def shear_x(self, images: Tensor, factor: Tensor) -> Tensor:
        rows = torch.arange(images.shape[2], device=images.device) + 0.5
        return self._shift_rows(images, factor.view(-1, 1) * rows)

    def shear_y(self, images: Tensor, factor: Tensor) -> Tensor:
        return self.shear_x(images.mT, factor).mT

    def translate_x(self, images: Tensor, share: Tensor) -> Tensor:
        """Move by `share` of the width."""
        return self.shift_x(images, share * images.shape[3])

    def translate_y(self, images: Tensor, share: Tensor) -> Tensor:
        return self.translate_x(images.mT, share).mT

    def shift_x(self, images: Tensor, pixels: Tensor) -> Tensor:
        """Move by `pixels` (n,): column x comes from column x + pixels."""
        return self._shift_rows(images, pixels.view(-1, 1).expand(-1, images.shape[2]))

    def shift_y(self, images: Tensor, pixels: Tensor) -> Tensor:
        return self.shift_x(images.mT, pixels).mT

    def _shift_rows(self, images: Tensor, shift: Tensor) -> Tensor:
        """Pixel x of row y comes from x + shift[y]; `shift` (n, H) float in pixels."""
        n, channels, height, width = images.shape
        shift = shift.view(n, 1, height, 1)
        whole = shift.floor()
        first = torch.arange(-self.before, width + self.taps - 1 - self.before, device=images.device)
        index = (whole.long() + first).clamp_(0, width - 1)
        window = images.gather(3, index.expand(-1, channels, -1, -1))  # (n, 3, H, W + taps - 1)
        value = _total(
            _weighted(window[..., tap : tap + width], weight) for tap, weight in enumerate(self.weights(shift - whole))
        )
        offset = torch.arange(width, device=images.device) - (width - 1) / 2 + shift  # from the centre, (n, 1, H, W)
        return self._filled(value, width / 2 - offset.abs_())

    def rotate(self, images: Tensor, degrees: Tensor) -> Tensor:
        """Turn counter-clockwise about the centre."""
        n, channels, height, width = images.shape
        cosine, sine = _directions(degrees)  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
        y = torch.arange(height, device=images.device).view(1, -1, 1) - (height - 1) / 2
        x = torch.arange(width, device=images.device).view(1, 1, -1) - (width - 1) / 2
        column, row = cosine * x - sine * y, sine * x + cosine * y  # from the centre, (n, H, W)
        margin = torch.minimum(width / 2 - column.abs(), height / 2 - row.abs())
        column, row = column.add_((width - 1) / 2), row.add_((height - 1) / 2)

        # With its border repeated far enough, an image's taps lie at fixed distances from the first one in memory.
        flat = _repeat_border(images, self.before + 1).flatten(2)
        stride = width + 2 * (self.before + 1)
        whole_column, whole_row = column.floor(), row.floor()
        corner = (whole_row.clamp(-1, height - 1) + 1) * stride + whole_column.clamp(-1, width - 1) + 1
        index = corner.long().view(n, 1, -1).expand(-1, channels, -1)
        length = flat.shape[2] - (self.taps - 1) * (stride + 1)
        across = [weight.view(n, 1, -1) for weight in self.weights(column - whole_column)]
        down = [weight.view(n, 1, -1) for weight in self.weights(row - whole_row)]
        value = _total(
            _total(
                _weighted(flat.narrow(2, i * stride + j, length).gather(2, index), weight)
                for j, weight in enumerate(across)
            ).mul_(line_weight)
            for i, line_weight in enumerate(down)
        )
        return self._filled(value.view(images.shape), margin.unsqueeze(1))

    def _filled(self, value: Tensor, margin: Tensor) -> Tensor:
        """Grey levels as C casts them, and the fill colour where `margin`, the distance to the border, is not positive.

        By arithmetic in place: on a CPU a comparison and torch.where take ten times as long.
        """
        if self.fill.device != value.device:
            self.fill = self.fill.to(value.device)
        inside = margin.sign_().clamp_min_(0)
        levels = value.add_(ROUNDING).clamp_(0, 255).floor_()
        return levels.sub_(self.fill).mul_(inside).add_(self.fill).to(torch.int32).to(torch.uint8)


@torch.compiler.disable
def _directions(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (n, 1, 1) of angles (n,). Never compiled: the last bits of a compiled sine are others."""
    angle = torch.deg2rad(degrees).view(-1, 1, 1)
    return angle.cos(), angle.sin()


def _weighted(levels: Tensor, weight: Tensor) -> Tensor:
    """uint8 levels x float weights: one kernel on a GPU; on a CPU, converting and multiplying in place is faster."""
    return levels * weight if levels.is_cuda else levels.float().mul_(weight)


def _total(terms: Iterator[Tensor]) -> Tensor:
    """The sum of the terms, added one by one into the first."""
    total = next(terms)
    for term in terms:
        total.add_(term)
    return total


def _repeat_border(images: Tensor, by: int) -> Tensor:
    """(n, C, H, W) → (n, C, H + 2 by, W + 2 by)."""
    height, width = images.shape[2:]
    rows = torch.arange(-by, height + by, device=images.device).clamp_(0, height - 1)
    columns = torch.arange(-by, width + by, device=images.device).clamp_(0, width - 1)
    return images.index_select(2, rows).index_select(3, columns)
