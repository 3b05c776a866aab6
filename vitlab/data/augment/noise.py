"""Normal noise from counters, computed where the images are, the same bits on every device."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

_BITS = 16
CHANNELS = 3


@cache
def _quantiles(device: torch.device) -> Tensor:
    """The 65,536 equally likely values (float32) that stand for the standard normal: its quantiles, at unit variance.

    A table in place of a logarithm and a cosine, whose last bits differ between devices and between a vector's body
    and its tail.
    """
    count = 2**_BITS
    values = ndtri((np.arange(count) + 0.5) / count)
    return torch.from_numpy((values / values.std()).astype(np.float32)).to(device)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 read as unsigned."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def counter_normal(keys: Tensor, counters: Tensor) -> Tensor:
    """Standard normal noise (m, 3) float32; row i is a function of keys[i] and counters[i] (both (m,) int64) alone.

    SplitMix64 (Steele et al., OOPSLA 2014) gives 64 bits per row, of which 16 choose the quantile of each channel.
    """
    z = keys + (counters + 1) * -7046029254386353131
    z = (z ^ _shift_right(z, 30)).mul_(-4658895280553007687)
    z = (z ^ _shift_right(z, 27)).mul_(-7723592293110705685)
    z = z ^ _shift_right(z, 31)
    mask = 2**_BITS - 1
    lanes = torch.stack([(z >> (_BITS * channel)) & mask for channel in range(CHANNELS)], 1)
    return _quantiles(keys.device)[lanes]
