"""Welch's t: critical values that hold for any ratio of the variances, of two means and of several to one baseline.

**Two means** (`critical_value`). The statistic is Welch's, T = (difference of means - true difference) / sqrt(e1 + e2)
with e = s² / n of each group, and u = e1 / (e1 + e2) is the first group's share. Welch's critical value (Biometrika
1947), Student's t with 1 / (u² / f1 + (1 - u)² / f2) degrees of freedom, is exceeded too often with few values a
group: 1.8 times the nominal rate with three values and a level of 0.0085 (six comparisons), 8 times with two against
ten. Banerjee's (Sankhya 1960),

    B(u) = sqrt(u t1² + (1 - u) t2²)    (t1, t2: Student's with f1 and f2 degrees of freedom)

never is: given the variances, P(T² <= B²) is a concave function of the weighted sum of t² s² / σ², whose every term
alone reaches the level (Jensen). But it is a quarter too wide where the scatters are alike. So the critical value here
is Banerjee's towards both ends, Welch's W(u) in between,

    v(u) = B^(1 - D) W^D,    D(u) = [(u / m)^m ((1 - u) / (1 - m))^(1 - m)]^(2q),    m = f1² / (f1² + f2²),

with q the smallest for which no ratio of the variances makes the rate larger than the level. The rate is an integral
over one variable: given the shares x and 1 - x of the two sums of squares (x is Beta distributed), T is a multiple of
Student's t with f1 + f2 degrees of freedom. Where no q will do, and with two values a group, v is Banerjee's.

**Several means and one baseline**, with as many values each (`common_critical_value`). The critical value c is common
to all comparisons with one baseline: that which the largest of the |T_i|, T_i = (m_i - m_0 - true difference) /
sqrt(s_i² / n + s_0² / n), exceeds with a small probability if the estimated variances are taken for the true ones (a
parametric bootstrap, Krishnamoorthy, Lu and Mathew 2007, by quadrature). All rows together show how the baseline's
scatter compares with theirs, and rows that depend on one noisy baseline are not counted as many, so c is far below
what each comparison alone would need at Šidák's level: with three values a group and six comparisons by a third, with
a noisy baseline by 40 %.

Taking estimates for the truth errs more often than asked for: with three or four values a group in up to 1.3 times as
many cases, with two in 1.6, and relatively more at smaller levels. So c is taken at a lower level, `asked`. Simulated
for 2 to 12 comparisons, 2 to 20 values and deviations of ratio 1 to 20, it then errs in at most 5 %
(benchmarks/RESULTS.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)
_UNIFORM = (_NODES + 1) / 2
_QUANTILES = _UNIFORM**3 * (10 - 15 * _UNIFORM + 6 * _UNIFORM**2)
_QUANTILE_WEIGHTS = _WEIGHTS / 2 * 30 * (_UNIFORM * (1 - _UNIFORM)) ** 2
"""Quantiles of x, dense at both ends, where T is largest."""
_RATIOS = np.logspace(-2.5, 2.5, 41)
"""Standard error of the first group over the second's, at which the rate is held against the level."""
_LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""Levels at which q is computed; it is interpolated between them, and below the last v is Banerjee's."""
_FEW, _FEWEST = (16, 12), (8, 6)
"""Nodes of integrals: good to half a percent of the probability, where thousands are wanted, and to some percent."""
_PLACES = 1 << 12
_STEP = 6.0 / _PLACES
"""Where `common_bounds` looks for the logarithm of a critical value: between 0 and 6."""
LEAST_P = 1e-15
Array = np.ndarray


def critical_value(share: Array | float, first: int, second: int, level: float) -> Array:
    """v(u) for `share` u of the first group, with `first` and `second` degrees of freedom, two-sided at `level`.

    Raises ValueError without a degree of freedom in each group, or for a level outside 0 to 1.
    """
    if min(first, second) < 1 or not 0 < level < 1:
        raise ValueError(f"needs degrees of freedom and a level in (0, 1), got {first}, {second} and {level}")
    share = np.clip(np.asarray(share, dtype=float), 1e-15, 1 - 1e-15)
    steepness = _steepness(first, second, level)
    banerjee = _banerjee(share, first, second, level)
    if not np.isfinite(steepness):
        return banerjee
    return banerjee * (_welch(share, first, second, level, banerjee) / banerjee) ** _dip(
        share, first, second, steepness
    )


def p_value(statistic: float, share: float, first: int, second: int) -> float:
    """The smallest level, two-sided, at which |T| = `statistic` exceeds its critical value; never 0."""
    statistic = abs(float(statistic))
    if statistic == 0:
        return 1.0

    def excess(log_level: float) -> float:
        return float(critical_value(share, first, second, float(np.exp(log_level)))) - statistic

    low, high = float(np.log(LEAST_P)), -1e-6
    if excess(low) <= 0:
        return LEAST_P
    return 1.0 if excess(high) >= 0 else float(np.exp(_root(excess, low, high, 1e-10)))


def rate(ratio: Array | float, first: int, second: int, level: float) -> Array:
    """The exact probability that |T| exceeds v, for each `ratio` of the standard errors of the two means."""
    law = _law(first, second, np.atleast_1d(np.asarray(ratio, dtype=float)))
    critical = critical_value(law.share, first, second, level)
    return 2 * special.stdtr(first + second, -critical * law.scale) @ _QUANTILE_WEIGHTS


def detectable_shift(ratio: float, first: int, second: int, level: float, power: float) -> float:
    """The true difference, in its true standard errors, for which |T| exceeds v with probability `power`.

    `ratio` is that of the true standard errors of the two means.
    """
    law, freedom = _law(first, second, np.array([float(ratio)])), first + second
    critical = critical_value(law.share, first, second, level) * law.scale  # (1, Q), for Student's t
    sizes = np.sqrt(2 * special.gammaincinv(freedom / 2, _QUANTILES) / freedom)  # of Student's denominator
    bound = critical[0, :, None] * sizes

    def excess(shift: float) -> float:
        missed = special.ndtr(bound - shift) - special.ndtr(-bound - shift)
        return float(1 - _QUANTILE_WEIGHTS @ (missed @ _QUANTILE_WEIGHTS)) - power

    return _root(excess, 0.0, 10 * float(critical.max()) + 50, 1e-6)


@dataclass(frozen=True)
class _Law:
    """T over the ratios (R) and the quantiles (Q) of x: |T| > c where |Student's t| > c · scale."""

    share: Array
    """u (R, Q)."""
    scale: Array
    """(R, Q)."""


def _law(first: int, second: int, ratios: Array) -> _Law:
    ratios = np.clip(ratios, 1e-6, 1e6)  # a group without any scatter has no share of its own to estimate
    part = (ratios**2 / (1 + ratios**2))[:, None]  # the first group's part of the true variance
    x = special.betaincinv(first / 2, second / 2, _QUANTILES)
    one, two = part * x / first, (1 - part) * (1 - x) / second
    share = np.clip(one / (one + two), 1e-15, 1 - 1e-15)
    return _Law(share, np.sqrt((first + second) * (one + two)))


_cached_law = functools.lru_cache(maxsize=256)(lambda first, second: _law(first, second, _RATIOS))


def _student(level: float, freedom: Array | float) -> Array:
    """The two-sided quantile of Student's t."""
    return -special.stdtrit(freedom, level / 2)


def _banerjee(share: Array, first: int, second: int, level: float) -> Array:
    return np.sqrt(share * _student(level, first) ** 2 + (1 - share) * _student(level, second) ** 2)


def _welch(share: Array, first: int, second: int, level: float, most: Array) -> Array:
    return np.minimum(most, _student(level, 1 / (share**2 / first + (1 - share) ** 2 / second)))


def _dip(share: Array, first: int, second: int, steepness: float) -> Array:
    middle = first**2 / (first**2 + second**2)
    logs = middle * np.log(share / middle) + (1 - middle) * np.log((1 - share) / (1 - middle))
    return np.exp(2 * steepness * logs)


def _steepness(first: int, second: int, level: float) -> float:
    """q at any level, by interpolation of the logarithms."""
    place = float(np.interp(-np.log(level), -np.log(_LEVELS), np.arange(len(_LEVELS))))
    if level < _LEVELS[-1]:
        return np.inf
    left, right = int(place), min(int(place) + 1, len(_LEVELS) - 1)
    low = _steepness_at(first, second, left)
    if place == left or not np.isfinite(low):
        return low
    return float(low ** (1 - place + left) * _steepness_at(first, second, right) ** (place - left))


@functools.lru_cache(maxsize=4096)
def _steepness_at(first: int, second: int, index: int) -> float:
    """The smallest q for which no ratio makes the rate larger than `_LEVELS[index]`; infinite where none does."""
    if min(first, second) < 2:
        return np.inf
    if first > second:
        return _steepness_at(second, first, index)
    level, law = _LEVELS[index], _cached_law(first, second)
    banerjee = _banerjee(law.share, first, second, level)
    depth = np.log(_welch(law.share, first, second, level, banerjee) / banerjee)

    def excess(log_steepness: float) -> float:
        bound = banerjee * np.exp(depth * _dip(law.share, first, second, np.exp(log_steepness)))
        rates = 2 * special.stdtr(first + second, -bound * law.scale) @ _QUANTILE_WEIGHTS
        return float(rates.max()) / level - 1

    low, high = float(np.log(0.01)), float(np.log(300.0))
    if excess(low) <= 0:
        found = 0.01
    elif excess(high) > 0:
        return np.inf
    else:
        found = float(np.exp(_root(excess, low, high, 1e-3)))
    return max(found, _steepness_at(first, second, index - 1) if index else 0.0)


def asked(level: float, count: int) -> float:
    """The level at which c is taken so that the family errs in at most `level`, with `count` values a group."""
    return (1 - 1 / count) * level * min(1.0, level / 0.05) ** (1.2 / count)


def reached(exceeded: float, count: int) -> float:
    """The inverse of `asked`."""
    level = exceeded / (1 - 1 / count)
    return min(1.0, level if level >= 0.05 else 0.05 * (level / 0.05) ** (1 / (1 + 1.2 / count)))


def exceeded(
    critical: Array | float, base: Array | float, others: Array, count: int, nodes: tuple[int, int] = (32, 24)
) -> Array:
    """P(max |T_i| > critical) if the variances are `base` (...) and `others` (..., K), with `count` values a group.

    `nodes` are those of the integrals over the baseline's values and over a group's.
    """
    law = _quantiles(count, *nodes)
    deviation = np.sqrt(np.asarray(base)[..., None] / others)[
        ..., None, None, None
    ]  # (..., K, 1, 1, 1) in each row's own
    shift = law.z[:, None, None] * deviation  # (..., K, Z, 1, 1)
    error = np.sqrt(law.row + law.base[:, None] * deviation**2)  # (..., K, 1, C, R)
    bound = np.asarray(critical)[..., None, None, None, None] * error
    inside = (special.ndtr(shift + bound) - special.ndtr(shift - bound)) @ law.row_weights  # (..., K, Z, C)
    return np.maximum(0.0, 1 - law.base_weights @ (inside.prod(-3) @ law.base_weights)[..., None])[..., 0]


def common_critical_value(base: float, others: Array, count: int, level: float) -> float:
    """c for simultaneous two-sided intervals of K comparisons at `level`, from the estimated variances."""
    wanted = asked(level, count)

    def excess(log_critical: float) -> float:
        return wanted - float(exceeded(np.exp(log_critical), base, others, count))

    return float(np.exp(_root(excess, 0.0, 12.0, 1e-4)))


def common_bounds(base: float, others: Array, count: int, level: float) -> Array:
    """Half widths (R, K) of `common_critical_value`, over the variances that R studies estimate of these true ones.

    The estimates are a Sobol sequence of chi-squared quantiles, so that the same design gives the same numbers.
    """
    number = max(8, min(64, 2 ** int(math.log2(max(1, 512 // len(others))))))
    points = stats.qmc.Sobol(len(others) + 1, scramble=False).random(number) + 0.5 / number
    estimates = stats.chi2.ppf(points, count - 1) / (count - 1) * np.concatenate([[base], others])  # (R, 1 + K)
    first, second, wanted = estimates[:, 0], estimates[:, 1:], asked(level, count)

    def excess(place: Array, of: Array, nodes: tuple[int, int]) -> Array:
        """The logarithm of how often these studies exceed exp(place · _STEP), over how often they may."""
        found = exceeded(np.exp(place * _STEP), first[of], second[of], count, nodes)
        return np.log(np.maximum(found, 1e-300) / wanted)

    everywhere = np.arange(number)
    guess = np.zeros(number, dtype=int)
    for size in 2 ** np.arange(11, 1, -1):  # few nodes say where to look, in a sixth of the time
        guess = np.where(excess(guess + size, everywhere, _FEWEST) > 0, guess + size, guess)
    slope = (excess(guess + 8, everywhere, _FEWEST) - excess(guess, everywhere, _FEWEST)) / 8
    slope = np.minimum(slope, -1e-4)
    low, high = np.zeros(number, dtype=int), np.full(number, _PLACES)
    left, right = np.full(number, np.nan), np.full(number, np.nan)  # the excess there, where it is known
    place, rounds = np.maximum(guess, 1), 0
    while (of := np.flatnonzero(high - low > 1)).size:
        found = excess(place[of], of, _FEW)
        more, less = of[found > 0], of[found <= 0]
        low[more], left[more] = place[more], found[found > 0]
        high[less], right[less] = place[less], found[found <= 0]
        one, other = np.isfinite(left), np.isfinite(right)
        steep = np.where(one & other, (right - left) / (high - low), slope)
        below = np.floor(np.where(one, low - np.nan_to_num(left) / steep, high - np.nan_to_num(right) / steep))
        place = np.clip(np.where((below <= low) | ~other, below + 1, below), low + 1, high - 1).astype(int)
        if (rounds := rounds + 1) > 6:
            place = (low + high) // 2
    return np.exp((low + 0.5) * _STEP)[:, None] * np.sqrt((first[:, None] + second) / count)


class _Quantiles:
    """The quantiles over which everything is integrated, dense at both ends, and their weights."""

    def __init__(self, count: int, outer: int, inner: int) -> None:
        freedom = count - 1
        uniform, self.base_weights = _nodes_of(outer)
        self.z = special.ndtri(0.5 + uniform / 2)  # (Z,) the baseline's mean, whose sign does not matter
        self.base = 2 * special.gammaincinv(freedom / 2, uniform) / freedom  # (C,) its estimated over its true variance
        uniform, self.row_weights = _nodes_of(inner)
        self.row = 2 * special.gammaincinv(freedom / 2, uniform) / freedom  # (R,) the same of the other group


_quantiles = functools.lru_cache(maxsize=64)(_Quantiles)


def _nodes_of(count: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    uniform = (nodes + 1) / 2
    return uniform**3 * (10 - 15 * uniform + 6 * uniform**2), weights / 2 * 30 * (uniform * (1 - uniform)) ** 2


def _root(function: Callable[[float], float], low: float, high: float, within: float) -> float:
    return float(optimize.brentq(function, low, high, xtol=within))  # pyright: ignore[reportArgumentType]
