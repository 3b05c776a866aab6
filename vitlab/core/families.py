"""What is simultaneous, by each rule: how far a difference may lie from the truth, in its standard errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from vitlab.core import behrens_fisher, dunnett, largest_welch

LEVEL = 0.95
LEAST_P = behrens_fisher.LEAST_P


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
        return dunnett.critical_value(self.blocks, estimate.freedom, LEVEL**self.part)

    def adjusted(self, estimate: Estimate, statistic: float) -> float:
        own = max(LEAST_P, dunnett.adjusted_p(statistic, self.blocks, estimate.freedom))
        return together(own, 1 / self.part)


class SeparateFamily(Family):
    """Every group with a variance of its own.

    Comparisons with one baseline, of groups with as many seeds as it, share a critical value (`largest_welch`); any
    other comparison has its own (`behrens_fisher`). Each set has its part of the error by Šidák's inequality.
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
        found = float(largest_welch.exceeded(statistic, base, np.array(others), seeds))
        return found < largest_welch.asked(level, seeds)

    def adjusted(self, estimate: Estimate, statistic: float) -> float:
        if (alike := self._alike(estimate)) is None:
            return super().adjusted(estimate, statistic)
        base, others, seeds, _ = self._law(alike)
        found = float(largest_welch.exceeded(statistic, base, np.array(others), seeds))
        return together(max(LEAST_P, largest_welch.reached(found, seeds)), self.count / len(alike))

    def detectable(self, estimate: Estimate, power: float) -> float:
        (one, two), (n, m) = estimate.variances, estimate.counts
        ratio = min(1e6, math.sqrt(one / n / (two / m))) if two else 1e6
        common = None if self._alike(estimate) is None else self.critical(estimate)
        level = sidak(self.count)
        return estimate.error * behrens_fisher.detectable_shift(ratio, n - 1, m - 1, level, power, common)

    def alone(self, estimate: Estimate, statistic: float) -> float:
        return behrens_fisher.p_value(statistic, estimate.share, *(n - 1 for n in estimate.counts))

    def _quantile(self, estimate: Estimate, level: float) -> float:
        first, second = (n - 1 for n in estimate.counts)
        return float(behrens_fisher.critical_value(estimate.share, first, second, level))

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
    return largest_welch.critical_value(base, np.array(others), seeds, level)


def sidak(count: float, level: float = LEVEL) -> float:
    """The level of each of `count` comparisons whose intervals together hold with probability `level`."""
    return -math.expm1(math.log(level) / count)


def together(p: float, count: float) -> float:
    """Šidák's adjustment of one of `count` p-values."""
    return -math.expm1(count * math.log1p(-p)) if p < 1 else 1.0


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.brentq(function, low, high))  # pyright: ignore[reportArgumentType]
