"""Random numbers from counters: a value depends on what it is for, never on who draws it.

A draw is a pure function of (seed, stream, epoch, sample index, repetition, slot). Workers, ranks, batch splits and
resumed runs therefore see the same numbers. The mixing function is the finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), applied once per field. It is, on 64 bits,

    z = (z ^ (z >> 30)) · 0xBF58476D1CE4E5B9;  z = (z ^ (z >> 27)) · 0x94D049BB133111EB;  z ^ (z >> 31)

and `data.augment.noise` computes the same on the device, where torch knows no unsigned arithmetic.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

INCREMENT = 0x9E3779B97F4A7C15
"""What SplitMix64 adds to its state per number: 2⁶⁴ divided by the golden ratio, odd."""
SHIFTS = (30, 27, 31)
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def finalise(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 on uint64 (wrap-around arithmetic is intended)."""
    first, second, third = (np.uint64(shift) for shift in SHIFTS)
    with np.errstate(over="ignore"):
        z = (z ^ (z >> first)) * np.uint64(FACTORS[0])
        z = (z ^ (z >> second)) * np.uint64(FACTORS[1])
    return z ^ (z >> third)


def _mix(state: np.ndarray, value: np.ndarray | np.uint64) -> np.ndarray:
    """Fold `value` into `state`, both uint64, and scramble."""
    with np.errstate(over="ignore"):
        return finalise((state ^ value) + np.uint64(INCREMENT))


def permutation(seed: int, stream: str, epoch: int, n: int) -> np.ndarray:
    """A random order of 0..n-1, shape (n,) int64, that depends on (seed, stream, epoch, n) alone."""
    keys = Draws(seed, epoch, np.arange(n)).bits(stream, 1)[:, 0]
    return np.argsort(keys, kind="stable")


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch of B samples.

    `index` (B,) is the sample's place in its data set, `repetition` (B,) which copy of it this is in the epoch
    (repeated augmentation); both int64. Streams are names such as "crop" or "erase": equal names give equal numbers.
    """

    seed: int
    epoch: int
    index: np.ndarray
    repetition: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    def bits(self, stream: str, n: int) -> np.ndarray:
        """(B, n) uniform uint64."""
        state = np.full(len(self.index), zlib.crc32(stream.encode()), dtype=np.uint64)
        state = _mix(state, np.uint64(self.seed & 0xFFFFFFFFFFFFFFFF))
        state = _mix(state, np.uint64(self.epoch))
        state = _mix(state, np.asarray(self.index).astype(np.uint64))
        if self.repetition is not None:
            state = _mix(state, np.asarray(self.repetition).astype(np.uint64))
        else:
            state = _mix(state, np.uint64(0))
        return _mix(state[:, None], np.arange(n, dtype=np.uint64)[None, :])

    def uniform(self, stream: str, n: int = 1) -> np.ndarray:
        """(B, n) float64 in [0, 1)."""
        return (self.bits(stream, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, stream: str, n: int = 1) -> np.ndarray:
        """(B, n) float64 from the standard normal, by inverting its distribution function."""
        return ndtri(np.clip(self.uniform(stream, n), 2.0**-54, None))

    def integers(self, stream: str, high: int, n: int = 1) -> np.ndarray:
        """(B, n) int64 in [0, high)."""
        return np.minimum((self.uniform(stream, n) * high).astype(np.int64), high - 1)

    def select(self, rows: np.ndarray | slice) -> Draws:
        """The draws of some rows of the batch."""
        repetition = None if self.repetition is None else self.repetition[rows]
        return Draws(self.seed, self.epoch, self.index[rows], repetition)
