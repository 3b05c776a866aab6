"""Random erasing (Zhong et al., AAAI 2020) of normalised images, one box of per-pixel noise: timm's `pixel` mode."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitlab.core.device import to_device
from vitlab.core.random import Draws
from vitlab.data.augment.noise import counter_normal

AREA = (0.02, 1 / 3)
"""Share of the image that a box covers."""
ASPECT = (0.3, 1 / 0.3)
TRIES = 10


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
