"""FractalDB's categories: which random iterated function systems fill enough of an image.

Replays the published search (`np.random.seed(1)`), which yields the published 1,000 parameter files bit for bit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit

from vitlab.config import ConfigError
from vitlab.data.formula.geometry import PADDING, choose_maps

SEARCH_SIZE = 512
SEARCH_POINTS = 100_000
GREATEST_FILL = SEARCH_POINTS / SEARCH_SIZE**2
PATIENCE = 20_000
"""Candidates in a row without a find after which the search gives up; at the published threshold one in 43 is one."""
_AHEAD = 4
"""Candidates drawn ahead for each thread."""


@dataclass
class Search:
    """A search that can go on where it stopped: the finds so far, and the generator's state after the last one."""

    seed: int
    threshold: float
    categories: list[np.ndarray] = field(default_factory=list)
    """Each (K, 7) float64: a..f and p of K = 2..7 maps."""
    candidates: int = 0
    """Candidates looked at, up to the last find."""
    state: tuple[np.ndarray, int] | None = None
    """MT19937's 624 words and its position."""

    def extend(
        self,
        num_categories: int,
        *,
        threads: int = 1,
        patience: int = PATIENCE,
        found: Callable[[], None] = lambda: None,
    ) -> None:
        """Search until there are `num_categories`, calling `found` after each; the finds do not depend on `threads`.

        Raises ConfigError where the threshold cannot be met, or `patience` candidates in a row do not meet it.
        """
        if self.threshold > GREATEST_FILL:
            raise ConfigError(
                "dataset.fractal.threshold",
                f"got {self.threshold:g}; {SEARCH_POINTS} points fill at most "
                f"{GREATEST_FILL:.3f} of the {SEARCH_SIZE} x {SEARCH_SIZE} pixels of the search (published: 0.2)",
            )
        generator = np.random.RandomState(self.seed)
        if self.state is not None:
            words, position = self.state
            generator.set_state({"bit_generator": "MT19937", "state": {"key": words, "pos": position}})
        barren = 0
        with ThreadPoolExecutor(threads) as pool:
            pending: deque[tuple[np.ndarray, tuple[np.ndarray, int], Future[bool]]] = deque()
            while len(self.categories) < num_categories:
                while len(pending) < _AHEAD * threads:
                    category, numbers = _draw_candidate(generator)
                    judged = pool.submit(_fills, category, numbers, self.threshold)
                    pending.append((category, _state(generator), judged))
                category, state, judged = pending.popleft()
                barren += 1
                if judged.result():
                    self.categories.append(category)
                    self.candidates += barren
                    self.state = state
                    barren = 0
                    found()
                elif barren >= patience:
                    raise ConfigError(
                        "dataset.fractal.categories",
                        f"{num_categories} asked for, {len(self.categories)} found among "
                        f"{self.candidates + barren} candidates and none among the last {barren}; lower "
                        f"dataset.fractal.threshold={self.threshold:g} (published: 0.2) or the number of categories",
                    )


def _draw_candidate(generator: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """The next candidate (K, 7) and the numbers of its walk, in the published order of drawing."""
    category = np.empty((generator.randint(2, 8), 7))
    for row in category:
        row[:6] = generator.uniform(-1.0, 1.0, 6)
        row[6] = abs(row[0] * row[3] - row[1] * row[2])
    category[:, 6] /= _running_sum(category[:, 6])
    return category, generator.random_sample(SEARCH_POINTS)


def _state(generator: np.random.RandomState) -> tuple[np.ndarray, int]:
    """MT19937's words and position."""
    state: Any = generator.get_state(legacy=False)
    return state["state"]["key"], state["state"]["pos"]


def _running_sum(values: np.ndarray) -> float:
    """The sum from the first to the last, as a loop adds it (np.sum may pair)."""
    return float(np.cumsum(values)[-1])


_scratch = threading.local()


def _buffers() -> tuple[np.ndarray, np.ndarray]:
    """This thread's points (2, n) and cells."""
    if not hasattr(_scratch, "buffers"):
        _scratch.buffers = np.empty((2, SEARCH_POINTS)), np.empty(SEARCH_SIZE * SEARCH_SIZE, np.uint8)
    return _scratch.buffers


def _fills(category: np.ndarray, numbers: np.ndarray, threshold: float) -> bool:
    """Whether the walk's points fill at least `threshold` of the image; a diverging (inf or NaN) walk does not."""
    points, cells = _buffers()
    maps = np.concatenate([category[:, :6], [[1.0, 0, 0, 1, 0, 0]]])
    needed = int(np.ceil(threshold * SEARCH_SIZE**2))
    return _count_filled(choose_maps(category[:, 6], numbers), maps, points, cells, needed) >= needed


@njit(nogil=True, cache=True, error_model="numpy")
def _count_filled(choices, maps, points, cells, needed):
    """Distinct cells that the walk visits, stopping where fewer than `needed` are certain; -1 where it diverges."""
    xs, ys = points[0], points[1]
    x, y = 0.0, 0.0
    xs[0], ys[0] = x, y
    left, right, low, high = 0.0, 0.0, 0.0, 0.0
    for i in range(choices.shape[0]):
        m = maps[choices[i]]
        x, y = x * m[0] + y * m[1] + m[4], x * m[2] + y * m[3] + m[5]
        xs[i + 1], ys[i + 1] = x, y
        if i & 1023 == 0 and not (np.isfinite(x) and np.isfinite(y)):
            return -1
    if not (np.isfinite(x) and np.isfinite(y)):
        return -1
    for i in range(xs.shape[0]):
        left, right = min(left, xs[i]), max(right, xs[i])
        low, high = min(low, ys[i]), max(high, ys[i])
    width, height, inner = right - left, high - low, float(SEARCH_SIZE - 2 * PADDING)
    if not (np.isfinite(width) and np.isfinite(height) and width > 0 and height > 0):
        return -1
    cells[:] = 0
    filled = 0
    for i in range(xs.shape[0]):
        row = np.int32((ys[i] - low) / height * inner + PADDING)
        column = np.int32((xs[i] - left) / width * inner + PADDING)
        cell = row * SEARCH_SIZE + column
        filled += 1 - cells[cell]
        cells[cell] = 1
        if i & 1023 == 0 and filled + xs.shape[0] - i <= needed - 1:
            return filled
    return filled
