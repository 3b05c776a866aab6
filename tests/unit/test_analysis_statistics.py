"""Comparisons beside scipy's and statsmodels', what few seeds support, and error rates by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from written_records import SCORES, write_all, write_cell

from vitlab.analysis import collect, compare_to_baseline
from vitlab.analysis.statistics import (
    compare_checkpoints,
    compare_pairs,
    dunnett,
    holm,
    indistinguishable_from_best,
    interaction,
    unequal_spread,
)
from vitlab.core.dunnett import critical_value


def test_comparisons_are_scipys():
    groups = [np.array(v) for v in SCORES.values()]
    reference = stats.dunnett(*groups[1:], control=groups[0], rng=1)
    interval = reference.confidence_interval(0.95)
    ours = dunnett([list(g) for g in groups], 0)[1:]
    assert [c.p for c in ours] == pytest.approx(list(reference.pvalue), abs=1e-3)
    assert [c.low for c in ours] == pytest.approx(list(interval.low), abs=5e-3)
    assert [c.high for c in ours] == pytest.approx(list(interval.high), abs=5e-3)


def test_compare_to_baseline(tmp_path):
    compared = compare_to_baseline(write_all(tmp_path), "none", "label.augment", "last.top1")
    assert list(compared.columns) == ["level", "n", "mean", "sd", "delta", "ci_low", "ci_high", "p_adjusted", "mde"]
    assert compared.loc[1, "level"] == "mixup" and compared.loc[1, "delta"] == pytest.approx(91.2333 - 90.1, abs=1e-3)
    assert (
        compared.loc[1, "p_adjusted"]
        == compare_to_baseline(collect(tmp_path, "s"), "none", "label.augment").loc[1, "p_adjusted"]
    ), "the same to the last bit, every time"
    with pytest.raises(ValueError, match="no column 'colour'"):
        compare_to_baseline(collect(tmp_path, "s"), "none", "colour")
    with pytest.raises(ValueError, match="baseline 'all'"):
        compare_to_baseline(collect(tmp_path, "s"), "all", "label.augment")


def test_one_seed_gets_no_interval():
    for comparison in dunnett([[90.0], [95.0]], 0):
        assert comparison.low is None and comparison.p is None and not comparison.significant
    assert indistinguishable_from_best([[90.0], [95.0]]) == [False, False]
    assert indistinguishable_from_best(list(SCORES.values())) == [False, True, False, False]


def test_checkpoints_are_compared_exactly():
    first = np.array([1] * 80 + [0] * 20, bool)
    second = np.array([1] * 75 + [0] * 5 + [1] * 12 + [0] * 8, bool)
    result = compare_checkpoints(first, second)
    assert (result.only_first, result.only_second, result.delta) == (5, 12, 7.0)
    assert result.p == pytest.approx(stats.binomtest(5, 17).pvalue)
    assert result.low < 7 < result.high and compare_checkpoints(first, second) == result


def test_holm_and_anova():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(0)
    rows = [
        {"a": a, "b": b, "y": (a == "x") * 3 + (b == "u") + rng.normal(0, 0.1)}
        for a in "xz"
        for b in "uv"
        for _ in range(4)
    ]
    effects = interaction(pd.DataFrame(rows), "a", "b", "y").set_index("effect")
    assert effects.loc["a", "p"] < 1e-6 and effects.loc["b", "p"] < 1e-6 and effects.loc["a x b", "p"] > 0.01
    assert interaction(pd.DataFrame(rows[:1]), "a", "b", "y") is None


@pytest.mark.slow()
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_error_rates_under_the_null(seeds):
    """7 ablations that do nothing: how often any interval leaves zero out (4 to 6 %), and the coverage of true ones."""
    rng = np.random.default_rng(seeds)
    runs, k = 40_000, 7
    shifts = np.linspace(-1, 1, k + 1)
    data = rng.normal(0, 0.2, (runs, k + 1, seeds)) + shifts[:, None]
    means, pooled = data.mean(2), data.var(2, ddof=1).mean(1)
    half = critical_value((seeds,) * k, seeds, (k + 1) * (seeds - 1)) * np.sqrt(pooled * 2 / seeds)
    error = np.abs((means[:, 1:] - means[:, :1]) - (shifts[1:] - shifts[0]))
    covered = float((error <= half[:, None]).all(1).mean())
    print(f"{seeds} seeds: simultaneous coverage {100 * covered:.2f} %, family-wise error {100 * (1 - covered):.2f} %")
    assert 0.94 < covered < 0.96
    for run in range(20):
        ours = dunnett([list(g) for g in data[run]], 0)
        inside = all(c.low <= s - shifts[0] <= c.high for c, s in zip(ours[1:], shifts[1:], strict=True))
        assert inside == bool((error[run] <= half[run]).all())


def test_levels_of_several_data_sets_are_not_one_group(tmp_path):
    write_all(tmp_path, {"none": [90.0, 90.5], "mixup": [91.0, 91.5]})
    for seed in range(2):
        write_cell(tmp_path, "none", seed, 70.0 + seed, dataset="fashion_mnist")
    frame = collect(tmp_path)
    with pytest.raises(
        ValueError, match=r"label.augment=none has several cells of one seed; they differ in .*dataset.name"
    ):
        compare_to_baseline(frame, "none", "label.augment")
    alone = compare_to_baseline(frame[frame["dataset.name"] == "digits"], "none", "label.augment")
    assert list(alone["n"]) == [2, 2]


def test_further_pairs_are_students_t_by_holm():
    groups = [list(v) for v in SCORES.values()]
    pairs = [(0, 1), (1, 2), (0, 2)]
    ours = compare_pairs(groups, pairs)
    freedom = sum(len(g) - 1 for g in groups)
    variance = sum(np.var(g, ddof=1) * (len(g) - 1) for g in groups) / freedom
    t = [(np.mean(groups[b]) - np.mean(groups[a])) / np.sqrt(variance * 2 / 3) for a, b in pairs]
    raw = 2 * stats.t.sf(np.abs(t), freedom)
    assert [c.p for c in ours] == pytest.approx(list(multipletests(raw, method="holm")[1]))
    half = stats.t.ppf(1 - 0.05 / 6, freedom) * np.sqrt(variance * 2 / 3)
    assert ours[0].high - ours[0].delta == pytest.approx(half)
    lone = compare_pairs([[90.0], [91.0, 92.0], []], [(0, 1), (1, 2)])
    assert lone[0].delta == 1.5 and lone[0].p is None and lone[1].delta is None


def test_unequal_spread_is_bartletts():
    groups = [[90.0, 90.1, 90.2], [70.0, 80.0, 95.0]]
    assert unequal_spread(groups) == pytest.approx(stats.bartlett(*groups).pvalue)
    assert unequal_spread([[90.0, 90.0], [1.0, 2.0]]) is None
