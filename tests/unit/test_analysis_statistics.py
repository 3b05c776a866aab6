"""What the DataFrame says of levels, the analysis of variance, single checkpoints."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from written_records import write_all, write_cell

from vitlab.analysis import collect, compare_to_baseline
from vitlab.analysis.statistics import compare_checkpoints, interaction, unequal_spread
from vitlab.core.errors import UserError


def test_compare_to_baseline(tmp_path):
    compared = compare_to_baseline(write_all(tmp_path), "none", "label.augment", "last.top1")
    assert list(compared.columns) == ["level", "n", "mean", "sd", "delta", "ci_low", "ci_high", "p_adjusted", "mde"]
    assert compared.loc[0, "level"] == "none" and compared.loc[0].isna().sum() == 5
    assert compared.loc[1, "level"] == "mixup" and compared.loc[1, "delta"] == pytest.approx(91.2333 - 90.1, abs=1e-3)
    assert (
        compared.loc[1, "p_adjusted"]
        == compare_to_baseline(collect(tmp_path, "s"), "none", "label.augment").loc[1, "p_adjusted"]
    ), "the same to the last bit, every time"
    with pytest.raises(UserError, match="no column 'colour'"):
        compare_to_baseline(collect(tmp_path, "s"), "none", "colour")
    with pytest.raises(UserError, match="baseline 'all'"):
        compare_to_baseline(collect(tmp_path, "s"), "all", "label.augment")


def test_checkpoints_are_compared_exactly():
    first = np.array([1] * 80 + [0] * 20, bool)
    second = np.array([1] * 75 + [0] * 5 + [1] * 12 + [0] * 8, bool)
    result = compare_checkpoints(first, second)
    assert (result.only_first, result.only_second, result.delta) == (5, 12, 7.0)
    assert result.p == pytest.approx(stats.binomtest(5, 17).pvalue)
    assert result.low < 7 < result.high and compare_checkpoints(first, second) == result


def _design(rng, effect=0.0, sds=(0.1, 0.1, 0.1, 0.1), seeds=4):
    return pd.DataFrame([
        {"a": a, "b": b, "y": effect * (a == "x") + rng.normal(0, sd)}
        for (a, b), sd in zip([(a, b) for a in "xz" for b in "uv"], sds, strict=True)
        for _ in range(seeds)
    ])  # fmt: skip


def test_effects_are_found_and_nothing_is_asked_of_one_run():
    frame = _design(np.random.default_rng(0), effect=3.0)
    effects = interaction(frame, "a", "b", "y").set_index("effect")
    assert effects.loc["a", "p"] < 1e-4 and effects.loc["b", "p"] > 0.01 and effects.loc["a x b", "p"] > 0.01
    assert interaction(frame.iloc[:1], "a", "b", "y") is None
    assert interaction(frame.drop_duplicates(["a", "b"]), "a", "b", "y") is None
    assert interaction(frame.assign(y=1.0), "a", "b", "y") is None


def test_two_levels_each_are_welchs_t_of_a_contrast():
    """F with one degree of freedom is the square of the contrast over its own standard error."""
    frame = _design(np.random.default_rng(1), sds=(1.0, 3.0, 0.2, 1.0))
    groups = [g["y"] for _, g in frame.groupby(["a", "b"])]
    means, errors = np.array([g.mean() for g in groups]), np.array([g.var(ddof=1) / len(g) for g in groups])
    effect = interaction(frame, "a", "b", "y").iloc[2]
    assert effect["F"] == pytest.approx((means @ [1, -1, -1, 1]) ** 2 / errors.sum()) and effect["df"] == pytest.approx(
        1
    )
    parts = errors / errors.sum()
    assert effect["df_residual"] == pytest.approx(3 / (parts**1.25).sum())


def test_pooled_is_the_classical_analysis_of_variance():
    frame = _design(np.random.default_rng(2), effect=0.1)
    ours = interaction(frame, "a", "b", "y", statistics="pooled")
    reference = anova_lm(ols("y ~ C(a) * C(b)", data=frame).fit(), typ=2)
    assert list(ours["F"]) == pytest.approx(list(reference["F"][:3]))
    assert list(ours["p"]) == pytest.approx(list(reference["PR(>F)"][:3]))


def test_levels_of_several_data_sets_are_not_one_group(tmp_path):
    write_all(tmp_path, {"none": [90.0, 90.5], "mixup": [91.0, 91.5]})
    for seed in range(2):
        write_cell(tmp_path, "none", seed, 70.0 + seed, dataset="fashion_mnist")
    frame = collect(tmp_path)
    with pytest.raises(
        UserError, match=r"label.augment=none has several cells of one seed; they differ in .*dataset.name"
    ):
        compare_to_baseline(frame, "none", "label.augment")
    alone = compare_to_baseline(frame[frame["dataset.name"] == "digits"], "none", "label.augment")
    assert list(alone["n"]) == [2, 2]


def test_unequal_spread_is_bartletts():
    groups = [[90.0, 90.1, 90.2], [70.0, 80.0, 95.0]]
    assert unequal_spread(groups) == pytest.approx(stats.bartlett(*groups).pvalue)
    assert unequal_spread([[90.0, 90.0], [1.0, 2.0]]) is None
