"""One rule for every difference of two means: estimates, simultaneous 95 % intervals and adjusted p-values.

Rules:
- `auto`: every group has a variance of its own (`behrens_fisher`), simultaneous by Šidák's inequality (JASA 1967).
  The family-wise error stays below 5 % for any ratio of the scatters and any numbers of seeds from 2 on; the simulation
  is benchmarks/bench_intervals.py.
- `pooled`: one variance for all groups, by Dunnett's distribution. For who asserts that all scatter alike.
- `paired`: differences of equal seeds, Student's t, by Bonferroni's inequality. For who asserts that seeds pair.

A measurement on N images cannot show a scatter below half an image, that of two neighbouring values of equal chance:
`resolution` is one image in the groups' unit, and half of it the least deviation that a comparison takes, so that seeds
that agree give neither a width nor a p of zero. (1/√12, the deviation of rounding, calls up to 7 % falsely.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from vitlab.core import behrens_fisher, dunnett

Rule = Literal["auto", "pooled", "paired"]
Pair = tuple[int, int]
"""Indices of two groups: the second is compared with the first."""
LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Group:
    """The values of one condition."""

    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    """Of each value, for pairing; empty where not known."""
    resolution: float = 0.0
    """The smallest step between two values that the measurement can tell; 0 where not known."""

    def negated(self) -> Group:
        """The same group on a scale where less is better."""
        return Group(tuple(-value for value in self.values), self.seeds, self.resolution)

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def sd(self) -> float | None:
        """As the seeds show it, without the floor; None below two seeds."""
        return float(np.std(self.values, ddof=1)) if self.n > 1 else None

    @property
    def variance(self) -> float:
        """Between seeds, at least that of half an image."""
        return max(self.sd or 0.0, self.resolution / 2) ** 2


@dataclass(frozen=True)
class Comparison:
    """One condition beside another; None where n cannot support a figure."""

    n: int
    mean: float
    sd: float | None
    delta: float | None
    low: float | None
    high: float | None
    p: float | None
    same: bool | None = None
    """Whether the true difference is shown to be smaller than the margin; None without a margin or an interval."""

    @property
    def significant(self) -> bool:
        """Whether the simultaneous interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class _Estimate:
    """A difference that the seeds support: its standard error, and the law of the difference over it."""

    delta: float
    error: float
    share: float = 0.5
    """The first group's part of the squared error."""
    first: int = 0
    second: int = 0
    """Degrees of freedom of the two groups (of the differences: first), or of all groups together (first)."""

    @property
    def statistic(self) -> float:
        return abs(self.delta) / self.error


def compare(
    groups: Sequence[Group],
    pairs: Sequence[Pair],
    rule: Rule = "auto",
    *,
    margin: float | None = None,
    stepwise: bool = False,
    part: float = 1.0,
) -> list[Comparison]:
    """Each pair's second group beside its first, simultaneously over all pairs.

    `margin` asks whether the true difference is smaller than it: two one-sided tests, adjusted as the intervals are.
    `stepwise` adjusts the p-values by Holm's method, which finds more; the intervals are single-step always. `part`
    says that these pairs are that part of a larger family whose other groups are independent of these. A pair with
    fewer than two seeds in either group, or without any scatter, gets its difference and no interval.
    """
    estimates = {i: e for i, pair in enumerate(pairs) if (e := _estimate(groups, pair, rule)) is not None}
    family = _Family(groups, [pairs[i] for i in estimates], rule, part)
    if stepwise:
        p_values = dict(zip(estimates, holm([family.alone(e.statistic, e) for e in estimates.values()]), strict=True))
    else:
        p_values = {i: family.adjusted(e) for i, e in estimates.items()}
    comparisons = []
    for i, (first, second) in enumerate(pairs):
        group, other, estimate = groups[second], groups[first], estimates.get(i)
        delta = group.mean - other.mean if group.n and other.n else None
        low = high = same = None
        if estimate is not None:
            half = family.critical(estimate) * estimate.error
            delta, low, high = estimate.delta, estimate.delta - half, estimate.delta + half
            same = None if margin is None else family.same(estimate, margin)
        comparisons.append(Comparison(group.n, group.mean, group.sd, delta, low, high, p_values.get(i), same))
    return comparisons


def supported(groups: Sequence[Group], pairs: Sequence[Pair], rule: Rule = "auto") -> int:
    """How many of the pairs get an interval."""
    return sum(_estimate(groups, pair, rule) is not None for pair in pairs)


def _estimate(groups: Sequence[Group], pair: Pair, rule: Rule) -> _Estimate | None:
    first, second = groups[pair[0]], groups[pair[1]]
    if min(first.n, second.n) < 2:
        return None
    delta = second.mean - first.mean
    if rule == "pooled":
        variance, freedom = pooled_variance(groups)
        estimate = _Estimate(delta, math.sqrt(variance * (1 / first.n + 1 / second.n)), first=freedom)
    elif rule == "paired":
        differences = difference(first, second)
        if differences.n < 2:
            return None
        error = math.sqrt(differences.variance / differences.n)
        estimate = _Estimate(differences.mean, error, first=differences.n - 1)
    else:
        one, two = first.variance / first.n, second.variance / second.n
        share = one / (one + two) if one + two else 0.5
        estimate = _Estimate(delta, math.sqrt(one + two), share, first.n - 1, second.n - 1)
    return estimate if estimate.error > 0 else None


def difference(first: Group, second: Group) -> Group:
    """Second minus first, over the seeds that both have once."""
    here, there = (
        dict(zip(g.seeds, g.values, strict=True)) if len(set(g.seeds)) == g.n else {} for g in (first, second)
    )
    common = tuple(sorted(set(here) & set(there)))
    step = math.hypot(first.resolution, second.resolution)
    return Group(tuple(there[seed] - here[seed] for seed in common), common, step)


class _Family:
    """What is simultaneous: all pairs that the seeds support."""

    def __init__(self, groups: Sequence[Group], pairs: Sequence[Pair], rule: Rule, part: float = 1.0):
        self.rule, self.part, self.count = rule, part, max(1, len(pairs)) / part
        self.blocks = _blocks(groups, pairs) if rule == "pooled" else None
        """Of Dunnett's distribution, where no group is compared twice."""

    def alone(self, statistic: float, estimate: _Estimate) -> float:
        """The p-value as if it were the only comparison."""
        if self.rule == "auto":
            return behrens_fisher.p_value(statistic, estimate.share, estimate.first, estimate.second)
        return max(behrens_fisher.LEAST_P, 2 * float(special.stdtr(estimate.first, -statistic)))

    def adjusted(self, estimate: _Estimate) -> float:
        """The smallest family-wise error at which this comparison is significant."""
        if self.blocks is not None:
            own = max(behrens_fisher.LEAST_P, dunnett.adjusted_p(estimate.statistic, self.blocks, estimate.first))
            return _together(own, 1 / self.part)
        own = self.alone(estimate.statistic, estimate)
        return min(1.0, self.count * own) if self.rule == "paired" else _together(own, self.count)

    def critical(self, estimate: _Estimate) -> float:
        """The half width of the simultaneous interval, in standard errors."""
        if self.blocks is not None:
            return dunnett.critical_value(self.blocks, estimate.first, LEVEL**self.part)
        level = (1 - LEVEL) / self.count if self.rule == "paired" else sidak(self.count)
        if self.rule == "auto":
            return float(behrens_fisher.critical_value(estimate.share, estimate.first, estimate.second, level))
        return -float(special.stdtrit(estimate.first, level / 2))

    def same(self, estimate: _Estimate, margin: float) -> bool:
        """Whether both one-sided tests, of the differences -margin and margin, are significant."""
        room = (margin - abs(estimate.delta)) / estimate.error
        return room > 0 and self.count * self.alone(room, estimate) / 2 < 1 - LEVEL


def _together(p: float, count: float) -> float:
    """Šidák's adjustment of one of `count` p-values."""
    return -math.expm1(count * math.log1p(-p)) if p < 1 else 1.0


def _blocks(groups: Sequence[Group], pairs: Sequence[Pair]) -> dunnett.Blocks | None:
    seconds = [second for _, second in pairs]
    firsts = dict.fromkeys(first for first, _ in pairs)
    if len(set(seconds)) < len(seconds) or set(seconds) & set(firsts) or not pairs:
        return None
    return tuple((groups[first].n, tuple(sorted(groups[b].n for a, b in pairs if a == first))) for first in firsts)


def sidak(count: float, level: float = LEVEL) -> float:
    """The level of each of `count` comparisons whose intervals together hold with probability `level`."""
    return -math.expm1(math.log(level) / count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics, 1979)."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests(list(p_values), method="holm")[1]
    return [float(p) for p in adjusted]  # pyright: ignore[reportOptionalIterable]


def pooled_variance(groups: Sequence[Group]) -> tuple[float, int]:
    """The variance within groups, pooled, at least that of half an image, and its degrees of freedom."""
    several = [g for g in groups if g.n > 1]
    freedom = sum(g.n - 1 for g in several)
    if not freedom:
        return 0.0, 0
    floor = max(g.resolution**2 / 4 for g in several)
    return max(floor, sum((g.n - 1) * (g.sd or 0.0) ** 2 for g in several) / freedom), freedom


def not_beaten(groups: Sequence[Group], rule: Rule = "auto") -> list[bool]:
    """Which groups no other is shown to exceed: with probability 0.95 the best of them is among these.

    For each group, all others beside it simultaneously: the true best is left out only where one of these errs (Hsu's
    multiple comparisons with the best, Annals of Statistics 1984). Where nothing can be compared, no group is marked.
    """
    filled = [i for i, group in enumerate(groups) if group.n]
    marks, supported = [False] * len(groups), False
    for i in filled:
        pairs = [(i, j) for j in filled if j != i]
        found = [(pair, e) for pair in pairs if (e := _estimate(groups, pair, rule)) is not None]
        family = _Family(groups, [pair for pair, _ in found], rule)
        supported |= bool(found)
        marks[i] = not any(e.delta > family.critical(e) * e.error for _, e in found)
    return marks if supported else [False] * len(groups)


def detectable(count: int, first: tuple[int, float], second: tuple[int, float]) -> float | None:
    """The smallest true difference that is found four times in five among `count` comparisons, by the rule `auto`.

    `first` and `second` are (number of seeds, true deviation between seeds) of the two groups. None below two seeds
    in either, or without any deviation.
    """
    (n, sd), (m, other) = first, second
    if min(n, m) < 2 or max(sd, other) <= 0:
        return None
    errors = math.sqrt(sd**2 / n), math.sqrt(other**2 / m)
    ratio = errors[0] / errors[1] if errors[1] else math.inf
    shift = behrens_fisher.detectable_shift(min(ratio, 1e6), n - 1, m - 1, sidak(count), POWER)
    return shift * math.hypot(*errors)


def assumed_scatter(images: float) -> float:
    """The points that top-1 scatters between seeds on so many evaluation images, before any cell tells.

    0.2 points on ImageNet's 50,000 images, as measured of converged trainings, and the square root law.
    """
    return 0.2 * math.sqrt(50_000 / max(images, 1.0))
