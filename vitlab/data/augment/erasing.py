"""Random erasing (Zhong et al., AAAI 2020) of normalised images, one box of per-pixel noise: timm's `pixel` mode.

The noise comes from counters and is computed where the images are, with the same bits on every device.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from vitlab.core.device import to_device
from vitlab.core.random import FACTORS, INCREMENT, SHIFTS, Draws

AREA = (0.02, 1 / 3)
"""Share of the image that a box covers."""
ASPECT = (0.3, 1 / 0.3)
TRIES = 10
_BITS = 16
CHANNELS = 3


def erase_boxes(probability: float, height: int, width: int, draws: Draws) -> np.ndarray:
    """Boxes (B, 4) int64 of top, left, height, width; all 0 where nothing is erased (timm's RandomErasing)."""
    numbers = draws.uniform("erase_box", 4 * TRIES).reshape(len(draws), 4, TRIES)
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * numbers[:, 0])
    low, high = (math.log(v) for v in ASPECT)
    aspect = np.exp(low + (high - low) * numbers[:, 1])
    h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    rows, first = np.arange(len(draws)), fits.argmax(1)
    h, w = h[rows, first], w[rows, first]
    top = np.floor(numbers[rows, 2, first] * (height - h + 1))
    left = np.floor(numbers[rows, 3, first] * (width - w + 1))
    boxes = np.stack([top, left, h, w], 1).astype(np.int64)
    boxes[~fits.any(1) | (draws.uniform("erase")[:, 0] >= probability)] = 0
    return boxes


def fill_with_noise(images: Tensor, boxes: np.ndarray, draws: Draws) -> None:
    """Write standard normal noise into the `boxes` (B, 4) of float images (B, 3, H, W), in place.

    Only the boxes' own pixels are computed: all of them in one flat list, whose length the host knows.
    """
    rows = np.flatnonzero(boxes[:, 2] * boxes[:, 3])
    if not len(rows):
        return
    device, width = images.device, images.shape[3]
    top, left, box_height, box_width = boxes[rows].T
    counts = box_height * box_width
    keys = draws.select(rows).bits("erase_noise", 1)[:, 0].view(np.int64)
    table = to_device(np.stack([rows, keys, np.cumsum(counts) - counts, top, left, box_width, counts], 1), device)
    total = int(counts.sum())
    row, key, start, top, left, across, _ = table.repeat_interleave(table[:, -1], dim=0, output_size=total).unbind(1)
    place = torch.arange(total, device=device) - start
    down = torch.div(place, across, rounding_mode="floor")
    y, x = top + down, left + place - down * across
    images.permute(0, 2, 3, 1)[row, y, x] = counter_normal(key, y * width + x)


@cache
def _quantiles(device: torch.device) -> Tensor:
    """The 65,536 equally likely values (float32) that stand for the standard normal: its quantiles, at unit variance.

    A table in place of a logarithm and a cosine, whose last bits differ between devices and between a vector's body
    and its tail.
    """
    count = 2**_BITS
    values = ndtri((np.arange(count) + 0.5) / count)
    return torch.from_numpy((values / values.std()).astype(np.float32)).to(device)


def _signed(value: int) -> int:
    """The int64 that has the bits of a uint64."""
    return value - 2**64 if value >= 2**63 else value


_INCREMENT, _FACTORS = _signed(INCREMENT), tuple(map(_signed, FACTORS))


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 read as unsigned."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def counter_bits(keys: Tensor, counters: Tensor) -> Tensor:
    """64 random bits per row, (m,) int64: number `counters` (m,) of the SplitMix64 whose first state is `keys` (m,).

    The function is `core.random.finalise`'s, which says the source.
    """
    z = keys + (counters + 1) * _INCREMENT
    z = (z ^ _shift_right(z, SHIFTS[0])).mul_(_FACTORS[0])
    z = (z ^ _shift_right(z, SHIFTS[1])).mul_(_FACTORS[1])
    return z ^ _shift_right(z, SHIFTS[2])


def counter_normal(keys: Tensor, counters: Tensor) -> Tensor:
    """Standard normal noise (m, 3) float32; row i is a function of keys[i] and counters[i] (both (m,) int64) alone.

    SplitMix64 gives 64 bits per row, of which 16 choose the quantile of each channel.
    """
    z = counter_bits(keys, counters)
    mask = 2**_BITS - 1
    lanes = torch.stack([(z >> (_BITS * channel)) & mask for channel in range(CHANNELS)], 1)
    return _quantiles(keys.device)[lanes]
