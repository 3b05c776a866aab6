"""What pairing the seeds of two rows would give: all rows see the same seeds, orders and crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitlab.core.comparisons import Group, Pair, Rule, difference, half_widths

FEWEST = 4
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
        if len(common) < FEWEST or np.std(first) == 0 or np.std(second) == 0:
            continue
        r = float(np.clip(np.corrcoef(first, second)[0, 1], -0.999, 0.999))
        total, weight = total + (len(common) - 3) * math.atanh(r), weight + len(common) - 3
    if not weight:
        return None
    centre, reach = total / weight, 1.96 / math.sqrt(weight)
    return math.tanh(centre), math.tanh(centre - reach), math.tanh(centre + reach)


def pairing_line(groups: Sequence[Group], pairs: Sequence[Pair], rule: Rule, part: float, on: str) -> str | None:
    """How the seeds correlate, and how wide the intervals would be the other way."""
    found = correlation(groups, pairs)
    if found is None or rule == "pooled":
        return None
    paired, separate = (half_widths(groups, pairs, each, part) for each in ("paired", "auto"))
    ratios = sorted(p / s for p, s in zip(paired, separate, strict=True) if p is not None and s)
    if not ratios:
        return None
    told = f"{ratios[0]:.1f} to {ratios[-1]:.1f}" if f"{ratios[0]:.1f}" != f"{ratios[-1]:.1f}" else f"{ratios[0]:.1f}"
    r, low, high = found
    if rule == "paired":
        effect = f"these intervals are {told} times as wide as those of statistics=auto"
    else:
        effect = f"statistics=paired would give intervals {told} times as wide, and is yours to choose before you look"
    return f"over the seeds{on}, rows correlate with their baseline by {r:.2f} (95 % {low:.2f} to {high:.2f}); {effect}"
