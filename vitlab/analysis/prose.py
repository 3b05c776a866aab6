"""The caption of a table, and one plain sentence per finding."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from vitlab.analysis.conditions import PAIRED, Against, common_brackets, without_brackets
from vitlab.analysis.scatter import pairing_line
from vitlab.analysis.table_model import Entry, Pair, Row, Table, TableSpec
from vitlab.core.comparisons import assumed_scatter, holm, least_differences, seeds_needed
from vitlab.core.metrics import SELECTIONS, Figure, figure

_RULES = {
    "auto": "every row with its own scatter: Welch's t, critical values that hold for any scatters",
    "pooled": "Dunnett, one variance for all rows, asserted by statistics=pooled",
    "paired": "differences of equal seeds, t by Bonferroni, asserted by statistics=paired",
}


def caption(frame: pd.DataFrame, spec: TableSpec, rows: Sequence[Row], against: Against) -> str:
    """Describe what was trained and evaluated, the choice of the figures, and the statistics."""

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
    epochs = f"{one('recipe.epochs')} epoch{'' if one('recipe.epochs') == '1' else 's'}"
    common = common_brackets(frame["label.model"]) if "label.model" in frame else []
    models = sorted({without_brackets(str(label), common) for label in frame.get("label.model", ())})
    called = ", ".join(models) if len(models) <= 4 else f"{len(models)} different"
    sizes = f" (each with {', '.join(common)})" if common else ""
    parts.append(f"Model {called}{sizes}, data set {one('dataset.name')}{recipe} ({epochs}){evaluated}")
    shown = figure(spec.metric)
    if shown == figure():
        parts.append(
            "Top-1 and top-5 in percent at the last epoch (no model selection); the best epoch is chosen on the "
            "evaluation set"
        )
    else:
        title = shown.metric.title[0].upper() + shown.metric.title[1:]
        unit = {"%": " in percent", "": ""}.get(shown.metric.unit, f" in {shown.metric.unit}")
        parts.append(f"{title}{unit} {SELECTIONS[shown.selection]}, {shown.metric.better} is better")
    kinds, seeds = (list(frame[c]) if c in frame else [] for c in ("pretrain.kind", "pretrain.seed"))
    if any(kind == "cell" and seed != PAIRED for kind, seed in zip(kinds, seeds or kinds, strict=True)):
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
        over = " and over the data sets" if against.whole and len(rows[0].entries) > 1 else ""
        parts.append(
            f"Mean ± standard deviation over {several} seeds; Δ to {against.phrase} with 95 % confidence intervals and "
            f"adjusted p that hold for all rows{over} together ({_RULES[spec.statistics]}); bold: no other row is "
            "shown to be better"
        )
    return ". ".join(parts) + "."


def findings(rows: Sequence[Row], datasets: Sequence[str], spec: TableSpec) -> list[str]:
    """One plain sentence per comparison with the baseline."""
    lines, shown = [], figure(spec.metric)
    for dataset in datasets:
        on = f" on {dataset}" if len(datasets) > 1 else ""
        compared = [(row.label, e) for row in rows if (e := row.entries[dataset]).comparison.delta is not None]
        lines += [
            f"{_change(label, entry.comparison.delta or 0.0, entry.versus or '', shown)}{on}, "
            f"{_support(entry, spec.margin, len(compared), shown)}."
            for label, entry in compared
        ]
    return lines


def _change(label: str, delta: float, base: str, shown: Figure) -> str:
    if delta >= 0:
        return f"{label} {shown.shown(delta, sign=True)} {shown.points} over {base}"
    return f"{label} {shown.shown(-delta)} {shown.points} below {base}"


def _support(entry: Entry, margin: float | None, count: int, shown: Figure) -> str:
    """The evidence for a difference: an interval where n supports one."""
    c = entry.comparison
    if c.low is not None and c.high is not None:
        verdict = "" if c.significant else ": no difference shown"
        if c.same and margin is not None:
            verdict = f": same within ±{margin:g}" if not c.significant else f", and same within ±{margin:g}"
        return f"95 % CI {shown.shown(c.low)} to {shown.shown(c.high)}, {p_in_words(c.p)}, {c.n} seeds{verdict}"
    if c.n > 1 and entry.resolution == 0 and not c.sd:
        return f"{c.n} seeds that do not differ, on an unknown number of images: no interval can be given"
    return f"{'one seed' if c.n == 1 else f'{c.n} seeds'}: no conclusion about the condition{_needed(entry, count)}"


def _needed(entry: Entry, count: int) -> str:
    """How many seeds would detect a difference of this size."""
    delta = abs(entry.comparison.delta or 0.0)
    if not entry.resolution or not delta:
        return ""
    scatter = assumed_scatter(100 / entry.resolution)
    seeds = seeds_needed(delta / scatter, count)
    number = f"{seeds} seeds each" if seeds else "more than 100 seeds each"
    return (
        f"; detecting a difference of {delta:.2f} points would take {number}, if they scatter by {scatter:.2f} points"
    )


def checkpoint_lines(table: Table) -> list[str]:
    """Compare single checkpoints on the same images: a statement about these files, never about their conditions."""
    lines = []
    for dataset in table.datasets:
        on = f" on {dataset}" if len(table.datasets) > 1 else ""
        found = [(row, k) for row in table.rows if (k := row.entries[dataset].checkpoint)]
        for (row, k), p in zip(found, holm([k.p for _, k in found]), strict=True):
            lines.append(
                f"{row.label}{on}: {k.only_second} images gained and {k.only_first} lost of {k.images:,} "
                f"against {row.entries[dataset].versus} (exact McNemar {p_in_words(p)} by Holm, paired bootstrap "
                f"{k.low:.2f} to {k.high:.2f})"
            )
    return lines


def _compared_pairs(rows: Sequence[Row], datasets: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """For each data set the indices of every row that has an interval, behind its baseline's."""
    labels = {row.label: i for i, row in enumerate(rows)}
    pairs: dict[str, list[tuple[int, int]]] = {}
    for dataset in datasets:
        seen = set()
        for i, row in enumerate(rows):
            entry = row.entries[dataset]
            if entry.comparison.low is not None and entry.versus is not None and entry.ids not in seen:
                seen.add(entry.ids)
                pairs.setdefault(dataset, []).append((labels[entry.versus], i))
    return pairs


def detectable_lines(rows: Sequence[Row], datasets: Sequence[str], spec: TableSpec, whole: bool) -> list[str]:
    """The minimum detectable difference on each data set, where the seeds support one."""
    pairs = _compared_pairs(rows, datasets)
    lines = []
    for dataset, wanted in pairs.items():
        part = len(wanted) / sum(map(len, pairs.values())) if whole else 1.0
        groups = [row.entries[dataset].group for row in rows]
        least = [v for v in least_differences(groups, wanted, spec.statistics, part) if v is not None]
        seeds = min(min(groups[a].n, groups[b].n) for a, b in wanted)
        on = f" on {dataset}" if len(datasets) > 1 else ""
        shown = figure(spec.metric)
        small, large = shown.shown(min(least)), shown.shown(max(least))
        span = small if small == large else f"{small} to {large}"
        lines.append(
            f"With {seeds} seeds that scatter as these do, a difference of {span} {shown.points}{on} would have been "
            "found four times in five (the minimum detectable difference)."
        )
    return lines


def pairing_lines(rows: Sequence[Row], datasets: Sequence[str], spec: TableSpec, whole: bool) -> list[str]:
    """The effect of pairing on each data set."""
    pairs = _compared_pairs(rows, datasets)
    lines = []
    for dataset, wanted in pairs.items():
        part = len(wanted) / sum(map(len, pairs.values())) if whole else 1.0
        groups = [row.entries[dataset].group for row in rows]
        on = f" on {dataset}" if len(datasets) > 1 else ""
        if line := pairing_line(groups, wanted, spec.statistics, part, on):
            lines.append(line)
    return lines


def p_in_words(p: float | None) -> str:
    return "p unknown" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def seed_lines(table: Table) -> list[str]:
    """A line with every seed's value, which means hide."""
    lines = []
    for row in table.rows:
        for dataset in table.datasets:
            values = row.entries[dataset].scores
            if len(values) > 1:
                on = f" on {dataset}" if len(table.datasets) > 1 else ""
                lines.append(f"{row.label}{on}: {', '.join(map(table.figure.shown, values))}")
    return lines


def pair_line(pair: Pair, several: bool, shown: Figure) -> str:
    """A further pair as a sentence."""
    change = _change(pair.second, pair.delta, pair.first, shown) + (f" on {pair.dataset}" if several else "")
    if pair.low is None or pair.high is None:
        return f"{change}: no interval can be given with {pair.n[0]} and {pair.n[1]} seeds."
    verdict = "" if pair.p is not None and pair.p < 0.05 else ": no difference shown"
    return f"{change}, 95 % CI {shown.shown(pair.low)} to {shown.shown(pair.high)}, {p_in_words(pair.p)}{verdict}."
