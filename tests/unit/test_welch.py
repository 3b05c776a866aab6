"""Critical values of Welch's t: exact rates, ends, inverse and power of two means; a simulation of several."""

import numpy as np
import pytest
from scipy import stats

from vitlab.core.families import sidak
from vitlab.core.welch import (
    asked,
    common_bounds,
    common_critical_value,
    critical_value,
    detectable_shift,
    exceeded,
    p_value,
    rate,
    reached,
)

RATIOS = np.logspace(-3.5, 3.5, 141)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 10), (3, 3), (3, 20), (5, 5), (5, 3), (10, 10)])
@pytest.mark.parametrize("level", [0.05, sidak(6), sidak(19)])
def test_no_ratio_of_the_scatters_exceeds_the_level(sizes, level):
    rates = rate(RATIOS, sizes[0] - 1, sizes[1] - 1, level)
    assert rates.max() <= 1.006 * level, "within the interpolation of the calibration"


@pytest.mark.parametrize(
    ("sizes", "level", "times"), [((3, 3), 0.0085, 1.78), ((2, 10), 0.0085, 7.98), ((5, 5), 0.05, 1.07)]
)
def test_welchs_own_critical_value_does_not(sizes, level, times):
    """The figures of the module's docstring, by simulation: how much more often than its level Welch's t errs."""
    (n, m), rng, runs = sizes, np.random.default_rng(0), 400_000
    worst = 0.0
    for ratio in (0.15, 0.2, 4.6, 5.6, 8.25):  # of the standard errors
        first = rng.chisquare(n - 1, runs) / (n - 1) * ratio**2
        second = rng.chisquare(m - 1, runs) / (m - 1)
        share = first / (first + second)
        t = np.abs(rng.normal(size=runs)) * np.sqrt((1 + ratio**2) / (first + second))
        freedom = 1 / (share**2 / (n - 1) + (1 - share) ** 2 / (m - 1))
        worst = max(worst, float((t > stats.t.isf(level / 2, freedom)).mean()) / level)
    assert worst == pytest.approx(times, rel=0.04)


def test_the_rate_is_that_of_a_simulation():
    rng, runs, ratio = np.random.default_rng(1), 200_000, 2.0
    first, second = rng.chisquare(2, runs) / 2 * ratio**2, rng.chisquare(7, runs) / 7
    t = np.abs(rng.normal(size=runs)) * np.sqrt((1 + ratio**2) / (first + second))
    found = (t > critical_value(first / (first + second), 2, 7, 0.05)).mean()
    assert rate(ratio, 2, 7, 0.05)[0] == pytest.approx(found, abs=0.0015)


@pytest.mark.parametrize("freedom", [(2, 2), (4, 4), (2, 9), (19, 4)])
def test_at_the_ends_it_is_students_t(freedom):
    """Where one group alone makes the error; Šidák's quantiles of t for 6 and 10 comparisons (Games, JASA 1977)."""
    for level in (0.05, sidak(6), sidak(10)):
        ends = critical_value(np.array([1.0, 0.0]), *freedom, level)
        assert ends == pytest.approx(stats.t.isf(level / 2, freedom), rel=1e-6)


def test_the_p_value_is_the_inverse():
    for first, second in ((1, 1), (2, 2), (4, 4), (2, 9), (9, 9)):
        for share in (0.02, 0.3, 0.5, 0.9):
            previous = 0.0
            for level in (0.4, 0.05, 0.0085, 0.0003):
                critical = float(critical_value(share, first, second, level))
                assert critical > previous
                assert p_value(-critical, share, first, second) == pytest.approx(level, rel=1e-4)
                previous = critical
    assert p_value(0.0, 0.5, 2, 2) == 1.0 and p_value(1e9, 0.5, 9, 9) > 0


def test_it_lies_between_welch_and_banerjee():
    """Welch's in the middle of the dip; never above Banerjee's, which with equal numbers is Student's everywhere."""
    welch = [stats.t.isf(0.0085 / 2, 2 * f) for f in (4, 9)]
    ours = [float(critical_value(0.5, f, f, 0.0085)) for f in (4, 9)]
    assert ours == pytest.approx(welch, rel=1e-3), "the middle of the dip"
    shares = np.linspace(0.01, 0.99, 99)
    assert (critical_value(shares, 4, 4, 0.0085) <= stats.t.isf(0.0085 / 2, 4) + 1e-9).all()


@pytest.mark.parametrize("case", [(3, 3, 1.0, 1.0), (5, 5, 2.0, 1.0), (3, 8, 1.0, 3.0)])
def test_the_detectable_shift_is_found_four_times_in_five(case):
    n, m, one, two = case
    errors = one / np.sqrt(n), two / np.sqrt(m)
    shift = detectable_shift(errors[0] / errors[1], n - 1, m - 1, 0.02, 0.8)
    rng, runs = np.random.default_rng(2), 100_000
    first = rng.chisquare(n - 1, runs) / (n - 1) * errors[0] ** 2
    second = rng.chisquare(m - 1, runs) / (m - 1) * errors[1] ** 2
    t = np.abs(rng.normal(shift, 1, runs)) * np.hypot(*errors) / np.sqrt(first + second)
    found = (t > critical_value(first / (first + second), n - 1, m - 1, 0.02)).mean()
    assert found == pytest.approx(0.8, abs=0.005)


def test_what_has_no_degree_of_freedom_is_refused():
    with pytest.raises(ValueError, match=r"degrees of freedom and a level in \(0, 1\), got 0, 2 and 0.05"):
        critical_value(0.5, 0, 2, 0.05)
    with pytest.raises(ValueError, match="level"):
        critical_value(0.5, 2, 2, 1.0)


@pytest.mark.parametrize(
    ("count", "base", "others"),
    [
        (3, 1.0, [1.0] * 6),
        (2, 1.0, [1.0, 1.0, 100.0]),
        (3, 100.0, [1.0, 2.0]),
        (5, 0.01, [1.0, 2.0, 3.0, 0.1]),
        (20, 1.0, [1.0] * 12),
    ],
)
def test_it_is_that_of_a_simulation(count, base, others):
    rng, runs = np.random.default_rng(0), 100_000
    variances = np.array([base, *others])
    means = rng.normal(size=(runs, len(variances))) * np.sqrt(variances)
    found = rng.chisquare(count - 1, (runs, len(variances))) / (count - 1) * variances
    largest = (np.abs(means[:, 1:] - means[:, :1]) / np.sqrt(found[:, 1:] + found[:, :1])).max(1)
    for critical in (1.0, 3.0, 6.0):
        wanted = float((largest > critical).mean())
        assert exceeded(critical, base, np.array(others), count) == pytest.approx(wanted, abs=0.005)


def test_a_quiet_baseline_leaves_independent_students_ts():
    level = 0.05
    critical = common_critical_value(1e-9, np.array([1.0, 5.0, 0.2]), 4, level)
    assert critical == pytest.approx(stats.t.isf(sidak(3, 1 - asked(level, 4)) / 2, 3), rel=1e-3)


def test_a_noisy_baseline_makes_all_comparisons_one():
    critical = common_critical_value(1e9, np.array([1.0, 5.0, 0.2, 1.0]), 4, 0.05)
    assert critical == pytest.approx(stats.t.isf(asked(0.05, 4) / 2, 3), rel=0.02), "a step, over 32 nodes"


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_levels_are_lowered_and_restored(count):
    for level in (0.3, 0.05, 0.02, 0.001):
        assert asked(level, count) < level and reached(asked(level, count), count) == pytest.approx(level)
    assert reached(1.0, count) == 1.0


def test_p_values_and_critical_values_agree():
    others = np.array([1.0, 2.0, 0.5])
    critical = common_critical_value(1.5, others, 3, 0.02)
    assert reached(exceeded(critical, 1.5, others, 3), 3) == pytest.approx(0.02, rel=1e-3)


@pytest.mark.parametrize(
    ("base", "others", "count", "level"),
    [
        (1.0, (1.0, 1.0), 2, 0.0085),
        (1.0, (1.0,) * 6, 5, 0.05),
        (0.2, (3.0, 90.0, 0.01), 3, 0.02),
        (9.0, (1.0, 4.0), 60, 0.001),
    ],
)
def test_planned_bounds_are_those_of_bisection(base, others, count, level):
    """Twelve halvings of 0 to 6, the logarithm of the critical value, of each study that estimates these variances."""
    number = 64
    points = stats.qmc.Sobol(len(others) + 1, scramble=False).random(number) + 0.5 / number
    found = stats.chi2.ppf(points, count - 1) / (count - 1) * np.array([base, *others])
    low, high = np.zeros(number), np.full(number, 6.0)
    for _ in range(12):
        middle = (low + high) / 2
        more = exceeded(np.exp(middle), found[:, 0], found[:, 1:], count, (16, 12)) > asked(level, count)
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    expected = np.exp((low + high) / 2)[:, None] * np.sqrt((found[:, :1] + found[:, 1:]) / count)
    np.testing.assert_array_equal(common_bounds(base, np.array(others), count, level), expected)
