"""The simulation of benchmarks/bench_intervals.py: against published figures, and small."""

import numpy as np
import pytest

from benchmarks.bench_intervals import README, Case
from benchmarks.interval_rules import Studies, false_calls, maximum_modulus, our_false_calls, ours, pooled, t3, tamhane
from vitlab.core.comparisons import compare, least_differences, with_scatter

NOTHING = np.zeros(6)


@pytest.mark.parametrize(
    ("count", "df", "printed"), [(6, 24, 2.851), (28, 48, 3.286), (6, 36, 2.775), (28, 72, 3.228), (1, 10, 2.228)]
)
def test_the_studentised_maximum_modulus_is_the_published_one(count, df, printed):
    """Tamhane (JASA 1979), table 2; the last is Student's t."""
    assert maximum_modulus(count, df) == pytest.approx(printed, abs=6e-4)


def test_the_simulated_rule_is_that_of_the_tables():
    """The vectorised rule and `compare` give one study the same intervals."""
    sds = (1.0, 2.0, 0.5, 4.0)
    for counts in ((3, 3, 3, 3), (5, 3, 4, 10)):
        groups = [with_scatter(n, sd) for n, sd in zip(counts, sds, strict=True)]
        found = [c.high - c.delta for c in compare(groups, [(0, 1), (0, 2), (0, 3)])]
        studies = Studies(np.zeros((1, 4)), np.array([sds]) ** 2, np.array(counts))
        assert ours(studies)[0] == pytest.approx(found, rel=5e-3)


@pytest.mark.slow()
def test_published_error_rates_are_reproduced():
    """Dunnett (JASA 1980), table 1: all pairs of four groups of seven, equal variances: T2 3.66 %, T3 3.92 %."""
    rng, runs, n = np.random.default_rng(0), 40_000, 7
    means, variances = rng.normal(size=(runs, 4)) / np.sqrt(n), rng.chisquare(n - 1, (runs, 4)) / (n - 1)
    wrong = {"T2": np.zeros(runs, bool), "T3": np.zeros(runs, bool)}
    for i in range(4):
        for j in range(i):
            # each pair with five more of its kind, whose intervals are not looked at: six comparisons
            pair = Studies(means[:, [i, *[j] * 6]], variances[:, [i, *[j] * 6]], np.full(7, n))
            off = np.abs(pair.means[:, 1] - pair.means[:, 0])
            wrong["T2"] |= off > tamhane(pair)[:, 0]
            wrong["T3"] |= off > t3(pair)[:, 0]
    assert wrong["T2"].mean() == pytest.approx(0.0366, abs=0.004)
    assert wrong["T3"].mean() == pytest.approx(0.0392, abs=0.004)


@pytest.mark.slow()
@pytest.mark.parametrize(
    ("sds", "counts"),
    [
        ((1.0,) * 7, (3,) * 7),
        ((*(1.0,) * 6, 10.0), (3,) * 7),
        ((10.0, *(1.0,) * 6), (3,) * 7),
        ((1.0, *(8.0,) * 6), (3,) * 7),
        ((1.0, *(20.0,) * 6), (3,) * 7),
        ((1.0, *(8.0,) * 6), (2,) * 7),
        (README, (5,) * 7),
        ((1.0, *(3.0,) * 6), (20, *(3,) * 6)),
        ((1.0, *(3.0,) * 6), (5, 2, 3, 5, 10, 20, 3)),
    ],
)
def test_our_rule_keeps_its_error_rate(sds, counts):
    studies = Case("", sds, counts).studies(8_000)
    assert our_false_calls(studies, NOTHING) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 8_000)


@pytest.mark.slow()
@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_detectable_difference_is_found_four_times_in_five(n):
    """Although a common critical value varies with the scatters that a study finds."""
    least = least_differences([with_scatter(n, 1.0)] * 7, [(0, i) for i in range(1, 7)])[0]
    studies = Case("", (1.0,) * 7, (n,) * 7).studies(1_200)
    found = studies.means[:, 1] + least - studies.means[:, 0] > ours(studies, len(studies.means))[:, 0]
    assert found.mean() == pytest.approx(0.8, abs=0.035)


@pytest.mark.slow()
def test_what_it_was_chosen_over_does_not():
    quiet = Case("", (1.0, *(8.0,) * 6), (3,) * 7).studies(8_000)
    noisy = Case("", (10.0, *(1.0,) * 6), (3,) * 7).studies(8_000)
    assert false_calls(tamhane(quiet), quiet, NOTHING) > 0.07 and false_calls(t3(quiet), quiet, NOTHING) > 0.1
    assert false_calls(pooled(noisy), noisy, NOTHING) > 0.2
