"""The causes of an interval's width: the scatter between seeds, the test images, and the effect of more of either.

Had trainings converged, the errors of two seeds on an image would be independent given the image, and their scores
would vary by Σ p (1 - p) / N², with p the share of seeds that get the image right (Jordan 2024, arXiv 2304.01910).

Rows see the same seeds, orders and crops, so their scores may correlate over the seeds: `pairing_line`
shows what pairing would give.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vitlab.core.comparisons import Group, Pair, Rule, difference, half_widths, with_scatter
from vitlab.core.families import LEVEL

FEWEST = 3
"""Seeds of a row for its noise to be held against that of converged trainings."""


@dataclass(frozen=True)
class Scatter:
    """The scatter of one condition on one data set, in the metric's unit."""

    seeds: float
    """The deviation between seeds."""
    images: float | None
    """The standard error of one score for having so many test images and no more: √(p (1 - p) / N)."""
    independent: float | None
    """The deviation between seeds whose errors are independent given the image; None without predictions."""
    half: float | None = None
    """The half width of the interval to the baseline."""
    one_more: float | None = None
    """The same with one more seed in both rows, if they scatter as these do."""
    twice: float | None = None
    """The same with twice the test images."""


@dataclass(frozen=True)
class Excess:
    """How many times the seeds scatter as much as those of converged trainings, with its 95 % interval."""

    ratio: float
    low: float
    high: float


def scatter_of(group: Group, hits: np.ndarray | None) -> Scatter | None:
    """The scatter of the seeds and of their (S, N) right answers; None below two seeds."""
    if group.sd is None:
        return None
    images = None
    if group.resolution:
        share = group.mean / 100
        images = 100 * math.sqrt(max(0.0, share * (1 - share)) * group.resolution / 100)
    return Scatter(group.sd, images, None if hits is None else independent_deviation(hits))


def independent_deviation(hits: np.ndarray) -> float:
    """The deviation in percentage points between seeds, from (S, N) right answers, had they been independent."""
    seeds, images = hits.shape
    share = hits.mean(0)
    return 100 * math.sqrt(float((share * (1 - share)).sum()) * seeds / (seeds - 1)) / images


def with_widths(
    groups: Sequence[Group], scatters: Sequence[Scatter | None], pairs: Sequence[Pair], rule: Rule, part: float
) -> dict[int, Scatter]:
    """For each pair's second group its scatter with the half width of its interval: as it is, and with more of either.

    All groups get more seeds or images. There is no prediction for the rule `paired`.
    """
    resolutions = [g.resolution for g in groups]
    sds = [math.sqrt(g.variance) for g in groups]
    more = [with_scatter(g.n + 1 if g.n else 0, sd) for g, sd in zip(groups, sds, strict=True)]
    halved = [
        with_scatter(g.n, math.sqrt(max(sd**2 - (s.independent or 0.0) ** 2 / 2, (step / 4) ** 2)) if s else sd)
        for g, sd, s, step in zip(groups, sds, scatters, resolutions, strict=True)
    ]
    now = half_widths(groups, pairs, rule, part)
    one_more: list[float | None] = [None] * len(pairs)
    twice = one_more
    if rule != "paired":
        one_more, twice = (half_widths(planned, pairs, rule, part) for planned in (more, halved))
    found = {}
    for (first, second), half, further, images in zip(pairs, now, one_more, twice, strict=True):
        own, base = scatters[second], scatters[first]
        known = own and base and own.independent is not None and base.independent is not None
        if own is not None:
            found[second] = dataclasses.replace(own, half=half, one_more=further, twice=images if known else None)
    return found


def excess_noise(rows: Iterable[tuple[int, Scatter]]) -> Excess | None:
    """Over all rows (number of seeds, scatter) of at least three seeds with predictions, taking their ratio as one.

    The interval takes the sum of squares as chi-squared. None where no row has both.
    """
    known = [(n, s) for n, s in rows if n >= FEWEST and s.independent]
    if not known:
        return None
    freedom = sum(n - 1 for n, _ in known)
    squares = sum((n - 1) * (s.seeds / (s.independent or 1.0)) ** 2 for n, s in known)
    tails = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], freedom)
    low, high = (math.sqrt(squares / tail) for tail in tails)
    return Excess(math.sqrt(squares / freedom), low, high)


def excess_line(excess: Excess, on: str) -> str:
    """Advice that follows from the ratio."""
    shown = f"{excess.ratio:.1f}× (95 % {excess.low:.1f} to {excess.high:.1f})"
    if excess.low > 1.2:
        return (
            f"seed noise{on} {shown} that of converged training, whose errors are independent given the image: train "
            "longer, lower the rate or average weights before adding seeds"
        )
    if excess.high < 2:
        return f"seed noise{on} {shown} that of converged training: only more seeds or test images narrow the intervals"
    return (
        f"seed noise{on} {shown} that of converged training: too few seeds to decide whether longer training would help"
    )


FEWEST_COMMON = 4
"""Seeds in common for a correlation to have an interval."""


def correlation(groups: Sequence[Group], pairs: Sequence[Pair]) -> tuple[float, float, float] | None:
    """The mean correlation of two rows' scores over their common seeds, and its 95 % interval by Fisher's z.

    Rows with one baseline are taken as independent of one another given it, which they are where seeds do not pair.
    None where no pair has four seeds in common that scatter.
    """
    total = weight = 0.0
    for a, b in pairs:
        common = set(difference(groups[a], groups[b]).seeds)
        first, second = (
            [v for s, v in sorted(zip(g.seeds, g.values, strict=True)) if s in common] for g in (groups[a], groups[b])
        )
        if len(common) < FEWEST_COMMON or np.std(first) == 0 or np.std(second) == 0:
            continue
        r = float(np.clip(np.corrcoef(first, second)[0, 1], -0.999, 0.999))
        total, weight = total + (len(common) - 3) * math.atanh(r), weight + len(common) - 3
    if not weight:
        return None
    centre, reach = total / weight, 1.96 / math.sqrt(weight)
    return math.tanh(centre), math.tanh(centre - reach), math.tanh(centre + reach)


def pairing_line(groups: Sequence[Group], pairs: Sequence[Pair], rule: Rule, part: float, on: str) -> str | None:
    """The correlation of the seeds, and the width of the intervals by the other rule."""
    found = correlation(groups, pairs)
    if found is None or rule == "pooled":
        return None
    paired, separate = (half_widths(groups, pairs, each, part) for each in ("paired", "auto"))
    ratios = sorted(p / s for p, s in zip(paired, separate, strict=True) if p is not None and s)
    if not ratios:
        return None
    shown = f"{ratios[0]:.1f} to {ratios[-1]:.1f}" if f"{ratios[0]:.1f}" != f"{ratios[-1]:.1f}" else f"{ratios[0]:.1f}"
    r, low, high = found
    if rule == "paired":
        effect = f"these intervals are {shown} times as wide as those of statistics=auto"
    else:
        effect = f"statistics=paired would give intervals {shown} times as wide; choose it before you look at results"
    return f"over the seeds{on}, rows correlate with their baseline by {r:.2f} (95 % {low:.2f} to {high:.2f}); {effect}"
