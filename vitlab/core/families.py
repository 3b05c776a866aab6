"""Simultaneous comparisons, by each rule: critical values and adjusted p-values in standard errors of a difference.

`pooled` compares with one control by Dunnett's distribution (JASA 1955), two-sided, by quadrature: scipy.stats.dunnett
draws random numbers and varies in its sixth digit from call to call; this is the same distribution, deterministic and
computed once per design. Groups may differ in size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from vitlab.core import welch

LEVEL = 0.95
LEAST_P = welch.LEAST_P


@dataclass(frozen=True)
class Estimate:
    """A difference of two groups that their seeds support."""

    pair: tuple[int, int]
    """The groups: the second is compared with the first."""
    delta: float
    error: float
    """Its standard error."""
    counts: tuple[int, int]
    """Seeds of the two groups (of the pairs of seeds, twice)."""
    variances: tuple[float, float] = (0.0, 0.0)
    """Between the seeds of each group."""
    freedom: int = 0
    """Degrees of freedom of `error`, where it has Student's law."""

    @property
    def statistic(self) -> float:
        return abs(self.delta) / self.error

    @property
    def share(self) -> float:
        """The first group's part of the squared error."""
        one, two = (v / n for v, n in zip(self.variances, self.counts, strict=True))
        return one / (one + two)


class Family:
    """Comparisons by Student's t, each at its part of the error by Bonferroni's inequality, or by Šidák's.

    `part` is that of these estimates in a larger family whose other groups are independent of theirs.
    """

    def __init__(self, estimates: Sequence[Estimate], part: float = 1.0, *, bonferroni: bool = False) -> None:
        self.estimates, self.count, self.bonferroni = estimates, max(1, len(estimates)) / part, bonferroni

    def critical(self, estimate: Estimate) -> float:
        """The half width of the simultaneous interval, in standard errors."""
        level = (1 - LEVEL) / self.count if self.bonferroni else sidak(self.count)
        return self._quantile(estimate, level)

    def exceeds(self, estimate: Estimate, statistic: float) -> bool:
        """Whether `statistic` standard errors are more than the simultaneous interval's half width."""
        return statistic > self.critical(estimate)

    def adjusted(self, estimate: Estimate, statistic: float) -> float:
        """The smallest family-wise error at which `statistic` standard errors are too many."""
        alone = self.alone(estimate, statistic)
        return min(1.0, self.count * alone) if self.bonferroni else together(alone, self.count)

    def alone(self, estimate: Estimate, statistic: float) -> float:
        """The p-value as if it were the only comparison."""
        return max(LEAST_P, 2 * float(special.stdtr(estimate.freedom, -statistic)))

    def same(self, estimate: Estimate, margin: float) -> bool:
        """Whether both one-sided tests, of the differences -margin and margin, are significant."""
        room = (margin - abs(estimate.delta)) / estimate.error
        return room > 0 and self.adjusted(estimate, room) < 2 * (1 - LEVEL)

    def detectable(self, estimate: Estimate, power: float) -> float:
        """The true difference that is found with probability `power`, if groups scatter as the estimate has it."""
        critical, df = self.critical(estimate), estimate.freedom

        def excess(shift: float) -> float:
            return float(stats.nct.sf(critical, df, shift)) - power

        return _root(excess, 0.0, critical + 50) * estimate.error

    def _quantile(self, estimate: Estimate, level: float) -> float:
        return -float(special.stdtrit(estimate.freedom, level / 2))


class DunnettFamily(Family):
    """One variance for all groups, and no group compared twice: Dunnett's distribution."""

    def __init__(self, estimates: Sequence[Estimate], part: float = 1.0) -> None:
        super().__init__(estimates, part)
        self.part = part
        firsts = dict.fromkeys(e.pair[0] for e in estimates)
        blocks = [[e for e in estimates if e.pair[0] == first] for first in firsts]
        self.blocks = tuple((b[0].counts[0], tuple(sorted(e.counts[1] for e in b))) for b in blocks)

    def critical(self, estimate: Estimate) -> float:
        return dunnett_critical_value(self.blocks, estimate.freedom, LEVEL**self.part)

    def adjusted(self, estimate: Estimate, statistic: float) -> float:
        own = max(LEAST_P, dunnett_p(statistic, self.blocks, estimate.freedom))
        return together(own, 1 / self.part)


class SeparateFamily(Family):
    """Every group with a variance of its own.

    Comparisons with one baseline, of groups with as many seeds as it, share a critical value
    (`welch.common_critical_value`); any other comparison has its own (`welch.critical_value`). Each set has its part of
    the error by Šidák's inequality.
    """

    def __init__(self, estimates: Sequence[Estimate], part: float = 1.0) -> None:
        super().__init__(estimates, part)
        self.sets: dict[tuple[int, int], list[Estimate]] = {}
        for estimate in estimates:
            if estimate.counts[0] == estimate.counts[1]:
                self.sets.setdefault((estimate.pair[0], estimate.counts[0]), []).append(estimate)

    def critical(self, estimate: Estimate) -> float:
        if (alike := self._alike(estimate)) is None:
            return super().critical(estimate)
        base, others, seeds, level = self._law(alike)
        return _common_critical_value(base, others, seeds, level)

    def exceeds(self, estimate: Estimate, statistic: float) -> bool:
        if (alike := self._alike(estimate)) is None:
            return super().exceeds(estimate, statistic)
        base, others, seeds, level = self._law(alike)
        found = float(welch.exceeded(statistic, base, np.array(others), seeds))
        return found < welch.asked(level, seeds)

    def adjusted(self, estimate: Estimate, statistic: float) -> float:
        if (alike := self._alike(estimate)) is None:
            return super().adjusted(estimate, statistic)
        base, others, seeds, _ = self._law(alike)
        found = float(welch.exceeded(statistic, base, np.array(others), seeds))
        return together(max(LEAST_P, welch.reached(found, seeds)), self.count / len(alike))

    def detectable(self, estimate: Estimate, power: float) -> float:
        (one, two), (n, m) = estimate.variances, estimate.counts
        if (alike := self._alike(estimate)) is None:
            ratio = min(1e6, math.sqrt(one / n / (two / m))) if two else 1e6
            return estimate.error * welch.detectable_shift(ratio, n - 1, m - 1, sidak(self.count), power)
        bounds = _common_bounds(*self._law(alike))[:, alike.index(estimate)] / estimate.error

        def excess(shift: float) -> float:
            return float(np.mean(special.ndtr(shift - bounds) + special.ndtr(-shift - bounds))) - power

        return _root(excess, 0.0, float(bounds.max()) + 50) * estimate.error

    def alone(self, estimate: Estimate, statistic: float) -> float:
        return welch.p_value(statistic, estimate.share, *(n - 1 for n in estimate.counts))

    def _quantile(self, estimate: Estimate, level: float) -> float:
        first, second = (n - 1 for n in estimate.counts)
        return float(welch.critical_value(estimate.share, first, second, level))

    def _alike(self, estimate: Estimate) -> list[Estimate] | None:
        """The set that shares the estimate's critical value; None where it is alone."""
        found = self.sets.get((estimate.pair[0], estimate.counts[0])) if len(set(estimate.counts)) == 1 else None
        # a variance of zero has no ratio to others
        return found if found and len(found) > 1 and all(min(e.variances) > 0 for e in found) else None

    def _law(self, alike: Sequence[Estimate]) -> tuple[float, tuple[float, ...], int, float]:
        seeds = alike[0].counts[0]
        base, others = alike[0].variances[0], tuple(e.variances[1] for e in alike)
        return base, others, seeds, sidak(self.count / len(alike))


@functools.lru_cache(maxsize=1024)
def _common_critical_value(base: float, others: tuple[float, ...], seeds: int, level: float) -> float:
    return welch.common_critical_value(base, np.array(others), seeds, level)


@functools.lru_cache(maxsize=256)
def _common_bounds(base: float, others: tuple[float, ...], seeds: int, level: float) -> np.ndarray:
    return welch.common_bounds(base, np.array(others), seeds, level)


def sidak(count: float, level: float = LEVEL) -> float:
    """The level of each of `count` comparisons whose intervals together hold with probability `level`."""
    return -math.expm1(math.log(level) / count)


def together(p: float, count: float) -> float:
    """Šidák's adjustment of one of `count` p-values."""
    return -math.expm1(count * math.log1p(-p)) if p < 1 else 1.0


_HERMITE, _HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(96)
_HERMITE_WEIGHTS = _HERMITE_WEIGHTS / _HERMITE_WEIGHTS.sum()
_LEGENDRE, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(200)
_SHARES, _SHARE_WEIGHTS = (_LEGENDRE + 1) / 2, _LEGENDRE_WEIGHTS / 2


Blocks = tuple[tuple[int, tuple[int, ...]], ...]
"""For each control its size and those of the groups that are compared with it."""


@functools.lru_cache(maxsize=4096)
def dunnett_coverage(critical: float, blocks: Blocks, df: float) -> float:
    """P(max |T_i| <= critical): groups against the control of their block, one variance pooled over `df` for all.

    Given the control's deviation z and the pooled deviation, the statistics of a block are independent (equation 2 of
    the paper); z is integrated by Gauss and Hermite, the deviation over its quantiles. Given the deviation, blocks are
    independent.
    """
    scale = np.sqrt(stats.chi2.ppf(_SHARES, df) / df)[:, None]  # (Q, 1) pooled over true deviation
    inside = np.ones(len(_SHARES))
    for control, sizes in blocks:
        block = np.ones((len(_SHARES), len(_HERMITE)))
        for size, times in zip(*np.unique(sizes, return_counts=True), strict=True):
            loading = np.sqrt(size / (size + control))
            rest = np.sqrt(1 - loading**2)
            shift = loading * _HERMITE[None, :]
            one = stats.norm.cdf((shift + critical * scale) / rest) - stats.norm.cdf((shift - critical * scale) / rest)
            block *= one**times
        inside *= block @ _HERMITE_WEIGHTS
    return float(_SHARE_WEIGHTS @ inside)


@functools.lru_cache(maxsize=256)
def dunnett_critical_value(blocks: Blocks, df: float, level: float = 0.95) -> float:
    """The half-width, in standard errors of each difference, of simultaneous two-sided intervals.

    Raises ValueError without at least one comparison and one degree of freedom.
    """
    if df < 1 or not any(sizes for _, sizes in blocks):
        raise ValueError(f"needs at least one comparison and one degree of freedom, got {blocks} and {df}")
    return _root(lambda c: dunnett_coverage(c, blocks, df) - level, 0.1, 1e4 if df < 2 else 100.0)


def dunnett_p(statistic: float, blocks: Blocks, df: float) -> float:
    """The two-sided p-value of one of the comparisons, adjusted for all of them."""
    return float(np.clip(1 - dunnett_coverage(abs(float(statistic)), blocks, df), 0, 1))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.brentq(function, low, high))  # pyright: ignore[reportArgumentType]
