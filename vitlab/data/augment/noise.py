"""Normal noise for whole images from one counter each, computed where the images are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 read as unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def counter_normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 noise (n, *shape): value i of sample k is a function of (keys[k], i) alone.

    `keys` (n,) int64. SplitMix64 (Steele et al., OOPSLA 2014) gives 64 bits per value, which Box and Muller's
    transform (1958) turns into a normal number.
    """
    count = math.prod(shape)
    z = keys.view(-1, 1) + torch.arange(1, count + 1, device=keys.device).view(1, -1) * -7046029254386353131
    z = (z ^ _shift_right(z, 30)) * -4658895280553007687
    z = (z ^ _shift_right(z, 27)) * -7723592293110705685
    z = z ^ _shift_right(z, 31)
    radius = (_shift_right(z, 40).float() + 0.5) * 2.0**-24  # (0, 1)
    angle = ((z >> 8) & 0xFFFFFF).float() * (2 * math.pi * 2.0**-24)
    return (torch.sqrt(-2 * torch.log(radius)) * torch.cos(angle)).view(-1, *shape)
