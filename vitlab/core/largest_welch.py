"""Several means beside one, every group with a scatter of its own and as many values: the law of the largest Welch t.

The critical value c is common to all comparisons with one baseline: that which the largest of the |T_i|,
T_i = (m_i - m_0 - true difference) / sqrt(s_i² / n + s_0² / n), exceeds with a small probability if the estimated
variances are taken for the true ones (a parametric bootstrap, Krishnamoorthy, Lu and Mathew 2007, by quadrature). All
rows tell together how the baseline's scatter stands to theirs, and rows that depend on one noisy baseline are not
counted as many, so c is far below what each comparison alone would need at Šidák's level (`behrens_fisher`): with three
values a group and six comparisons by a third, with a noisy baseline by 40 %.

Taking estimates for the truth errs more often than asked for: with three or four values a group in up to 1.3 times as
many cases, with two in 1.6, and relatively more at smaller levels. So c is taken at a lower level, `asked`. Simulated
for 2 to 12 comparisons, 2 to 20 values and deviations of ratio 1 to 20, it then errs in at most 5 %
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy import optimize, special

Array = np.ndarray


def asked(level: float, count: int) -> float:
    """The level at which c is taken so that the family errs in at most `level`, with `count` values a group."""
    return (1 - 1 / count) * level * min(1.0, level / 0.05) ** (1.2 / count)


def reached(exceeded: float, count: int) -> float:
    """The inverse of `asked`."""
    level = exceeded / (1 - 1 / count)
    return min(1.0, level if level >= 0.05 else 0.05 * (level / 0.05) ** (1 / (1 + 1.2 / count)))


def exceeded(critical: Array | float, base: Array | float, others: Array, count: int, fine: bool = True) -> Array:
    """P(max |T_i| > critical) if the variances are `base` (...) and `others` (..., K), with `count` values a group.

    `fine=False` takes fewer nodes: good to half a percent of the probability, where thousands are wanted.
    """
    law = _law(count, *((32, 24) if fine else (16, 12)))
    deviation = np.sqrt(np.asarray(base)[..., None] / others)[
        ..., None, None, None
    ]  # (..., K, 1, 1, 1) in each row's own
    shift = law.z[:, None, None] * deviation  # (..., K, Z, 1, 1)
    error = np.sqrt(law.row + law.base[:, None] * deviation**2)  # (..., K, 1, C, R)
    bound = np.asarray(critical)[..., None, None, None, None] * error
    inside = (special.ndtr(shift + bound) - special.ndtr(shift - bound)) @ law.row_weights  # (..., K, Z, C)
    return np.maximum(0.0, 1 - law.base_weights @ (inside.prod(-3) @ law.base_weights)[..., None])[..., 0]


def critical_value(base: float, others: Array, count: int, level: float) -> float:
    """c for simultaneous two-sided intervals of K comparisons at `level`, from the estimated variances."""
    wanted = asked(level, count)

    def excess(log_critical: float) -> float:
        return wanted - float(exceeded(np.exp(log_critical), base, others, count))

    return float(np.exp(_root(excess, 0.0, 12.0, 1e-4)))


class _Law:
    """The quantiles over which everything is integrated, dense at both ends, and their weights."""

    def __init__(self, count: int, outer: int, inner: int) -> None:
        freedom = count - 1
        uniform, self.base_weights = _nodes(outer)
        self.z = special.ndtri(0.5 + uniform / 2)  # (Z,) the baseline's mean, whose sign does not matter
        self.base = 2 * special.gammaincinv(freedom / 2, uniform) / freedom  # (C,) its estimated over its true variance
        uniform, self.row_weights = _nodes(inner)
        self.row = 2 * special.gammaincinv(freedom / 2, uniform) / freedom  # (R,) the same of the other group


_law = functools.lru_cache(maxsize=64)(_Law)


def _nodes(count: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    uniform = (nodes + 1) / 2
    return uniform**3 * (10 - 15 * uniform + 6 * uniform**2), weights / 2 * 30 * (uniform * (1 - uniform)) ** 2


def _root(function: Callable[[float], float], low: float, high: float, within: float) -> float:
    return float(optimize.brentq(function, low, high, xtol=within))  # pyright: ignore[reportArgumentType]
