"""FractalDB's renderer and search as their definition reads: loops, lists, one stamp after another.

Slow on purpose and independent of vitlab's own, with which tests and the benchmark compare it. At the end of the file:
vitlab's geometry and masks as plain arrays, and its search in one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit

from vitlab.data.formula.geometry import GREY
from vitlab.data.formula.render import _mask
from vitlab.data.formula.search import PATIENCE, Search


def walk(maps: Sequence[Sequence[float]], numbers: Sequence[float]) -> tuple[list[float], list[float]]:
    """Points of the chaos game from (0, 0): step i takes the first map whose running probability reaches number i."""
    x = y = 0.0
    xs, ys = [x], [y]
    for number in numbers[:-1]:
        running = 0.0
        for a, b, c, d, e, f, p in maps:
            running += p
            if number <= running:
                x, y = x * a + y * b + e, x * c + y * d + f
                break
        xs.append(x)
        ys.append(y)
    return xs, ys


def drop_runaway(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Without the points that are no numbers, and the hundred before the first, first for x, then for y."""
    for axis in range(2):
        values = (xs, ys)[axis]
        bad = {i for i, value in enumerate(values) if math.isnan(value)}
        if bad:
            bad |= set(range(min(bad) - 100, min(bad)))
            xs = [x for i, x in enumerate(xs) if i not in bad]
            ys = [y for i, y in enumerate(ys) if i not in bad]
    return xs, ys


def cells(values: Sequence[float], size: int, padding: int = 6) -> list[int]:
    """Each value's row or column: the extent is stretched over the image less its padding; what is no number: 0."""
    low = min(0.0, *values)
    shifted = [value - low for value in values]
    reach = max(shifted) - min(shifted)
    places = []
    for value in shifted:
        place = value / reach * float(size - 2 * padding) + float(padding) if reach != 0 else math.nan
        places.append(int(place) if math.isfinite(place) else 0)
    return places


def draw(category: np.ndarray, weights: Sequence[float], masks: Sequence[int], size: int) -> np.ndarray:
    """The picture (size, size) uint8, top row first, of one variant; `masks` has one 3x3 mask, 1..511, per point."""
    maps = [[float(v * w) for v, w in zip(row[:6], weights, strict=True)] + [float(row[6])] for row in category]
    numbers = np.random.RandomState(100).random_sample(len(masks)).tolist()
    xs, ys = drop_runaway(*walk(maps, numbers))
    picture = [[0] * size for _ in range(size)]
    for mask, x, y in zip(masks, cells(xs, size), cells(ys, size), strict=False):
        bits = f"{mask:09b}"
        for i in range(3):
            for j in range(3):
                picture[y + 1 + i][x + 1 + j] = 127 * int(bits[3 * i + j])
    return np.array(picture[::-1], np.uint8)


def search(num_categories: int, seed: int = 1, threshold: float = 0.2) -> list[np.ndarray]:
    """The accepted parameter sets (K, 7) of the published search."""
    generator = np.random.RandomState(seed)
    accepted = []
    while len(accepted) < num_categories:
        category = np.zeros((generator.randint(2, 8), 7))
        for row in category:
            row[:6] = generator.uniform(-1.0, 1.0, 6)
            row[6] = abs(row[0] * row[3] - row[1] * row[2])
        category[:, 6] /= sum(category[:, 6].tolist())
        xs, ys = drop_runaway(*walk(category.tolist(), generator.random_sample(100_000).tolist()))
        filled = set(zip(cells(xs, 512), cells(ys, 512), strict=True))
        if len(filled) / float(512 * 512) >= threshold:
            accepted.append(category)
    return accepted


def unpack(packed: np.ndarray, size: int) -> np.ndarray:
    """The owner codes (..., S, S) that `pack` was given."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)[..., :size]


def stamp(codes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The picture (S, S) uint8 for given masks: what `render` draws, for any masks.

    `codes` (S, S) are owner codes, top row first; `masks` (S, S) gives each cell's 3x3 mask, 1..511, its top left
    bit the highest, rows counting upwards.
    """
    row, column = np.nonzero(codes < 9)
    code = codes[row, column].astype(np.int64)
    mask = masks[len(codes) - 2 - row - code // 3, column - 1 - code % 3]
    picture = np.zeros_like(codes)
    picture[row, column] = (mask >> (8 - code) & 1) * GREY
    return picture


def masks_of(key: int, size: int) -> np.ndarray:
    """Every cell's mask (S, S) uint16 under a key, as `stamp` takes them."""
    masks = np.empty((size, size), np.uint16)
    _fill_masks(np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), masks)
    return masks


@njit(nogil=True, cache=True)
def _fill_masks(low, high, masks):
    size = masks.shape[0]
    for r in range(size):
        for c in range(size):
            masks[r, c] = _mask(np.uint32(r * size + c), low, high)


def search_categories(
    num_categories: int,
    seed: int = 1,
    *,
    threshold: float = 0.2,
    threads: int = 1,
    patience: int = PATIENCE,
) -> list[np.ndarray]:
    """The first `num_categories` accepted parameter sets, each (K, 7) float64: a..f and p of K maps.

    Raises ConfigError as `Search.extend` does.
    """
    search = Search(seed, threshold)
    search.extend(num_categories, threads=threads, patience=patience)
    return search.categories
