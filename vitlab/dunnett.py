"""Dunnett's comparison of k groups with one control, equal n (Dunnett, JASA 1955): its two-sided critical value.

scipy.stats.dunnett draws random numbers and varies in its sixth digit; this is the same distribution by quadrature,
deterministic and computed once per (k, degrees of freedom).
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import optimize, stats

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(96)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def coverage(critical: float, k: int, df: float) -> float:
    """P(max |T_i| <= critical) for k comparisons with one control, equal n (correlation 1/2), `df` of the variance."""
    shares = (np.arange(200) + 0.5) / 200
    scale = np.sqrt(stats.chi2.ppf(shares, df) / df)  # (Q,) of the pooled deviation over the true one
    bound = np.sqrt(2) * critical * scale[:, None]
    inside = stats.norm.cdf(_NODES + bound) - stats.norm.cdf(_NODES - bound)  # (Q, nodes)
    return float((inside**k @ _WEIGHTS).mean())


@functools.lru_cache(maxsize=256)
def critical_value(k: int, df: float, level: float = 0.95) -> float:
    """The half-width, in standard errors of a difference, of simultaneous two-sided intervals."""
    if df <= 0 or k < 1:
        raise ValueError(f"needs at least one comparison and one degree of freedom, got k={k}, df={df}")
    return float(optimize.brentq(lambda c: coverage(c, k, df) - level, 0.1, 1e4 if df < 2 else 100.0))


def adjusted_p(statistic: float, k: int, df: float) -> float:
    """The two-sided p-value of one of k comparisons, adjusted for all of them."""
    return float(min(1.0, max(0.0, 1 - coverage(abs(statistic), k, df))))


def minimum_detectable_difference(
    k: int, n: int, sd: float, *, power: float = 0.8, level: float = 0.95
) -> float | None:
    """The smallest true difference to the control that is found with probability `power`: k groups, n seeds each.

    In the unit of `sd`, the deviation between seeds. None where n = 1: a single seed detects nothing.
    """
    if n < 2:
        return None
    df = (k + 1) * (n - 1)
    critical = critical_value(k, df, level)

    def found(shift: float) -> float:
        return float(stats.nct.sf(critical, df, shift)) - power

    return float(optimize.brentq(found, 0.0, critical + 50)) * sd * np.sqrt(2 / n)
