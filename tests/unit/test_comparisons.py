"""The one rule for differences of means: compared with scipy's and by hand, what few seeds support, error rates."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from written_records import SCORES

from vitlab.core import welch
from vitlab.core.comparisons import (
    Group,
    compare,
    difference,
    half_widths,
    holm,
    least_differences,
    not_beaten,
    seeds_needed,
    with_scatter,
)
from vitlab.core.families import sidak
from vitlab.core.welch import critical_value, p_value

GROUPS = [Group(tuple(v), tuple(range(len(v)))) for v in SCORES.values()]
PAIRS = [(0, i) for i in range(1, len(GROUPS))]


def test_pooled_is_scipys_dunnett():
    groups = [np.array(v) for v in SCORES.values()]
    reference = stats.dunnett(*groups[1:], control=groups[0], rng=1)
    interval = reference.confidence_interval(0.95)
    ours = compare(GROUPS, PAIRS, "pooled")
    assert [c.p for c in ours] == pytest.approx(list(reference.pvalue), abs=1e-3)
    assert [c.low for c in ours] == pytest.approx(list(interval.low), abs=5e-3)
    assert [c.high for c in ours] == pytest.approx(list(interval.high), abs=5e-3)


def test_every_group_has_its_own_scatter():
    """By hand: Welch's statistics, and one critical value for all groups of as many seeds as the baseline."""
    variances = [np.var(g.values, ddof=1) for g in GROUPS]
    critical = welch.common_critical_value(variances[0], np.array(variances[1:]), 3, 0.05)
    for (a, b), ours in zip(PAIRS, compare(GROUPS, PAIRS), strict=True):
        delta, error = GROUPS[b].mean - GROUPS[a].mean, np.sqrt((variances[a] + variances[b]) / 3)
        assert (ours.low, ours.high) == pytest.approx((delta - critical * error, delta + critical * error))
        chance = welch.exceeded(abs(delta) / error, variances[0], np.array(variances[1:]), 3)
        assert ours.p == pytest.approx(welch.reached(chance, 3))
        assert ours.significant == (ours.p < 0.05)


def test_groups_of_other_numbers_of_seeds_have_critical_values_of_their_own():
    """Two groups of five, as the baseline, share theirs, at two thirds of the error; one of three does not."""
    five = [Group(tuple(np.array([0.0, 1.0, 2.0, 3.5, 4.0]) * scale)) for scale in (1.0, 2.0, 0.5)]
    three = Group((1.0, 2.0, 9.0))
    ours = compare([*five, three], [(0, 1), (0, 2), (0, 3)])
    variances = [g.variance for g in five]
    common = welch.common_critical_value(variances[0], np.array(variances[1:]), 5, 1 - 0.95 ** (2 / 3))
    half = common * np.sqrt((variances[0] + variances[1]) / 5)
    assert ours[0].high - ours[0].delta == pytest.approx(half)
    errors = variances[0] / 5, three.variance / 3
    own = float(critical_value(errors[0] / sum(errors), 4, 2, sidak(3)))
    assert ours[2].high - ours[2].delta == pytest.approx(own * np.sqrt(sum(errors)))
    assert ours[2].p == pytest.approx(
        1 - (1 - p_value(ours[2].delta / np.sqrt(sum(errors)), errors[0] / sum(errors), 4, 2)) ** 3
    )


def test_a_part_of_a_larger_family():
    alone = compare(GROUPS[:2], [(0, 1)])[0]
    among = compare(GROUPS[:2], [(0, 1)], part=0.25)[0]
    assert among.p == pytest.approx(1 - (1 - alone.p) ** 4) and among.high > alone.high


def test_a_noisy_row_does_not_widen_the_others():
    quiet = compare(GROUPS[:3], PAIRS[:2])
    noisy = compare([*GROUPS[:3], Group((50.0, 80.0, 95.0))], PAIRS)
    widths = [[c.high - c.low for c in found[:2]] for found in (quiet, noisy)]
    assert (np.array(widths[1]) < 1.5 * np.array(widths[0])).all(), "one comparison more"
    pooled = compare([*GROUPS[:3], Group((50.0, 80.0, 95.0))], PAIRS, "pooled")
    assert pooled[0].high - pooled[0].low > 10 * widths[1][0]


def test_paired_is_students_t_of_the_differences():
    shared = Group((91.0, 90.5, 92.0), (2, 0, 1))
    (ours,) = compare([GROUPS[0], shared], [(0, 1)], "paired")
    differences = np.array([90.5 - 90.0, 92.0 - 90.4, 91.0 - 89.9])
    assert ours.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert ours.low == pytest.approx(differences.mean() - stats.t.ppf(0.975, 2) * stats.sem(differences))
    assert compare([GROUPS[0], Group((1.0, 2.0, 3.0), (7, 8, 9))], [(0, 1)], "paired")[0].low is None, (
        "no seed in common"
    )
    assert difference(Group((1.0, 2.0), (0, 0)), shared).n == 0, "a seed that occurs twice pairs with nothing"


def test_further_pairs_are_adjusted_by_holm():
    pairs = [(0, 1), (1, 2), (0, 2)]
    for rule in ("auto", "pooled", "paired"):
        raw = [compare([GROUPS[a], GROUPS[b]], [(0, 1)], rule)[0].p for a, b in pairs]
        if rule == "pooled":
            freedom, variance = 8, np.mean([np.var(g.values, ddof=1) for g in GROUPS])
            t = [(GROUPS[b].mean - GROUPS[a].mean) / np.sqrt(variance * 2 / 3) for a, b in pairs]
            raw = 2 * stats.t.sf(np.abs(t), freedom)
        ours = compare(GROUPS, pairs, rule, stepwise=True)
        assert [c.p for c in ours] == pytest.approx(list(multipletests(raw, method="holm")[1]))
    lone = compare([Group((90.0,)), Group((91.0, 92.0)), Group(())], [(0, 1), (1, 2)])
    assert lone[0].delta == 1.5 and lone[0].p is None and lone[1].delta is None and lone[1].n == 0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []


@pytest.mark.parametrize("rule", ["auto", "pooled", "paired"])
def test_one_seed_gets_no_interval(rule):
    for comparison in compare([Group((90.0,), (0,)), Group((95.0,), (0,))], [(0, 1)], rule):
        assert comparison.low is None and comparison.p is None and not comparison.significant
    assert not_beaten([Group((90.0,), (0,)), Group((95.0,), (0,))], rule) == [False, False]


@pytest.mark.parametrize("rule", ["auto", "pooled", "paired"])
def test_seeds_that_agree_give_no_p_of_zero(rule):
    """360 images: three equal seeds each, one image apart, are within the resolution; unknown images decide nothing."""
    image = 100 / 360
    equal, above = (Group((v,) * 3, (0, 1, 2), image) for v in (90.0, 90.0 + image))
    (ours,) = compare([equal, above], [(0, 1)], rule)
    assert ours.p is not None and ours.p > 0.01 and ours.low < 0 < ours.high
    (none,) = compare([Group((90.0,) * 3, (0, 1, 2)), Group((91.0,) * 3, (0, 1, 2))], [(0, 1)], rule)
    assert none.delta == 1.0 and none.p is None and none.low is None and not none.significant


def test_an_interval_of_shares_ends_where_shares_end():
    wide = [(10.0, 60.0), (20.0, 56.0)]
    (found,) = compare([Group(values, resolution=1.0) for values in wide], [(0, 1)])
    assert (found.low, found.high) == (-100.0, 100.0) and found.p < 1
    (free,) = compare([Group(values) for values in wide], [(0, 1)])
    assert free.low < -100 and free.high > 100 and free.p == found.p


def test_one_quiet_group_leaves_the_others_scatter():
    (ours,) = compare([Group((90.0, 90.0, 90.0)), Group((91.0, 92.0, 93.5))], [(0, 1)])
    assert ours.p == pytest.approx(stats.ttest_1samp([91.0, 92.0, 93.5], 90.0).pvalue, rel=1e-4)


def test_the_same_is_two_one_sided_tests():
    close = [Group((90.0, 90.1, 89.9, 90.0)), Group((90.1, 90.0, 90.2, 90.1)), Group((92.0, 92.1, 91.9, 92.0))]
    ours = compare(close, [(0, 1), (0, 2)], margin=0.5)
    assert [c.same for c in ours] == [True, False]
    assert compare(close, [(0, 1)])[0].same is None
    (lone,) = compare([Group((90.0,)), Group((90.1,))], [(0, 1)], margin=0.5)
    assert lone.same is None, "one seed shows nothing"
    edge = compare(close[:2], [(0, 1)], "pooled", margin=0.0999 + stats.t.ppf(0.95, 6) * np.sqrt(0.02 / 3 / 2))[0]
    assert edge.same is False, "the margin is reached, not exceeded"
    wider = compare(close[:2], [(0, 1)], "pooled", margin=0.101 + stats.t.ppf(0.95, 6) * np.sqrt(0.02 / 3 / 2))[0]
    assert wider.same is True


def test_what_no_other_beats():
    assert not_beaten(GROUPS, "pooled") == [False, True, False, False]
    noisy_best = [Group((99.0, 85.0, 100.0)), Group((94.0, 94.1, 93.9)), Group((80.0, 80.1, 79.9))]
    assert not_beaten(noisy_best) == [True, True, False], "the third is shown to be below the second"


def test_what_seeds_detect():
    def least(n, rule="auto"):
        return least_differences([with_scatter(n, 0.2)] * 7, [(0, i) for i in range(1, 7)], rule)[0]

    assert least(3) == pytest.approx(1.18, abs=0.02) and least(5) == pytest.approx(0.58, abs=0.02)
    assert least(10) == pytest.approx(0.35, abs=0.01)
    assert least(3, "pooled") == pytest.approx(0.62, abs=0.01)
    assert least(1) is None and least_differences([with_scatter(3, 0.0)] * 2, [(0, 1)]) == [None]
    (alone,) = least_differences([with_scatter(5, 1e-9), with_scatter(5, 1.0)], [(0, 1)])
    assert alone == pytest.approx(1.68, abs=0.02), "Student's t with four degrees of freedom"
    assert seeds_needed(2.9, 6) == 5 and seeds_needed(0.001, 6) is None


@pytest.mark.parametrize(("difference", "count"), [(60.0, 1), (2.0, 2), (0.52, 6), (1.0, 15)])
def test_the_seeds_needed_are_the_fewest_that_do(difference, count):
    def least(n):
        return least_differences([with_scatter(n, 1.0)] * (count + 1), [(0, i) for i in range(1, count + 1)])[0]

    n = seeds_needed(difference, count)
    assert n is not None and least(n) <= difference and (n == 2 or least(n - 1) > difference)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_baseline_without_scatter_can_be_planned_with(n):
    """Seeds that agree on an unknown number of images: finite figures and no warning, whichever of the two it is."""
    quiet, loud = Group((70.0,) * n), with_scatter(n, 1.0)
    for groups in ([quiet, loud], [loud, quiet], [quiet, loud, quiet], [quiet, loud, loud]):
        pairs = [(0, i) for i in range(1, len(groups))]
        found = least_differences(groups, pairs)
        assert [v is None for v in found] == [c.low is None for c in compare(groups, pairs)]
        assert all(0 < v < 1e3 for v in found if v is not None)
    assert least_differences([quiet, quiet], [(0, 1)]) == [None]


def test_planned_widths_are_those_of_the_intervals():
    groups = [with_scatter(4, sd) for sd in (1.0, 2.0, 0.5)]
    for rule in ("auto", "pooled"):
        found = compare(groups, [(0, 1), (0, 2)], rule)
        assert half_widths(groups, [(0, 1), (0, 2)], rule) == pytest.approx([c.high - c.delta for c in found])
    assert half_widths([with_scatter(1, 1.0)] * 2, [(0, 1)]) == [None]


def _rates(rule, sds, sizes, runs=200, seed=0, shift=0.0):
    """How often any interval leaves out the truth (all differences are `shift`)."""
    rng, wrong, pairs = np.random.default_rng(seed), 0, [(0, i) for i in range(1, len(sds))]
    for _ in range(runs):
        values = [rng.normal(shift * (i > 0), sd, n) for i, (sd, n) in enumerate(zip(sds, sizes, strict=True))]
        widths = half_widths([Group(tuple(v)) for v in values], pairs, rule)
        wrong += any(abs(v.mean() - values[0].mean() - shift) > w for v, w in zip(values[1:], widths, strict=True))
    return wrong / runs


@pytest.mark.slow()
@pytest.mark.parametrize(
    ("sds", "sizes"),
    [
        ([10, 1, 1, 1, 1, 1, 1], [5] * 7),
        ([1, 8, 8, 8, 8, 8, 8], [3] * 7),
        ([1, 1, 1, 1, 1, 10, 10], [2, 3, 5, 10, 20, 2, 3]),
    ],
)
def test_error_rates_by_the_function_that_tables_call(sds, sizes):
    """At most 5 % of studies err in any row, plus three of the simulation's deviations."""
    assert _rates("auto", sds, sizes, shift=3.0) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.slow()
def test_pooled_holds_where_scatter_is_equal_and_not_where_it_is_not():
    assert _rates("pooled", [1] * 7, [3] * 7, runs=2_000) == pytest.approx(0.05, abs=0.015)
    assert _rates("pooled", [10, 1, 1, 1, 1, 1, 1], [3] * 7, runs=2_000) > 0.2


def test_sidaks_level():
    assert 1 - (1 - sidak(6)) ** 6 == pytest.approx(0.05)
