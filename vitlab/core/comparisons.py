"""One rule for every difference of two means: estimates, simultaneous 95 % intervals and adjusted p-values.

Rules:
- `auto`: every group has a variance of its own. The family-wise error stays at 5 % or below for any ratio of the
  scatters and any numbers of seeds from 2 on; the simulation is benchmarks/bench_intervals.py.
- `pooled`: one variance for all groups, by Dunnett's distribution. For users who assert that all groups scatter alike.
- `paired`: differences of equal seeds, Student's t, by Bonferroni's inequality. For users who assert that seeds pair.

A measurement on N images cannot show a scatter below half an image, that of two neighbouring values of equal chance:
`resolution` is one image in the groups' unit, and half of it the least deviation that a comparison takes, so that seeds
that agree give neither a width nor a p of zero. (1/√12, the deviation of rounding, calls up to 7 % falsely.)
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from vitlab.core.families import DunnettFamily, Estimate, Family, SeparateFamily, sidak

Rule = Literal["auto", "pooled", "paired"]
Pair = tuple[int, int]
"""Indices of two groups: the second is compared with the first."""
POWER = 0.8
MOST_SEEDS = 100


@dataclass(frozen=True)
class Group:
    """The values of one condition."""

    values: tuple[float, ...]
    seeds: tuple[int, ...] = ()
    """Of each value, for pairing; empty where not known."""
    resolution: float = 0.0
    """The smallest step between two values that the measurement can resolve; 0 where not known."""

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
    """A comparison of one condition with another; None where n cannot support a figure."""

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


def compare(
    groups: Sequence[Group],
    pairs: Sequence[Pair],
    rule: Rule = "auto",
    *,
    margin: float | None = None,
    stepwise: bool = False,
    part: float = 1.0,
) -> list[Comparison]:
    """Compare each pair's second group with its first, simultaneously over all pairs.

    `margin` asks whether the true difference is smaller than it: two one-sided tests, adjusted as the intervals are.
    `stepwise` adjusts the p-values by Holm's method, which finds more; the intervals are single-step always. `part` is
    the share of these pairs in a larger family whose other groups are independent of these. A pair with fewer than two
    seeds in either group, or without any scatter, gets its difference and no interval.
    """
    estimates = {i: e for i, pair in enumerate(pairs) if (e := _estimate(groups, pair, rule)) is not None}
    family = _family(list(estimates.values()), rule, part)
    if stepwise:
        p_values = dict(zip(estimates, holm([family.alone(e, e.statistic) for e in estimates.values()]), strict=True))
    else:
        p_values = {i: family.adjusted(e, e.statistic) for i, e in estimates.items()}
    comparisons = []
    for i, (first, second) in enumerate(pairs):
        group, other, estimate = groups[second], groups[first], estimates.get(i)
        delta = group.mean - other.mean if group.n and other.n else None
        low = high = same = None
        if estimate is not None:
            half = family.critical(estimate) * estimate.error
            reach = 100.0 if min(group.resolution, other.resolution) > 0 else math.inf  # shares of images
            delta, low, high = estimate.delta, max(-reach, estimate.delta - half), min(reach, estimate.delta + half)
            same = None if margin is None else family.same(estimate, margin)
        comparisons.append(Comparison(group.n, group.mean, group.sd, delta, low, high, p_values.get(i), same))
    return comparisons


def supported(groups: Sequence[Group], pairs: Sequence[Pair], rule: Rule = "auto") -> int:
    """How many of the pairs get an interval."""
    return sum(_estimate(groups, pair, rule) is not None for pair in pairs)


def _estimate(groups: Sequence[Group], pair: Pair, rule: Rule) -> Estimate | None:
    first, second = groups[pair[0]], groups[pair[1]]
    if min(first.n, second.n) < 2:
        return None
    counts, delta, variances = (first.n, second.n), second.mean - first.mean, (first.variance, second.variance)
    freedom = 0
    if rule == "pooled":
        variance, freedom = pooled_variance(groups)
        variances = variance, variance
    elif rule == "paired":
        differences = difference(first, second)
        if differences.n < 2:
            return None
        counts, delta, variances = (differences.n, differences.n), differences.mean, (0.0, differences.variance)
        freedom = differences.n - 1
    error = math.sqrt(sum(v / n for v, n in zip(variances, counts, strict=True)))
    return Estimate(pair, delta, error, counts, variances, freedom) if error > 0 else None


def _family(estimates: Sequence[Estimate], rule: Rule, part: float = 1.0) -> Family:
    if rule == "auto":
        return SeparateFamily(estimates, part)
    if rule == "paired":
        return Family(estimates, part, bonferroni=True)
    firsts, seconds = {e.pair[0] for e in estimates}, [e.pair[1] for e in estimates]
    twice = len(set(seconds)) < len(seconds) or bool(firsts & set(seconds))
    return Family(estimates, part) if twice or not estimates else DunnettFamily(estimates, part)


def difference(first: Group, second: Group) -> Group:
    """Second minus first, over the seeds that both have once."""
    here, there = (
        dict(zip(g.seeds, g.values, strict=True)) if len(set(g.seeds)) == g.n else {} for g in (first, second)
    )
    common = tuple(sorted(set(here) & set(there)))
    step = math.hypot(first.resolution, second.resolution)
    return Group(tuple(there[seed] - here[seed] for seed in common), common, step)


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

    For each group, all others are compared with it simultaneously: the true best is left out only where one of these
    errs (Hsu's multiple comparisons with the best, Annals of Statistics 1984). Where nothing can be compared, no group
    is marked.
    """
    filled = [i for i, group in enumerate(groups) if group.n]
    marks, supported = [False] * len(groups), False
    for i in filled:
        found = [e for j in filled if j != i and (e := _estimate(groups, (i, j), rule)) is not None]
        family = _family(found, rule)
        supported |= bool(found)
        marks[i] = not any(e.delta > 0 and family.exceeds(e, e.statistic) for e in found)
    return marks if supported else [False] * len(groups)


def with_scatter(n: int, deviation: float, resolution: float = 0.0) -> Group:
    """A group of `n` values about zero with exactly this deviation, to plan with."""
    if n < 2:
        return Group((0.0,) * n, resolution=resolution)
    places = np.linspace(-1.0, 1.0, n)
    return Group(tuple(map(float, deviation * places / places.std(ddof=1))), resolution=resolution)


def half_widths(
    groups: Sequence[Group], pairs: Sequence[Pair], rule: Rule = "auto", part: float = 1.0
) -> list[float | None]:
    """The half width of each pair's simultaneous interval; None where the seeds support none."""
    estimates = {i: e for i, pair in enumerate(pairs) if (e := _estimate(groups, pair, rule)) is not None}
    family = _family(list(estimates.values()), rule, part)
    return [family.critical(estimates[i]) * estimates[i].error if i in estimates else None for i in range(len(pairs))]


def least_differences(
    groups: Sequence[Group], pairs: Sequence[Pair], rule: Rule = "auto", part: float = 1.0
) -> list[float | None]:
    """For each pair the smallest true difference that is found four times in five, if groups scatter as these do.

    None where the seeds support no interval.
    """
    estimates = {i: e for i, pair in enumerate(pairs) if (e := _estimate(groups, pair, rule)) is not None}
    family = _family(list(estimates.values()), rule, part)
    return [family.detectable(estimates[i], POWER) if i in estimates else None for i in range(len(pairs))]


def assumed_scatter(images: float) -> float:
    """The assumed deviation of top-1 between seeds, in points, on so many evaluation images, before any cell is
    trained.

    0.2 points on ImageNet's 50,000 images, as measured of converged trainings, and the square root law.
    """
    return 0.2 * math.sqrt(50_000 / max(images, 1.0))


def seeds_needed(difference: float, count: int) -> int | None:
    """How many seeds of each group find a true difference, in deviations between seeds, four times in five.

    There are `count` comparisons with one baseline, and all groups scatter alike. None for more than `MOST_SEEDS`.
    """

    def enough(n: int) -> bool:
        least = least_differences([with_scatter(n, 1.0)] * (count + 1), [(0, i) for i in range(1, count + 1)])[0]
        return least is not None and least <= difference

    def about(n: int) -> float:
        """What `least_differences` finds, about: Student's t with all groups' scatter, by Šidák's inequality."""
        freedom = (n - 1) * min(3, count + 1)
        return math.sqrt(2 / n) * float(0.84 - special.stdtrit(freedom, sidak(count) / 2))

    counts = range(2, MOST_SEEDS + 1)
    found = min(MOST_SEEDS, 2 + bisect.bisect_left(counts, True, key=lambda n: about(n) <= difference))
    if enough(found):
        while found > 2 and enough(found - 1):
            found -= 1
        return found
    return next((n for n in counts[found - 1 :] if enough(n)), None)
