"""FractalDB's pictures from their formula: maps → walk → geometry → instances.

A category is an iterated function system: K affine maps (x, y) → (ax + by + e, cx + dy + f), chosen at random with
probability p (Kataoka et al., "Pre-training without Natural Images", ACCV 2020). Its 25 variants scale one coefficient
in all maps. The points of a walk are each stamped with a random 3x3 mask; where stamps overlap the last one wins. Since
the walk of a variant never changes, what remains of it is which stamp owns each pixel: the geometry, one owner code per
pixel. An instance is a geometry and a set of masks. The arithmetic is the published renderer's, bit for bit, so no
kernel here may be compiled with fastmath or fused multiply-adds.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from vitlab.core.random import Draws

EMPTY = 15
"""Owner code of a pixel that no stamp reaches. The others are 3i + j: row i, column j of the stamp that owns it."""
PADDING = 6
"""Pixels between the fractal's extent and the image's border."""
GREY = 127
"""Value of a lit pixel."""
_WALK_SEED = 100
"""Seed of the published renderer's walk, the same for every image."""
MIN_FILL = 0.01
"""Share of pixels with an owner below which a variant counts as degenerate."""
_ATTEMPTS = 8
_BLOCK = 256
_MARGIN = 3
_NAN_LEAD = 100
"""Points that the published renderer drops before the first one that is not a number."""


def _weight_rows() -> np.ndarray:
    rows = []
    for coefficient in range(6):
        for factor in (0.2, 0.6, 1.0, 1.4, 1.8):
            if factor != 1.0 or coefficient == 0:
                rows.append([factor if k == coefficient else 1.0 for k in range(6)])
    return np.array(rows)


WEIGHTS = _weight_rows()
"""The 25 variants (25, 6): one of a..f scaled by 0.2, 0.6, 1.4 or 1.8; row 2 changes nothing."""
NUM_VARIANTS = len(WEIGHTS)
PLAIN_VARIANT = 2


def build_geometry(
    category: np.ndarray, *, image_size: int = 362, num_points: int = 200_000, weights: np.ndarray = WEIGHTS
) -> np.ndarray:
    """Owner codes (V, S, S) uint8, top row first, of a category (K, 7) under V `weights` (V, 6)."""
    visits = last_visits(category, image_size=image_size, num_points=num_points, weights=weights)
    codes = np.empty((len(weights), image_size, image_size), np.uint8)
    for variant, visited in enumerate(visits):
        _own(visited, codes[variant])
    return codes


def resampled_geometry(
    category: np.ndarray, number: int, *, seed: int, image_size: int = 362, num_points: int = 200_000
) -> np.ndarray:
    """As `build_geometry` under the 25 weights, with other factors where a variant shows next to nothing.

    The published weights make about one variant in twenty run away or leave specks. Such a variant keeps its
    coefficient and gets a factor drawn from [0.2, 1.8], of (seed, category number, variant, attempt) alone; after
    `_ATTEMPTS` failures it is left unscaled.
    """
    codes = build_geometry(category, image_size=image_size, num_points=num_points)
    weights = WEIGHTS.copy()
    for attempt in range(_ATTEMPTS + 1):
        finite = _measure_chains(category, num_points, weights)[3]
        poor = np.flatnonzero(~finite | ((codes < EMPTY).mean((1, 2)) < MIN_FILL))
        if not len(poor):
            break
        draws = Draws(seed, attempt, number * NUM_VARIANTS + poor)
        factors = 0.2 + 1.6 * draws.uniform("fractal weight") if attempt < _ATTEMPTS else 1.0
        weights[poor] = np.where(WEIGHTS[poor] != 1.0, factors, 1.0)
        codes[poor] = build_geometry(category, image_size=image_size, num_points=num_points, weights=weights[poor])
    return codes


def last_visits(
    category: np.ndarray, *, image_size: int = 362, num_points: int = 200_000, weights: np.ndarray = WEIGHTS
) -> np.ndarray:
    """When each cell was last visited: (V, S + 3, S + 3) int32, 1 + the point's index, 0 for never.

    Cell (row, column) is at [row + 3, column + 3]; rows count upwards, as the walk's y does.
    """
    choices, maps, extents, finite = _measure_chains(category, num_points, weights)
    side = image_size + _MARGIN
    visits = np.zeros((len(weights), side, side), np.int32)
    _visit(choices, maps, extents, finite, image_size, visits)
    for variant in np.flatnonzero(~finite):
        _visit_diverging(choices, np.ascontiguousarray(maps[..., variant : variant + 1]), image_size, visits[variant])
    return visits


def _measure_chains(
    category: np.ndarray, num_points: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which map each step takes (n - 1,), the scaled maps (K + 1, 6, V), their walks' extents (4, V) and whether these
    are finite (V,)."""
    choices = choose_maps(category[:, 6], _walk_numbers(num_points))
    maps = np.empty((len(category) + 1, 6, len(weights)))
    maps[:-1] = category[:, :6, None] * weights.T
    maps[-1] = np.array([1.0, 0, 0, 1, 0, 0])[:, None]  # past the last map: stay where you are
    extents = np.zeros((4, len(weights)))
    ends = _measure(choices, maps, extents)
    with np.errstate(over="ignore"):
        reach = extents[1::2] - extents[::2]
    finite = np.isfinite(np.concatenate([ends, reach])).all(axis=0) & (reach > 0).all(axis=0)
    return choices, maps, extents, np.asarray(finite)


@lru_cache(maxsize=2)
def _walk_numbers(num_points: int) -> np.ndarray:
    return np.random.RandomState(_WALK_SEED).random_sample(num_points)


def choose_maps(probabilities: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The map of each step (n - 1,) uint8: the first whose cumulative probability reaches the number; K if none."""
    choices = np.empty(len(numbers) - 1, np.uint8)
    _choose(np.cumsum(probabilities), numbers, choices)
    return choices


@njit(nogil=True, cache=True)
def _choose(cumulative, numbers, choices):
    for i in range(choices.shape[0]):
        choice = 0
        for k in range(cumulative.shape[0]):  # cumulative rises, so the first to reach it is the count of those below
            choice += numbers[i] > cumulative[k]
        choices[i] = choice


@njit(nogil=True, cache=True)
def _advance(choices, maps, xs, ys):
    """Walk V chains side by side from xs[0], ys[0] (V,), filling xs, ys (steps + 1, V)."""
    for t in range(choices.shape[0]):
        m = maps[choices[t]]
        x, y, next_x, next_y = xs[t], ys[t], xs[t + 1], ys[t + 1]
        for v in range(x.shape[0]):
            next_x[v] = x[v] * m[0, v] + y[v] * m[1, v] + m[4, v]
            next_y[v] = x[v] * m[2, v] + y[v] * m[3, v] + m[5, v]


@njit(nogil=True, cache=True)
def _measure(choices, maps, extents):
    """Least and greatest x, least and greatest y of each chain into `extents` (4, V); returns the ends (2, V)."""
    chains = maps.shape[2]
    xs, ys = np.zeros((_BLOCK + 1, chains)), np.zeros((_BLOCK + 1, chains))
    for start in range(0, choices.shape[0], _BLOCK):
        steps = min(_BLOCK, choices.shape[0] - start)
        _advance(choices[start : start + steps], maps, xs, ys)
        for t in range(1, steps + 1):
            for v in range(chains):
                extents[0, v] = min(extents[0, v], xs[t, v])
                extents[1, v] = max(extents[1, v], xs[t, v])
                extents[2, v] = min(extents[2, v], ys[t, v])
                extents[3, v] = max(extents[3, v], ys[t, v])
        xs[0], ys[0] = xs[steps], ys[steps]
    ends = np.empty((2, chains))
    ends[0], ends[1] = xs[0], ys[0]
    return ends


@njit(nogil=True, cache=True, error_model="numpy")
def _visit(choices, maps, extents, finite, image_size, visits):
    """Walk again and note in `visits` (V, S + 3, S + 3) the last point on each cell.

    Chains that are not finite are left out: their cells would lie outside the array, which nothing checks.
    """
    chains = maps.shape[2]
    xs, ys = np.zeros((_BLOCK + 1, chains)), np.zeros((_BLOCK + 1, chains))
    inner = float(image_size - 2 * PADDING)
    for start in range(0, choices.shape[0] + 1, _BLOCK):
        steps = min(_BLOCK, choices.shape[0] - start)
        _advance(choices[start : start + steps], maps, xs, ys)
        count = steps if start + steps < choices.shape[0] else steps + 1
        for v in range(chains):
            if not finite[v]:
                continue
            left, low = extents[0, v], extents[2, v]
            width, height = extents[1, v] - left, extents[3, v] - low
            for t in range(count):
                column = np.int32((xs[t, v] - left) / width * inner + PADDING)
                row = np.int32((ys[t, v] - low) / height * inner + PADDING)
                visits[v, row + _MARGIN, column + _MARGIN] = start + t + 1
        xs[0], ys[0] = xs[steps], ys[steps]


def _visit_diverging(choices: np.ndarray, maps: np.ndarray, image_size: int, visited: np.ndarray) -> None:
    """As `_visit` for one diverging chain (inf or NaN), as the published renderer happens to treat it.

    It drops the points that are not numbers and the hundred before the first; quotients that still are none fall on
    row or column 0 (the reference's cast to uint16 on x86).
    """
    points = np.zeros((2, len(choices) + 1, 1))
    _advance(choices, maps, points[0], points[1])
    kept = points[..., 0]
    cells = []
    with np.errstate(all="ignore"):
        for axis in range(2):
            bad = np.flatnonzero(np.isnan(kept[axis]))
            if len(bad):
                assert bad[0] > _NAN_LEAD, "overflow takes hundreds of doublings"
                lead = np.arange(bad[0] - _NAN_LEAD, bad[0])
                kept = np.delete(kept, np.concatenate([lead, bad]), axis=1)
        for values in kept:
            values = values - min(values.min(), 0.0)
            place = values / (values.max() - values.min()) * float(image_size - 2 * PADDING) + float(PADDING)
            cells.append(np.where(np.isfinite(place), place, 0.0).astype(np.int64) + _MARGIN)
    visited[cells[1], cells[0]] = 0
    np.maximum.at(visited, (cells[1], cells[0]), np.arange(1, kept.shape[1] + 1, dtype=np.int32))


@njit(nogil=True, cache=True)
def _own(visited, codes):
    """Owner codes (S, S), top row first, from last visits (S + 3, S + 3): of the 9 stamps over a pixel, the latest.

    A stamp's row i, column j lies at its cell's row + 1 + i, column + 1 + j. The time and (j, i) are packed into one
    integer, so that two passes of a maximum over three find both.
    """
    size = codes.shape[0]
    across = np.empty((size + _MARGIN, size), np.int32)
    for r in range(size + _MARGIN):
        for c in range(size):
            latest = max(visited[r, c + 2] * 4, visited[r, c + 1] * 4 + 1)
            across[r, c] = max(latest, visited[r, c] * 4 + 2)
    for r in range(size):
        row = codes[size - 1 - r]
        for c in range(size):
            latest = max(across[r + 2, c] * 4, across[r + 1, c] * 4 + 1)
            latest = max(latest, across[r, c] * 4 + 2)
            row[c] = (latest & 3) * 3 + ((latest >> 2) & 3) if latest >= 16 else EMPTY
