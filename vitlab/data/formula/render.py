"""FractalDB's instances: a geometry, the 3x3 masks of a counter, and a flip.

The published set draws 10 sets of masks for each of 25 variants of a category, and saves each picture in 4 flips:
1,000 images per category. Its masks came from an unseeded generator; ours are a hash of what they are for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from vitlab.core.random import Draws
from vitlab.data.formula.geometry import EMPTY, GREY, NUM_VARIANTS, PLAIN_VARIANT

NUM_FLIPS = 4
"""0: as drawn; 1: top to bottom; 2: left to right; 3: both. The four share their masks."""
PUBLISHED_COUNTS = 10
_STRIDE = 7
"""Step from variant to variant of neighbouring instances; coprime to 25."""
_STREAM = "fractal masks"


@dataclass(frozen=True)
class Instance:
    """One picture of a category: its variant (a row of the weights), its set of masks, its flip."""

    variant: int
    count: int
    flip: int


def instance(number: int) -> Instance:
    """Which picture the `number`-th instance of a category is.

    The first 1,000 are the published ones, and the first few differ as much as they can: 25 instances have 25
    variants, the unscaled one first; the next 25 have another flip and other masks; and so on. From 1,000 on, the
    counts go on where the published ones end.
    """
    group, place = divmod(number, NUM_VARIANTS)
    block, group = divmod(group, NUM_FLIPS * PUBLISHED_COUNTS)
    turn, flip = divmod(group, NUM_FLIPS)
    variant = (PLAIN_VARIANT + _STRIDE * place) % NUM_VARIANTS
    return Instance(variant, block * PUBLISHED_COUNTS + (turn + flip) % PUBLISHED_COUNTS, flip)


def mask_keys(seed: int, pictures: np.ndarray, epoch: int = 0) -> np.ndarray:
    """The 64-bit keys (n,) uint64 of the masks of `pictures` (n, 3): category, variant, count."""
    category, variant, count = np.asarray(pictures, dtype=np.int64).T
    return Draws(seed, epoch, (category * NUM_VARIANTS + variant) << 32 | count).bits(_STREAM, 1)[:, 0]


def pack(codes: np.ndarray) -> np.ndarray:
    """Owner codes (..., S, S) as two to a byte, (..., S, ceil(S / 2)) uint8, the left one in the low half."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.full_like(codes[..., :1], EMPTY)], -1)
    return codes[..., 0::2] | codes[..., 1::2] << 4


def render(packed: np.ndarray, key: int, *, flip: int = 0, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """The picture (h, w) uint8, 0 or 127, or the part of it in `box` (top, left, height, width).

    Only what the box holds is computed. `packed` (S, ceil(S / 2)) is one variant's geometry; the box lies within the
    flipped picture.
    """
    size = packed.shape[0]
    top, left, height, width = box or (0, 0, size, size)
    assert 0 <= top <= top + height <= size and 0 <= left <= left + width <= size, f"box {box} leaves {size} pixels"
    down, across = flip & 1, flip & 2
    if down:
        top = size - top - height
    if across:
        left = size - left - width
    picture = np.empty((height, width), np.uint8)
    _paint(packed, top, left, np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), picture)
    if flip:
        picture = np.ascontiguousarray(picture[:: -1 if down else 1, :: -1 if across else 1])
    return picture


@njit(nogil=True, cache=True)
def _mask(cell, low, high):
    """A cell's mask, uniform in 1..511: MurmurHash3's 32-bit finaliser with the key in two halves.

    Every step is cast, because numba widens products of uint32 to 64 bits and would then not vectorise.
    """
    h = np.uint32(np.uint32(cell * np.uint32(0x9E3779B1)) + low)
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    h = np.uint32(np.uint32(h * np.uint32(0x85EBCA6B)) ^ high)
    h = np.uint32(h ^ np.uint32(h >> np.uint32(13)))
    h = np.uint32(h * np.uint32(0xC2B2AE35))
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    return np.uint32(
        np.uint32(np.uint32(np.uint32(h >> np.uint32(9)) * np.uint32(511)) >> np.uint32(23)) + np.uint32(1)
    )


@njit(nogil=True, cache=True)
def _paint(packed, top, left, low, high, picture):
    """Paint the rows `top`… and columns `left`… of a geometry into `picture` (h, w)."""
    size = packed.shape[0]
    height, width = picture.shape
    first, odd = left // 2, left % 2
    codes = np.empty(width + 2, np.uint8)
    for y in range(height):
        halves = packed[top + y, first : (left + width + 1) // 2]
        for b in range(halves.shape[0]):
            codes[2 * b] = halves[b] & 15
            codes[2 * b + 1] = halves[b] >> 4
        cell = np.uint32((size - 2 - top - y) * size + left - 1)
        _paint_row(codes[odd : odd + width], cell, np.uint32(size), low, high, picture[y])


@njit(nogil=True, cache=True)
def _paint_row(codes, cell, size, low, high, row):
    """Light the pixels whose owner's mask has their bit; `cell` is the owner of code 0 at the row's first pixel.

    Branch-free in 32-bit lanes, so that it becomes SIMD; pixels without owner compute a mask that goes unused.
    """
    for c in range(row.shape[0]):
        code = np.uint32(codes[c])
        i = np.uint32(np.uint32(code * np.uint32(11)) >> np.uint32(5))  # code // 3 for codes below 16
        j = np.uint32(code - np.uint32(i * np.uint32(3)))
        owner = np.uint32(np.uint32(cell + np.uint32(c)) - np.uint32(np.uint32(i * size) + j))
        shift = np.uint32(np.uint32(8) - code) & np.uint32(15)
        bit = np.uint32(np.uint32(_mask(owner, low, high) >> shift) & np.uint32(1))
        row[c] = bit * np.uint32(GREY) if code < np.uint32(9) else np.uint32(0)
