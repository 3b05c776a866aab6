"""Normal noise from counters, computed where the images are, the same bits on every device."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from vitlab.core.random import FACTORS, INCREMENT, SHIFTS

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
