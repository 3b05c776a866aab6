"""How often each rule for a table's intervals errs, by simulation: seven rows, as many as Table 3.3 has.

python -m benchmarks.bench_intervals [--studies 40000] [--only ours,pooled]

No row differs from the baseline; a rule errs where any of the six intervals leaves out zero. `±` is the median half
width of the interval of the second row, in units of that row's own deviation between seeds. Slow rules take the first
1,000 or 2,000 studies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from benchmarks.interval_rules import RULES, Array, Studies, false_calls, our_false_calls, scipys

README = (1.85, 12.52, 8.42, 7.21, 1.00, 2.89, 1.12)
"""Deviations between three seeds of the rows of the first published Table 3.3 at laptop scale."""
ONE = (1.0,) * 7


@dataclass(frozen=True)
class Case:
    name: str
    deviations: tuple[float, ...]
    counts: tuple[int, ...]

    def studies(self, count: int, seed: int = 0) -> Studies:
        """Normal scores, by their sufficient statistics."""
        rng, sd, n = np.random.default_rng(seed), np.array(self.deviations), np.array(self.counts)
        means = rng.normal(size=(count, len(sd))) * sd / np.sqrt(n)
        return Studies(means, rng.chisquare(n - 1, (count, len(sd))) / (n - 1) * sd**2, n)


def cases() -> list[Case]:
    found = []
    scatters = {
        "equal": ONE,
        "one row 3×": (*ONE[:6], 3.0),
        "one row 10×": (*ONE[:6], 10.0),
        "two rows 10×": (*ONE[:5], 10.0, 10.0),
        "baseline 3×": (3.0, *ONE[:6]),
        "baseline 10×": (10.0, *ONE[:6]),
        "baseline a third": (1.0, *(3.0,) * 6),
        "baseline an eighth": (1.0, *(8.0,) * 6),
        "all between 1 and 10": (3.0, 1.0, 1.5, 2.2, 4.6, 6.8, 10.0),
        "first Table 3.3": README,
    }
    few = ("equal", "one row 10×", "baseline 10×", "baseline an eighth", "first Table 3.3")
    for n in (2, 3, 5, 10, 20):
        found += [Case(name, sds, (n,) * 7) for name, sds in scatters.items() if n in (3, 5) or name in few]
    for counts in ((20, *(3,) * 6), (3, *(10,) * 6), (5, *(3,) * 6), (2, *(10,) * 6), (5, 2, 3, 5, 10, 20, 3)):
        found += [Case(name, scatters[name], counts) for name in ("equal", "baseline 10×", "baseline a third")]
    return found


@dataclass(frozen=True)
class Shaped:
    """Scores that are not normal: drawn one by one, with the true mean of each row known."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Array]
    """(rng, shape (S, K+1, n)) → scores."""
    count: int

    def studies(self, count: int, seed: int = 0) -> tuple[Studies, Array, Array]:
        """The studies, the scores (S, K+1, n), and the true differences (K,), from a million draws of each row."""
        rng = np.random.default_rng(seed)
        scores = self.draw(rng, (count, 7, self.count))
        truth = self.draw(np.random.default_rng(seed + 1), (2_000, 7, 500)).mean((0, 2))
        counts = np.full(7, self.count)
        return Studies(scores.mean(2), scores.var(2, ddof=1), counts), scores, truth[1:] - truth[0]


def near_the_top(mean: float, spreads: tuple[float, ...]) -> Callable[[np.random.Generator, tuple[int, ...]], Array]:
    """Percentages whose errors are log-normal about 100 - `mean`, skewed towards lower scores."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        spread = np.array(spreads)[:, None]
        return 100 - np.minimum(100.0, (100 - mean) * np.exp(spread * rng.normal(size=shape)))

    return draw


def of_360_images(
    deviations: tuple[float, ...], offset: float
) -> Callable[[np.random.Generator, tuple[int, ...]], Array]:
    """Scores rounded to one of 360 images, about a mean that lies `offset` of an image above a possible score."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        sd = np.array(deviations)[:, None]  # in images
        return np.round(324 + offset + sd * rng.normal(size=shape)) / 3.6

    return draw


def shaped() -> list[Shaped]:
    found = []
    for n in (3, 5, 10):
        found += [
            Shaped("99 %, errors log-normal 0.2", near_the_top(99, (0.2,) * 7), n),
            Shaped("99 %, errors log-normal 0.1 to 0.6", near_the_top(99, (0.1, 0.2, 0.2, 0.3, 0.3, 0.6, 0.1)), n),
            Shaped("360 images, deviation 0.3 images, between two scores", of_360_images((0.3,) * 7, 0.5), n),
            Shaped("360 images, deviations 0.3 to 3 images", of_360_images((0.3, 1, 1, 2, 3, 0.5, 0.3), 0.5), n),
        ]
    return found


def floored(studies: Studies, resolution: float) -> Studies:
    """With the least deviation that our tables take, half an image."""
    return Studies(studies.means, np.maximum(studies.variances, (resolution / 2) ** 2), studies.counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40_000)
    parser.add_argument("--only", default=",".join(RULES), help="names of rules, between commas")
    options = parser.parse_args()
    rules = {name: rule for name, rule in RULES.items() if name in options.only.split(",")}
    begun = time.process_time()
    print(f"| deviations of the seven rows | seeds | {' | '.join(rules)} |\n| --- | --- |{' ---: |' * len(rules)}")
    worst: dict[str, float] = {}
    for case in cases():
        studies, cells = case.studies(options.studies), []
        for name, rule in rules.items():
            if name == "empirical Bayes" and len(set(case.counts)) > 1:
                cells.append("–")
                continue
            half = rule(studies)
            nothing = np.zeros(6)
            rate = our_false_calls(studies, nothing) if name == "ours" else false_calls(half, studies, nothing)
            worst[name] = max(worst.get(name, 0.0), rate)
            cells.append(f"{100 * rate:.1f} %, ±{np.median(half[:, 0]) / case.deviations[1]:.2f}")
        seeds = str(case.counts[0]) if len(set(case.counts)) == 1 else ", ".join(map(str, case.counts))
        print(f"| {case.name} | {seeds} | {' | '.join(cells)} |", flush=True)
    print(f"| worst | | {' | '.join(f'{100 * worst[name]:.1f} %' for name in rules)} |\n", flush=True)
    quick = {
        name: rule for name, rule in rules.items() if name not in ("plug-in multivariate t", "parametric bootstrap")
    }
    print(f"| scores that are not normal | seeds | {' | '.join(quick)} |\n| --- | --- |{' ---: |' * len(quick)}")
    for case in shaped():
        studies, _, truth = case.studies(options.studies)
        taken = floored(studies, 1 / 3.6) if case.name.startswith("360") else studies
        rates = []
        for name, rule in quick.items():
            used = taken if name in ("ours", "each comparison alone", "empirical Bayes") else studies
            rates.append(our_false_calls(used, truth) if name == "ours" else false_calls(rule(used), used, truth))
        print(f"| {case.name} | {case.count} | {' | '.join(f'{100 * rate:.1f} %' for rate in rates)} |", flush=True)
    print(f"\n{options.studies:,} studies a case, {time.process_time() - begun:.0f} s of processor")
    beside_scipy()
    other_numbers(options.studies // 4)
    effects(options.studies)


def other_numbers(studies: int) -> None:
    """The highest rate of ours over scatters, for other numbers of comparisons, and at a fourth of the error."""
    print("| comparisons | seeds | highest of nine scatters | at an error of 1.25 % |\n| ---: | ---: | --- | --- |")
    for k in (2, 3, 12):
        scatters = {f"baseline 1/{r}": (1.0, *(float(r),) * k) for r in (3, 8, 20)}
        scatters |= {f"baseline {r}×": (float(r), *(1.0,) * k) for r in (3, 8)}
        scatters |= {"equal": (1.0,) * (k + 1), "one row 10×": (*(1.0,) * k, 10.0)}
        scatters |= {"half the rows 8×": (1.0, *(8.0,) * (k // 2), *(1.0,) * (k - k // 2))}
        scatters |= {"between 1 and 10": (1.0, *map(float, np.geomspace(1, 10, k)))}
        for n in (2, 3, 5, 10):
            cells = []
            for level in (0.05, 0.0125):
                rates = {
                    name: our_false_calls(Case(name, sds, (n,) * (k + 1)).studies(studies), np.zeros(k), level)
                    for name, sds in scatters.items()
                }
                name = max(rates, key=lambda key: rates[key])
                cells.append(f"{100 * rates[name]:.2f} % ({name})")
            print(f"| {k} | {n} | {' | '.join(cells)} |", flush=True)


def effects(studies: int) -> None:
    """Main effects and interaction of two factors that do nothing: how often p < 0.05, the highest of the three."""
    titles = "| factors | seeds | scatter | ours (exponent 1.25) | Brunner, Dette and Munk (2) |"
    print(f"{titles}\n| --- | ---: | --- | ---: | ---: |")
    for a, b in ((2, 2), (2, 3), (7, 2)):
        ones = np.ones(a * b)
        scatters = {
            "equal": ones,
            "one combination 10×": np.r_[ones[1:], 10.0],
            "one level 10×": np.r_[ones[b:], 10.0 * ones[:b]],
        }
        for n in (2, 3, 5, 10, 20):
            for name, sds in scatters.items():
                rates = [100 * highest_effect_rate(a, b, n, sds, exponent, studies) for exponent in (1.25, 2.0)]
                print(f"| {a} × {b} | {n} | {name} | {rates[0]:.1f} % | {rates[1]:.1f} % |", flush=True)


def highest_effect_rate(a: int, b: int, n: int, sds: Array, exponent: float, studies: int) -> float:
    """As `vitlab.analysis.statistics._effect`, for thousands of studies of `a` × `b` combinations of `n` seeds."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(studies, a * b)) * sds / np.sqrt(n)
    errors = rng.chisquare(n - 1, (studies, a * b)) / (n - 1) * sds**2 / n
    centre, average = (lambda k: np.eye(k) - 1 / k), (lambda k: np.full((k, k), 1 / k))
    rates = []
    for left, right in ((centre, average), (average, centre), (centre, centre)):
        hypothesis = np.kron(left(a), right(b))
        weights = np.diag(hypothesis)
        trace = errors @ weights
        df = trace**2 / np.einsum("ij,sj,ji,si->s", hypothesis, errors, hypothesis, errors, optimize=True)
        residual = 1 / (((weights * errors / trace[:, None]) ** exponent).sum(1) / (n - 1))
        statistic = np.einsum("si,ij,sj->s", means, hypothesis, means, optimize=True) / trace
        rates.append(float((special.fdtrc(df, residual, statistic) < 0.05).mean()))
    return max(rates)


def beside_scipy(count: int = 300) -> None:
    """Our pooled rule and scipy.stats.dunnett on the same studies: the same calls."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(count, 7, 3)) * np.array([1, 1, 1, 1, 1, 3, 10])[:, None]
    studies = Studies(scores.mean(2), scores.var(2, ddof=1), np.full(7, 3))
    calls = (np.abs(studies.means[:, 1:] - studies.means[:, :1]) > RULES["pooled (Dunnett)"](studies)).any(1)
    same = sum(scipys(list(values)) == call for values, call in zip(scores, calls, strict=True))
    print(f"scipy.stats.dunnett and our pooled rule call alike in {same} of {count} studies")


if __name__ == "__main__":
    main()
