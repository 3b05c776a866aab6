"""Dunnett's comparison of k groups with one control (Dunnett, JASA 1955), two-sided, by quadrature.

scipy.stats.dunnett draws random numbers and varies in its sixth digit from call to call; this is the same
distribution, deterministic and computed once per design. Groups may differ in size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(96)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_LEGENDRE, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(200)
_SHARES, _SHARE_WEIGHTS = (_LEGENDRE + 1) / 2, _LEGENDRE_WEIGHTS / 2


Blocks = tuple[tuple[int, tuple[int, ...]], ...]
"""For each control its size and those of the groups that are compared with it."""


@functools.lru_cache(maxsize=4096)
def coverage(critical: float, blocks: Blocks, df: float) -> float:
    """P(max |T_i| <= critical): groups against the control of their block, one variance pooled over `df` for all.

    Given the control's deviation z and the pooled deviation, the statistics of a block are independent (equation 2 of
    the paper); z is integrated by Gauss and Hermite, the deviation over its quantiles. Given the deviation, blocks are
    independent.
    """
    scale = np.sqrt(stats.chi2.ppf(_SHARES, df) / df)[:, None]  # (Q, 1) pooled over true deviation
    inside = np.ones(len(_SHARES))
    for control, sizes in blocks:
        block = np.ones((len(_SHARES), len(_NODES)))
        for size, times in zip(*np.unique(sizes, return_counts=True), strict=True):
            loading = np.sqrt(size / (size + control))
            rest = np.sqrt(1 - loading**2)
            shift = loading * _NODES[None, :]
            one = stats.norm.cdf((shift + critical * scale) / rest) - stats.norm.cdf((shift - critical * scale) / rest)
            block *= one**times
        inside *= block @ _WEIGHTS
    return float(_SHARE_WEIGHTS @ inside)


@functools.lru_cache(maxsize=256)
def critical_value(blocks: Blocks, df: float, level: float = 0.95) -> float:
    """The half-width, in standard errors of each difference, of simultaneous two-sided intervals.

    Raises ValueError without at least one comparison and one degree of freedom.
    """
    if df < 1 or not any(sizes for _, sizes in blocks):
        raise ValueError(f"needs at least one comparison and one degree of freedom, got {blocks} and {df}")
    return _root(lambda c: coverage(c, blocks, df) - level, 0.1, 1e4 if df < 2 else 100.0)


def adjusted_p(statistic: float, blocks: Blocks, df: float) -> float:
    """The two-sided p-value of one of the comparisons, adjusted for all of them."""
    return float(np.clip(1 - coverage(abs(float(statistic)), blocks, df), 0, 1))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.brentq(function, low, high))  # pyright: ignore[reportArgumentType]
