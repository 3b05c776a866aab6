"""Rules for many comparisons with one baseline, over thousands of studies at once: ours and what the literature offers.

Each takes (S, K+1) means and variances of S studies, the baseline first, and (K+1,) numbers of seeds, and returns the
(S, K) half widths of simultaneous 95 % intervals, or of fewer studies where it is slow. They are written apart from
`vitlab.core.comparisons`, which takes one study at a time; a test holds the two against each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from vitlab.core import families, welch
from vitlab.core.families import LEVEL, sidak

Array = np.ndarray


@dataclass(frozen=True)
class Studies:
    means: Array
    """(S, K+1)."""
    variances: Array
    """(S, K+1)."""
    counts: Array
    """(K+1,) seeds of each row."""

    @property
    def comparisons(self) -> int:
        return self.means.shape[1] - 1

    @property
    def errors(self) -> Array:
        """Squared standard errors of the means (S, K+1)."""
        return self.variances / self.counts

    @property
    def error(self) -> Array:
        """Standard errors of the differences to the baseline (S, K)."""
        return np.sqrt(self.errors[:, 1:] + self.errors[:, :1])

    @property
    def share(self) -> Array:
        """The baseline's part of the squared errors (S, K)."""
        return self.errors[:, :1] / (self.errors[:, 1:] + self.errors[:, :1])

    @property
    def freedom(self) -> Array:
        """Welch's and Satterthwaite's (S, K)."""
        first, others = self.counts[0] - 1, self.counts[1:] - 1
        return 1 / (self.share**2 / first + (1 - self.share) ** 2 / others)

    def first(self, count: int) -> Studies:
        return Studies(self.means[:count], self.variances[:count], self.counts)


def ours(studies: Studies, first: int = 500) -> Array:
    """The rule of our tables: a common critical value, by bisection of its logarithm, for rows of as many seeds."""
    if len(set(studies.counts)) > 1:
        return separate(studies)
    studies, n = studies.first(first), int(studies.counts[0])
    wanted = welch.asked(1 - LEVEL, n)
    low, high = np.zeros(len(studies.means)), np.full(len(studies.means), 12.0)
    for _ in range(14):
        middle = (low + high) / 2
        over = _exceeded(np.exp(middle), studies) > wanted
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return np.exp(high)[:, None] * studies.error


def our_false_calls(studies: Studies, truth: Array, level: float = 1 - LEVEL) -> float:
    """As `false_calls` of `ours`, for all studies: without the critical value, by the probability of the largest t."""
    if len(set(studies.counts)) > 1:
        return false_calls(separate(studies), studies, truth)
    n = int(studies.counts[0])
    wanted = welch.asked(level, n)
    wrong = np.abs(studies.means[:, 1:] - studies.means[:, :1] - truth)
    largest = np.divide(wrong, studies.error, out=np.zeros_like(wrong), where=wrong > 0).max(1)
    near = largest > -special.stdtrit(2 * (n - 1), wanted / 2)  # no critical value is smaller
    found = _exceeded(largest[near], Studies(studies.means[near], studies.variances[near], studies.counts))
    return float((found < wanted).sum()) / len(largest)


def _exceeded(critical: Array, studies: Studies, chunk: int = 100) -> Array:
    base, others, n = studies.variances[:, 0], studies.variances[:, 1:], int(studies.counts[0])
    parts = [slice(i, i + chunk) for i in range(0, len(critical), chunk)]
    found = [welch.exceeded(critical[p], base[p], others[p], n, (16, 12)) for p in parts]
    return np.concatenate(found) if found else np.zeros(0)


def separate(studies: Studies) -> Array:
    """Ours where rows have other numbers of seeds than the baseline: each comparison its own critical value."""
    level, share = sidak(studies.comparisons), studies.share
    critical = [
        welch.critical_value(share[:, i], int(studies.counts[0]) - 1, int(n) - 1, level)
        for i, n in enumerate(studies.counts[1:])
    ]
    return np.stack(critical, 1) * studies.error


def pooled(studies: Studies) -> Array:
    """Dunnett (JASA 1955)."""
    weights = studies.counts - 1
    df = int(weights.sum())
    variance = (studies.variances @ weights / df)[:, None]
    sizes = tuple(int(n) for n in studies.counts[1:])
    critical = families.dunnett_critical_value(((int(studies.counts[0]), sizes),), df)
    return critical * np.sqrt(variance * (1 / studies.counts[1:] + 1 / studies.counts[0]))


def tamhane(studies: Studies) -> Array:
    """T2 with Šidák's level (Tamhane, JASA 1979): Welch's t."""
    return -special.stdtrit(studies.freedom, sidak(studies.comparisons) / 2) * studies.error


def t3(studies: Studies) -> Array:
    """Dunnett's T3 (JASA 1980): Welch's degrees of freedom, the studentised maximum modulus."""
    inverse = np.linspace(1 / 200, 1, 200)
    table = [maximum_modulus(studies.comparisons, 1 / x) for x in inverse]
    return np.interp(1 / studies.freedom, inverse, table) * studies.error


@functools.lru_cache(maxsize=4096)
def maximum_modulus(count: int, df: float, level: float = LEVEL) -> float:
    """The quantile of the largest of `count` absolute normal deviates over one independent deviation of `df`."""
    nodes, weights = np.polynomial.legendre.leggauss(240)
    scale = np.sqrt(2 * special.gammaincinv(df / 2, (nodes + 1) / 2) / df)

    def excess(c: float) -> float:
        return float(weights / 2 @ (2 * special.ndtr(c * scale) - 1) ** count) - level

    return float(optimize.brentq(excess, 0.1, 1e4))  # pyright: ignore[reportArgumentType]


def banerjee(studies: Studies) -> Array:
    """Banerjee's bound (Sankhya 1960) at Šidák's level."""
    quantiles = -special.stdtrit(studies.counts - 1.0, sidak(studies.comparisons) / 2)
    squares = quantiles**2 * studies.errors
    return np.sqrt(squares[:, 1:] + squares[:, :1])


def moderated(studies: Studies) -> Array:
    """Variances shrunk by empirical Bayes (Smyth 2004), equal numbers of seeds; the largest of K t's by Šidák."""
    d = studies.counts[0] - 1
    logs = np.log(studies.variances)
    centred = logs - special.digamma(d / 2) + np.log(d / 2)
    mean = centred.mean(1)
    excess = ((centred - mean[:, None]) ** 2).sum(1) / (centred.shape[1] - 1) - special.polygamma(1, d / 2)
    prior = np.where(excess > 1e-6, 2 * _inverse_trigamma(np.maximum(excess, 1e-6)), 1e6)
    base = np.exp(mean + special.digamma(prior / 2) - np.log(prior / 2))
    shrunk = (prior[:, None] * base[:, None] + d * studies.variances) / (prior[:, None] + d)
    total = np.minimum(prior + d, centred.shape[1] * d)[:, None]
    error = np.sqrt(shrunk[:, 1:] / studies.counts[1:] + shrunk[:, :1] / studies.counts[0])
    return -special.stdtrit(total, sidak(studies.comparisons) / 2) * error


def _inverse_trigamma(x: Array) -> Array:
    y = 0.5 + 1 / x
    for _ in range(30):
        value = special.polygamma(1, y)
        y = y + value * (1 - value / x) / special.polygamma(2, y)
    return y


def plug_in(studies: Studies, first: int = 1_000) -> Array:
    """Hasler and Hothorn (Biometrical Journal 2008): multivariate t, estimated correlations, a df for each row."""
    studies = studies.first(first)
    share, freedom, error = studies.share, studies.freedom, studies.error
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    weights = weights / weights.sum()
    quantiles, chi_weights = np.polynomial.legendre.leggauss(16)
    load, rest = np.sqrt(share)[..., None], np.sqrt(1 - share)[..., None]  # (S, K, 1)
    half = np.empty_like(error)
    for i in range(studies.comparisons):
        df = freedom[:, i : i + 1]
        scale = np.sqrt(2 * special.gammaincinv(df / 2, (quantiles + 1) / 2) / df)  # (S, X)
        low, high = np.full(len(df), 1.0), np.full(len(df), 200.0)
        for _ in range(16):  # bisection of the logarithm, all studies at once
            middle = np.sqrt(low * high)
            held = np.zeros(len(df))
            for x in range(len(quantiles)):
                bound = (middle * scale[:, x])[:, None, None]
                inside = special.ndtr((bound - load * nodes) / rest) - special.ndtr((-bound - load * nodes) / rest)
                held += chi_weights[x] / 2 * (inside.prod(1) @ weights)
            low, high = np.where(held < LEVEL, middle, low), np.where(held < LEVEL, high, middle)
        half[:, i] = high * error[:, i]
    return half


def generalised(studies: Studies, first: int = 2_000) -> Array:
    """Tsui and Weerahandi's generalised pivot (JASA 1989), the fiducial Behrens-Fisher law, at Šidák's level."""
    studies = studies.first(first)
    share, error, level = studies.share, studies.error, sidak(studies.comparisons)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    uniform = (nodes + 1) / 2
    quantiles = uniform**3 * (10 - 15 * uniform + 6 * uniform**2)
    weights = weights / 2 * 30 * (uniform * (1 - uniform)) ** 2
    base = special.stdtrit(studies.counts[0] - 1.0, quantiles)  # (Q,)
    half = np.empty_like(error)
    for i, n in enumerate(studies.counts[1:]):
        a, b = np.sqrt(share[:, i : i + 1]), np.sqrt(1 - share[:, i : i + 1])
        low, high = np.full(len(a), 1.0), np.full(len(a), 1e3)
        for _ in range(22):
            middle = np.sqrt(low * high)
            tail = 2 * special.stdtr(n - 1.0, -(middle[:, None] - a * base) / b) @ weights
            low, high = np.where(tail > level, middle, low), np.where(tail > level, high, middle)
        half[:, i] = high * error[:, i]
    return half


def bootstrap(studies: Studies, first: int = 2_000, draws: int = 999) -> Array:
    """The largest Welch statistic, by parametric bootstrap from the estimated variances."""
    studies, rng = studies.first(first), np.random.default_rng(0)
    critical = np.empty(len(studies.means))
    for s, errors in enumerate(studies.errors):
        drawn = errors * rng.chisquare(studies.counts - 1, (draws, len(errors))) / (studies.counts - 1)
        means = rng.normal(size=(draws, len(errors))) * np.sqrt(errors)
        t = np.abs(means[:, 1:] - means[:, :1]) / np.sqrt(drawn[:, 1:] + drawn[:, :1])
        critical[s] = np.quantile(t.max(1), LEVEL)
    return critical[:, None] * studies.error


RULES: dict[str, Callable[[Studies], Array]] = {
    "ours": ours,
    "each comparison alone": separate,
    "pooled (Dunnett)": pooled,
    "Welch and Šidák (T2)": tamhane,
    "Dunnett's T3": t3,
    "plug-in multivariate t": plug_in,
    "empirical Bayes": moderated,
    "parametric bootstrap": bootstrap,
    "generalised pivot": generalised,
    "Banerjee and Šidák": banerjee,
}


def false_calls(half: Array, studies: Studies, truth: Array) -> float:
    """The share of studies with any interval that leaves out its true difference (K,)."""
    studies = studies.first(len(half))
    wrong = np.abs(studies.means[:, 1:] - studies.means[:, :1] - truth) > half
    return float(wrong.any(1).mean())


def scipys(values: list[Array]) -> bool:
    """Whether scipy.stats.dunnett calls any row different: one study, (n,) values of each row, the baseline first."""
    return bool((stats.dunnett(*values[1:], control=values[0], rng=0).pvalue < 1 - LEVEL).any())
