"""The law of the largest of several Welch statistics: beside a simulation, at its limits, its levels."""

import numpy as np
import pytest
from scipy import stats

from vitlab.core.families import sidak
from vitlab.core.largest_welch import asked, critical_value, exceeded, reached


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
    critical = critical_value(1e-9, np.array([1.0, 5.0, 0.2]), 4, level)
    assert critical == pytest.approx(stats.t.isf(sidak(3, 1 - asked(level, 4)) / 2, 3), rel=1e-3)


def test_a_noisy_baseline_makes_all_comparisons_one():
    critical = critical_value(1e9, np.array([1.0, 5.0, 0.2, 1.0]), 4, 0.05)
    assert critical == pytest.approx(stats.t.isf(asked(0.05, 4) / 2, 3), rel=0.02), "a step, over 32 nodes"


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_levels_are_lowered_and_restored(count):
    for level in (0.3, 0.05, 0.02, 0.001):
        assert asked(level, count) < level and reached(asked(level, count), count) == pytest.approx(level)
    assert reached(1.0, count) == 1.0


def test_p_values_and_critical_values_agree():
    others = np.array([1.0, 2.0, 0.5])
    critical = critical_value(1.5, others, 3, 0.02)
    assert reached(exceeded(critical, 1.5, others, 3), 3) == pytest.approx(0.02, rel=1e-3)
