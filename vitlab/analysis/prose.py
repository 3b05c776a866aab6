"""The caption of a table, and one plain sentence per finding."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vitlab.analysis.statistics import holm, pooled_variance
from vitlab.analysis.table_model import Entry, Pair, Row, Table, TableSpec
from vitlab.core.dunnett import minimum_detectable_difference


def caption(frame: pd.DataFrame, spec: TableSpec, rows: Sequence[Row]) -> str:
    """What was trained and evaluated, by which rule the figures are chosen, and what the statistics are."""

    def one(column: str) -> str:
        values = sorted({str(v) for v in frame[column]}) if column in frame else []
        return ", ".join(values) if len(values) <= 4 else f"{len(values)} different"

    finished = frame[frame["state"] == "finished"]
    size = sorted({int(v) for v in finished["num_eval"].dropna()}) if "num_eval" in finished else []
    counts = sorted({e.comparison.n for r in rows for e in r.entries.values() if e.comparison.n})
    parts = [spec.title]
    if spec.reading:
        parts.append(f"Reading: {spec.reading}")
    recipe = f", recipe {one('label.recipe')}" if "label.recipe" in frame else ""
    evaluated = f", evaluated on {' / '.join(f'{s:,}' for s in size)} images" if size else ""
    parts.append(
        f"Model {one('label.model')}, data set {one('dataset.name')}{recipe} ({one('recipe.epochs')} epochs){evaluated}"
    )
    parts.append(
        "Top-1 and top-5 in percent at the last epoch, which no one chose; the best epoch's beside it is chosen on "
        "the evaluation set"
    )
    if any(str(v) == "cell" for v in frame.get("pretrain.kind", [])):
        parts.append("The pre-training has one seed of its own: the spread covers fine-tuning only")
    if any(e.device_hours is not None for r in rows for e in r.entries.values()):
        kinds = sorted({str(v) for v in finished["device_name"].dropna()}) if "device_name" in finished else []
        device = f" ({', '.join(kinds)})" if kinds else ""
        apart = ", without the pre-training" if any(str(v) == "cell" for v in frame.get("pretrain.kind", [])) else ""
        parts.append(f"device-h: hours of device time{device}, all seeds of a row together{apart}")
    if counts == [1]:
        parts.append("One seed each: this supports no ranking")
    elif counts:
        several = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(
            f"Mean ± standard deviation over {several} seeds; Δ to {rows[0].label} with simultaneous 95 % confidence "
            "intervals and adjusted p (Dunnett, pooled variance); bold: not to be told from the best"
        )
    return ". ".join(parts) + "."


def findings(rows: Sequence[Row], datasets: Sequence[str]) -> list[str]:
    """One plain sentence per comparison with the baseline."""
    lines = []
    base = rows[0]
    for dataset in datasets:
        on = f" on {dataset}" if len(datasets) > 1 else ""
        others = [(row.label, row.entries[dataset]) for row in rows[1:]]
        p_values = dict(zip([label for label, e in others if e.checkpoint], _adjusted(others), strict=True))
        lines += [
            f"{_change(label, entry.comparison.delta, base.label)}{on}, {_support(entry, p_values.get(label))}."
            for label, entry in others
            if entry.comparison.delta is not None
        ]
    return lines


def _adjusted(others: Sequence[tuple[str, Entry]]) -> list[float]:
    p_values = [entry.checkpoint.p for _, entry in others if entry.checkpoint]
    return holm(p_values) if p_values else []


def _change(label: str, delta: float, base: str) -> str:
    return f"{label} {delta:+.2f} points over {base}" if delta >= 0 else f"{label} {-delta:.2f} points below {base}"


def _support(entry: Entry, checkpoint_p: float | None) -> str:
    """What stands behind a difference: an interval where n supports one."""
    c, k = entry.comparison, entry.checkpoint
    if c.low is not None and c.high is not None:
        verdict = "" if c.significant else ": no difference shown"
        return f"95 % CI {c.low:.2f} to {c.high:.2f}, {p_in_words(c.p)}, {c.n} seeds{verdict}"
    if k is not None:
        return (
            f"one seed. Checkpoint-level: {k.only_second} images gained and {k.only_first} lost of {k.images:,} "
            f"(exact McNemar {p_in_words(checkpoint_p)} by Holm, paired bootstrap {k.low:.2f} to {k.high:.2f}); this "
            "is about these two checkpoints, not the recipes"
        )
    seeds = "one seed" if c.n == 1 else f"{c.n} seeds"
    return f"{seeds}: no interval can be given"


def detectable(rows: Sequence[Row], datasets: Sequence[str]) -> list[str]:
    """The minimum detectable difference on each data set, where the seeds support one."""
    return [
        line
        for dataset in datasets
        for line in _detectable(rows, dataset, f" on {dataset}" if len(datasets) > 1 else "")
    ]


def _detectable(rows: Sequence[Row], dataset: str, on: str) -> list[str]:
    scores = {row.entries[dataset].ids: row.entries[dataset].values.get("last.top1", ()) for row in rows}
    groups = [g for g in scores.values() if g]
    variance, freedom = pooled_variance(groups)
    if len(groups) < 2 or not freedom or not variance or min(map(len, groups)) < 2:
        return []
    seeds, sd = min(map(len, groups)), float(np.sqrt(variance))
    least = minimum_detectable_difference(len(groups) - 1, seeds, sd)
    return [
        f"With {seeds} seeds and a seed deviation of {sd:.2f} points, a difference of {least:.2f} points{on} would "
        "have been found four times in five (the minimum detectable difference)."
    ]


def p_in_words(p: float | None) -> str:
    return "p unknown" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def seed_lines(table: Table) -> list[str]:
    """Every seed's top-1: means hide what a reader should see."""
    lines = []
    for row in table.rows:
        for dataset in table.datasets:
            values = row.entries[dataset].values.get("last.top1", ())
            if len(values) > 1:
                on = f" on {dataset}" if len(table.datasets) > 1 else ""
                lines.append(f"{row.label}{on}: {', '.join(f'{v:.2f}' for v in values)}")
    return lines


def pair_line(pair: Pair, several: bool) -> str:
    """A further pair as a sentence."""
    change = _change(pair.second, pair.delta, pair.first) + (f" on {pair.dataset}" if several else "")
    if pair.low is None or pair.high is None:
        return f"{change}: no interval can be given with {pair.n[0]} and {pair.n[1]} seeds."
    verdict = "" if pair.p is not None and pair.p < 0.05 else ": no difference shown"
    return f"{change}, 95 % CI {pair.low:.2f} to {pair.high:.2f}, {p_in_words(pair.p)}{verdict}."
