"""Statistics on data frames of cells: comparisons of conditions, of checkpoints, analysis of variance.

Every difference of means follows the rules of `vitlab.core.comparisons`.
"""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from vitlab.core.comparisons import Group, Rule, compare, least_differences
from vitlab.core.errors import UserError
from vitlab.core.metrics import figure


def unequal_spread(groups: Sequence[Sequence[float]]) -> float | None:
    """The p-value of Bartlett's test that the groups have one variance, which pooling assumes.

    None where fewer than two groups have two different values.
    """
    several = [g for g in groups if len(g) > 1 and np.var(g) > 0]
    return float(stats.bartlett(*several).pvalue) if len(several) > 1 else None


def compare_to_baseline(
    frame: pd.DataFrame, baseline: object, factor: str, metric: str = figure().column, statistics: Rule = "auto"
) -> pd.DataFrame:
    """Compare every level of column `factor` with level `baseline`, over the finished cells of `frame`.

    Returns columns level, n, mean, sd, delta, ci_low, ci_high (simultaneous, 95 %), p_adjusted, mde (the smallest
    difference that so many seeds, scattering as they do, find with 80 % power; none where a level has one seed).
    Raises UserError for an unknown factor, level or metric, and where a level has two cells of one seed: they differ
    in something else.
    """
    for column in (factor, metric):
        if column not in frame:
            raise UserError(f"no column {column!r}; columns: {', '.join(map(str, frame.columns))}")
    data = frame[frame[metric].notna()]
    _require_one_cell_per_seed(data, factor)
    levels = list(dict.fromkeys(data[factor]))
    if baseline not in levels:
        raise UserError(
            f"{factor} has no finished cell at the baseline {baseline!r}; it has: {', '.join(map(str, levels))}"
        )
    levels.sort(key=lambda level: level != baseline)
    groups = [_group(data[data[factor] == level], metric) for level in levels]
    pairs = [(0, i) for i in range(1, len(groups))]
    compared = compare(groups, pairs, statistics)
    least = least_differences(groups, pairs, statistics)
    rows = [{"level": levels[0], "n": groups[0].n, "mean": groups[0].mean, "sd": groups[0].sd}]
    rows += [
        {"level": level, "n": c.n, "mean": c.mean, "sd": c.sd, "delta": c.delta, "ci_low": c.low, "ci_high": c.high,
         "p_adjusted": c.p, "mde": mde}
        for level, c, mde in zip(levels[1:], compared, least, strict=True)
    ]  # fmt: skip
    columns = ("level", "n", "mean", "sd", "delta", "ci_low", "ci_high", "p_adjusted", "mde")
    return pd.DataFrame(rows, columns=columns)


def _group(cells: pd.DataFrame, metric: str) -> Group:
    seeds = cells["seed"] if "seed" in cells else range(len(cells))
    images = cells["num_eval"].min() if "num_eval" in cells else np.nan
    step = 100 / images if figure(metric).metric.counts and images == images else 0.0
    return Group(tuple(map(float, cells[metric])), tuple(map(int, seeds)), step)


def _require_one_cell_per_seed(data: pd.DataFrame, factor: str) -> None:
    """Refuse means over data sets or recipes: they mean nothing, and count one seed twice."""
    if "seed" not in data or not data.duplicated([factor, "seed"]).any():
        return
    level = data.loc[data.duplicated([factor, "seed"]), factor].iloc[0]
    alike = data[data[factor] == level]
    tree = [c for c in alike if c.split(".")[0] in ("model", "dataset", "augment", "pretrain", "recipe")]
    others = [c for c in tree if c != factor and alike[c].map(repr).nunique() > 1]
    what = f"; they differ in {', '.join(others)}: select one value of each, or take one of them as factor"
    raise UserError(f"{factor}={level} has several cells of one seed{what if others else ''}")


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


EXPONENT = 1.25
"""Of the cells' parts in an effect's denominator, in its degrees of freedom: see `_effect`."""


def interaction(
    frame: pd.DataFrame, first: str, second: str, metric: str = figure().column, statistics: Rule = "auto"
) -> pd.DataFrame | None:
    """Main effects and interaction of two factors over the seeds, on the unweighted means of their combinations.

    By default every combination has a variance of its own; `pooled` is the classical analysis of variance (type II).
    Returns rows first, second, interaction with columns effect, df, df_residual, F, p; None where a combination has
    fewer than two runs, or nothing varies.
    """
    data = pd.DataFrame({"a": frame[first].astype(str), "b": frame[second].astype(str), "y": frame[metric]}).dropna()
    data = data.astype({"y": float})
    levels = [list(dict.fromkeys(data[c])) for c in "ab"]
    values = [[data.loc[(data["a"] == a) & (data["b"] == b), "y"] for b in levels[1]] for a in levels[0]]
    if min(map(len, levels)) < 2 or min(len(v) for row in values for v in row) < (1 if statistics == "pooled" else 2):
        return None
    names = (first, second, f"{first} x {second}")
    if statistics == "pooled":
        return _classical(data, names)
    counts, means, variances = (
        np.array([[function(v) for v in row] for row in values], dtype=float).ravel()
        for function in (len, np.mean, lambda v: np.var(v, ddof=1))
    )
    if not variances.any():
        return None
    centres = [np.eye(len(level)) - 1 / len(level) for level in levels]
    averages = [np.full((len(level), len(level)), 1 / len(level)) for level in levels]
    hypotheses = (
        np.kron(centres[0], averages[1]), np.kron(averages[0], centres[1]), np.kron(centres[0], centres[1]),
    )  # fmt: skip
    return pd.DataFrame(
        [{"effect": n} | _effect(h, means, variances, counts) for n, h in zip(names, hypotheses, strict=True)]
    )


def _effect(hypothesis: np.ndarray, means: np.ndarray, variances: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Brunner, Dette and Munk's statistic (JASA 1997), Brown and Forsythe's for two factors: its F, degrees and p.

    `hypothesis` (C, C) projects the means (C,) of the combinations on the effect. Their denominator's degrees of
    freedom, 1 / Σ w² / (n - 1) with w the parts of the combinations in it, reject too often where one part prevails
    (9 % with three runs each); with the exponent 1.25 in place of 2 the rate is at most 5 % for deviations of ratio 1
    to 10 and 2 to 20 runs (simulated: benchmarks/bench_intervals.py).
    """
    errors, weights = variances / counts, np.diag(hypothesis)
    trace = float(weights @ errors)
    spread = hypothesis * errors
    parts = weights * errors / trace
    df = trace**2 / float((spread * spread.T).sum())
    residual = 1 / float((parts**EXPONENT / (counts - 1)).sum())
    statistic = float(means @ hypothesis @ means) / trace
    return {"df": df, "df_residual": residual, "F": statistic, "p": float(special.fdtrc(df, residual, statistic))}


def _classical(data: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame | None:
    import statsmodels.api as sm
    from statsmodels.formula.api import ols

    if len(data) <= data.groupby(["a", "b"]).ngroups:
        return None
    table = sm.stats.anova_lm(ols("y ~ C(a) * C(b)", data=data).fit(), typ=2)
    residual = float(table["df"].iloc[-1])  # the table's last row
    figures = zip(names, table["df"], table["F"], table["PR(>F)"], strict=False)
    return pd.DataFrame(
        [
            {"effect": n, "df": float(df), "df_residual": residual, "F": float(f), "p": float(p)}
            for n, df, f, p in figures
        ]
    )
