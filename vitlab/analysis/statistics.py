"""What a handful of seeds can and cannot tell.

Comparisons with a baseline are Dunnett's, with the variance pooled over all conditions: with three seeds anything
that estimates each condition's own variance is hopeless, and rank tests can never reach p < 0.05.
"""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from vitlab.core.dunnett import adjusted_p, critical_value, minimum_detectable_difference

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """One condition beside the baseline; None where n cannot support a figure."""

    n: int
    mean: float
    sd: float | None
    delta: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def significant(self) -> bool:
        """Whether the simultaneous interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def pooled_variance(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The variance within groups, pooled, and its degrees of freedom."""
    freedom = sum(len(g) - 1 for g in groups if len(g))
    squares = sum(float(((np.asarray(g) - np.mean(g)) ** 2).sum()) for g in groups if len(g))
    return (squares / freedom if freedom else 0.0), freedom


def dunnett(groups: Sequence[Sequence[float]], baseline: int) -> list[Comparison]:
    """Every group beside `groups[baseline]`: simultaneous 95 % intervals and adjusted p-values (Dunnett, 1955).

    Groups may differ in size; the variance is pooled over all of them. Without a second seed anywhere in a pair's
    reach (no degrees of freedom), or for a pair with a single seed each, only means and differences are given.
    """
    variance, freedom = pooled_variance(groups)
    control = np.asarray(groups[baseline], dtype=float)
    others = tuple(len(g) for i, g in enumerate(groups) if i != baseline and len(g))
    supported = freedom > 0 and variance > 0 and len(control) > 1 and bool(others)
    critical = critical_value(others, len(control), freedom, LEVEL) if supported else None
    comparisons = []
    for i, group in enumerate(groups):
        if not len(group):
            comparisons.append(Comparison(0, float("nan"), None, None, None, None, None))
            continue
        mean, sd = float(np.mean(group)), float(np.std(group, ddof=1)) if len(group) > 1 else None
        if i == baseline or not len(control):
            comparisons.append(Comparison(len(group), mean, sd, None, None, None, None))
            continue
        delta = mean - float(control.mean())
        if critical is None or len(group) < 2:
            comparisons.append(Comparison(len(group), mean, sd, delta, None, None, None))
            continue
        error = float(np.sqrt(variance * (1 / len(group) + 1 / len(control))))
        p = adjusted_p(delta / error, others, len(control), freedom)
        comparisons.append(
            Comparison(len(group), mean, sd, delta, delta - critical * error, delta + critical * error, p)
        )
    return comparisons


def compare_pairs(groups: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]]) -> list[Comparison]:
    """The second of each pair of groups beside the first: t tests with the variance pooled over all groups.

    The p-values are adjusted by Holm's method, the intervals by Bonferroni's, for the number of pairs. Where one of a
    pair has a single value, only the difference is given; where one has none, n is 0.
    """
    variance, freedom = pooled_variance(groups)
    statistics: dict[int, tuple[float, float]] = {}  # pair → difference and its standard error, where supported
    for i, (a, b) in enumerate(pairs):
        sizes = len(groups[a]), len(groups[b])
        if min(sizes) > 1 and freedom and variance:
            error = float(np.sqrt(variance * (1 / sizes[0] + 1 / sizes[1])))
            statistics[i] = float(np.mean(groups[b]) - np.mean(groups[a])), error
    raw = [2 * float(stats.t.sf(abs(delta) / error, freedom)) for delta, error in statistics.values()]
    p_values = dict(zip(statistics, holm(raw) if raw else [], strict=True))
    critical = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / max(1, len(raw)), freedom)) if raw else 0.0
    comparisons = []
    for i, (a, b) in enumerate(pairs):
        known = bool(len(groups[a]) and len(groups[b]))
        mean = float(np.mean(groups[b])) if len(groups[b]) else float("nan")
        sd = float(np.std(groups[b], ddof=1)) if len(groups[b]) > 1 else None
        delta = mean - float(np.mean(groups[a])) if known else None
        half = critical * statistics[i][1] if i in statistics else None
        low, high = (None, None) if delta is None or half is None else (delta - half, delta + half)
        n = min(len(groups[a]), len(groups[b]))
        comparisons.append(Comparison(n, mean, sd, delta, low, high, p_values.get(i)))
    return comparisons


def unequal_spread(groups: Sequence[Sequence[float]]) -> float | None:
    """Bartlett's test that the groups have one variance, which pooling takes for granted: its p-value.

    None where fewer than two groups have two different values.
    """
    several = [g for g in groups if len(g) > 1 and np.var(g) > 0]
    return float(stats.bartlett(*several).pvalue) if len(several) > 1 else None


def compare_to_baseline(frame: pd.DataFrame, baseline: object, factor: str, metric: str = "last.top1") -> pd.DataFrame:
    """Every level of column `factor` beside level `baseline`, over the finished cells of `frame`.

    Returns columns level, n, mean, sd, delta, ci_low, ci_high (simultaneous, 95 %), p_adjusted, mde (the smallest
    difference that so many seeds find with 80 % power; none where a level has one seed). Raises ValueError for an
    unknown factor, level or metric, and where a level has two cells of one seed: they differ in something else.
    """
    for column in (factor, metric):
        if column not in frame:
            raise ValueError(f"no column {column!r}; columns: {', '.join(map(str, frame.columns))}")
    data = frame[frame[metric].notna()]
    _require_one_cell_per_seed(data, factor)
    levels = list(dict.fromkeys(data[factor]))
    if baseline not in levels:
        raise ValueError(
            f"{factor} has no finished cell at the baseline {baseline!r}; it has: {', '.join(map(str, levels))}"
        )
    levels.sort(key=lambda level: level != baseline)
    groups = [data.loc[data[factor] == level, metric].astype(float).tolist() for level in levels]
    variance, _ = pooled_variance(groups)
    least = minimum_detectable_difference(max(1, len(levels) - 1), min(map(len, groups)), float(np.sqrt(variance)))
    rows = [
        {"level": level, "n": c.n, "mean": c.mean, "sd": c.sd, "delta": c.delta, "ci_low": c.low, "ci_high": c.high,
         "p_adjusted": c.p, "mde": least}
        for level, c in zip(levels, dunnett(groups, 0), strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _require_one_cell_per_seed(data: pd.DataFrame, factor: str) -> None:
    """Means over data sets or recipes are means of nothing, and would count one seed twice."""
    if "seed" not in data or not data.duplicated([factor, "seed"]).any():
        return
    level = data.loc[data.duplicated([factor, "seed"]), factor].iloc[0]
    alike = data[data[factor] == level]
    tree = [c for c in alike if c.split(".")[0] in ("model", "dataset", "augment", "pretrain", "recipe")]
    others = [c for c in tree if c != factor and alike[c].map(repr).nunique() > 1]
    what = f"; they differ in {', '.join(others)}: select one value of each, or take one of them as factor"
    raise ValueError(f"{factor}={level} has several cells of one seed{what if others else ''}")


def indistinguishable_from_best(groups: Sequence[Sequence[float]]) -> list[bool]:
    """Which groups the data cannot tell from the one with the highest mean (Dunnett with the best as control).

    Without degrees of freedom nothing can be told apart, and no group is marked.
    """
    means = [np.mean(g) if len(g) else -np.inf for g in groups]
    best = int(np.argmax(means))
    variance, freedom = pooled_variance(groups)
    if not freedom or not variance or len(groups[best]) < 2:
        return [False] * len(groups)
    beside = dunnett(groups, best)
    return [
        bool(len(g)) and (i == best or not c.significant) for i, (g, c) in enumerate(zip(groups, beside, strict=True))
    ]


@dataclass(frozen=True)
class CheckpointComparison:
    """Two checkpoints on the same N images: about these two files, not about the recipes that made them."""

    images: int
    only_first: int
    """Images that only the first gets right."""
    only_second: int
    delta: float
    """Second minus first, in percentage points."""
    low: float
    high: float
    p: float


def compare_checkpoints(first: np.ndarray, second: np.ndarray, *, resamples: int = 10_000) -> CheckpointComparison:
    """Exact McNemar test and paired bootstrap interval of two (N,) bool arrays of right answers."""
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    rng = np.random.default_rng(0)
    shares = np.array([gained, lost, len(first) - gained - lost]) / len(first)
    counts = rng.multinomial(len(first), shares, size=resamples)  # resampling images is resampling their differences
    low, high = np.percentile((counts[:, 0] - counts[:, 1]) / len(first) * 100, [2.5, 97.5])
    return CheckpointComparison(
        len(first), lost, gained, 100 * (gained - lost) / len(first), float(low), float(high), float(p)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics, 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def interaction(frame: pd.DataFrame, first: str, second: str, metric: str = "last.top1") -> pd.DataFrame | None:
    """Main effects and interaction of two factors over the seeds: an analysis of variance (type II).

    Returns rows first, second, interaction with columns effect, df, df_residual, F, p; None where there are no spare
    degrees of freedom or a combination has no run.
    """
    import statsmodels.api as sm
    from statsmodels.formula.api import ols

    data = pd.DataFrame({"a": frame[first].astype(str), "b": frame[second].astype(str), "y": frame[metric]}).dropna()
    cells = data.groupby(["a", "b"]).size()
    if len(data) <= len(cells) or data["a"].nunique() < 2 or data["b"].nunique() < 2:
        return None
    if len(cells) < data["a"].nunique() * data["b"].nunique():
        return None
    table = sm.stats.anova_lm(ols("y ~ C(a) * C(b)", data=data.astype({"y": float})).fit(), typ=2)
    names = (first, second, f"{first} x {second}")
    residual = int(table["df"].iloc[-1])  # the table's last row
    figures = zip(names, table["df"], table["F"], table["PR(>F)"], strict=False)
    return pd.DataFrame(
        [{"effect": n, "df": int(df), "df_residual": residual, "F": float(f), "p": float(p)} for n, df, f, p in figures]
    )
