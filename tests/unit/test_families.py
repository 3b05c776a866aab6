"""Dunnett's distribution compared with scipy's."""

import numpy as np
import pytest
from scipy import stats

from vitlab.core.families import dunnett_critical_value, dunnett_p


@pytest.mark.parametrize(("k", "df"), [(2, 10), (4, 16), (7, 16), (3, 60)])
def test_critical_values_leave_five_percent(k, df):
    """Beside scipy's multivariate t with correlation 1/2 (equal n), integrated by another method."""
    bound = np.full(k, dunnett_critical_value(((5, (5,) * k),), df))
    joint = stats.multivariate_t(shape=np.full((k, k), 0.5) + 0.5 * np.eye(k), df=df, seed=0)
    inside = joint.cdf(bound, lower_limit=-bound, maxpts=200_000 * k, random_state=0)
    assert inside == pytest.approx(0.95, abs=5e-4)


def test_one_comparison_is_students():
    assert dunnett_critical_value(((5, (5,)),), 8) == pytest.approx(stats.t.ppf(0.975, 8), rel=1e-4)


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (3, 5, 4), (2, 9)])
def test_p_values_are_scipys(sizes):
    rng = np.random.default_rng(3)
    groups = [rng.normal(size=n) for n in sizes]
    control = rng.normal(1.0, size=4)
    result = stats.dunnett(*groups, control=control, rng=1)
    df = sum(sizes) + 4 - len(sizes) - 1
    ours = [dunnett_p(s, ((4, sizes),), df) for s in result.statistic]
    assert ours == pytest.approx(list(result.pvalue), abs=1e-3)


def test_without_a_degree_of_freedom_there_is_none():
    with pytest.raises(ValueError, match="degree of freedom"):
        dunnett_critical_value(((1, (1,)),), 0)


def test_blocks_with_controls_of_their_own():
    """Two blocks of three groups, five each, one variance: compared with a simulation."""
    blocks, df = ((5, (5, 5, 5)), (5, (5, 5, 5))), 32
    critical = dunnett_critical_value(blocks, df)
    rng = np.random.default_rng(0)
    means = rng.normal(size=(200_000, 2, 4)) / np.sqrt(5)
    deviation = np.sqrt(rng.chisquare(df, 200_000) / df)
    t = np.abs(means[:, :, 1:] - means[:, :, :1]) / (deviation[:, None, None] * np.sqrt(2 / 5))
    assert (t.max((1, 2)) > critical).mean() == pytest.approx(0.05, abs=0.0015)
    assert dunnett_p(critical, blocks, df) == pytest.approx(0.05, abs=1e-6)
