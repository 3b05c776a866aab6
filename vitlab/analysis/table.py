"""From cells to the model of a table: its entries, and the comparisons between them."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vitlab.analysis.compare_cells import REFUSED, leave_out_other_images
from vitlab.analysis.conditions import COLUMN, Against, Condition, dataset_labels, find_baselines, find_conditions, same
from vitlab.analysis.notes import row_notes, table_notes, varied_lines, with_paired
from vitlab.analysis.predictions import all_hits, compare_classes
from vitlab.analysis.prose import caption, detectable_lines, findings, pairing_lines
from vitlab.analysis.scatter import Scatter, scatter_of, with_widths
from vitlab.analysis.statistics import CheckpointComparison, compare_checkpoints, interaction
from vitlab.analysis.table_model import SETTINGS, Entry, Pair, Row, Table, TableSpec
from vitlab.config import ConfigError, suggest
from vitlab.core.comparisons import Comparison, Group, Rule, compare, not_beaten, supported
from vitlab.core.metrics import Figure, figure, figures


def build_table(frame: pd.DataFrame, spec: TableSpec) -> Table:
    """Lay out the cells of `frame` (see `collect`). Raises ConfigError for a factor or row that no run has."""
    known = frame[frame["seed"].notna()] if "seed" in frame else frame[:0]  # others have no readable configuration
    unreadable = [in_words(frame, i) for i in frame.index.difference(known.index)]
    if not len(known):
        if unreadable:
            raise ConfigError("output_dir", f"no cell can be read: {unreadable[0]}")
        raise ConfigError("output_dir", "no cell has a record yet; train with python run.py first")
    known = with_paired(known)
    frame = known.assign(**{COLUMN: dataset_labels(known)})
    if spec.margin is not None and spec.margin <= 0:
        raise ConfigError("margin", f"got {spec.margin:g}, allowed: more than 0, in points; for instance margin=0.5")
    conditions = find_conditions(frame, spec)
    shown = {i for condition in conditions for i in condition.members}
    left_out = [in_words(frame, i) for i in frame.index if i not in shown]
    frame, mixed_data = leave_out_other_images(frame.loc[[i in shown for i in frame.index]], spec.mixed_data)
    datasets = tuple(dict.fromkeys(frame[COLUMN]))
    conditions, against = find_baselines(conditions, spec, len(datasets))
    entries = build_entries(frame, conditions, against, spec, datasets)
    keys = {title: key for title, key in spec.ticks.items() if key in frame}
    notes, flagged = row_notes(frame, conditions, against, entries, spec)
    varied, varied_by_all, confounds = varied_lines(frame, conditions)
    rows = tuple(
        Row(
            condition.label,
            {title: _tick(frame, condition, conditions[against.own[i] or 0], key) for title, key in keys.items()},
            {d: entries[d][i] for d in datasets},
            (*notes[i], *varied[i]),
        )
        for i, condition in enumerate(conditions)
    )
    pairs = _pairs(rows, datasets, spec)
    general, flags = table_notes(frame, rows, left_out, unreadable, mixed_data, spec)
    rule, margin = spec.statistics, spec.margin
    classes, confusions = compare_classes(frame, rows, datasets, rule, margin) if spec.per_class else ([], [])
    return Table(
        name=spec.name,
        title=spec.title,
        caption=caption(frame, spec, rows, against),
        datasets=datasets,
        rows=rows,
        findings=tuple(findings(rows, datasets, spec)),
        detectable=tuple(detectable_lines(rows, datasets, spec, against.whole)),
        notes=(*general, *confounds, *varied_by_all, *pairing_lines(rows, datasets, spec, against.whole)),
        flags=(*flagged, *flags, *confounds),
        pairs=pairs,
        anova=_anova(frame, conditions, datasets, spec.statistics, figure(spec.metric)),
        statistics=spec.statistics,
        margin=spec.margin,
        columns=spec.columns,
        classes=tuple(classes),
        confusions=tuple(confusions),
        metric=spec.metric,
        against=against.phrase,
    )


def _tick(frame: pd.DataFrame, condition: Condition, baseline: Condition, key: str) -> tuple[bool, bool]:
    value = frame.at[condition.members[0], key] if condition.members else None
    base = frame.at[baseline.members[0], key] if baseline.members else None
    on = value is not None and value == value and bool(value)
    return on, bool(condition.members) and not same(value, base)


def _pairs(rows: Sequence[Row], datasets: Sequence[str], spec: TableSpec) -> tuple[Pair, ...]:
    """The layout's further pairs. Raises ConfigError for a row that the table has not."""
    labels = [row.label for row in rows]
    for pair in spec.pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ConfigError(
                "pairs", f"takes two different rows each, got {list(pair)}; for instance '[[mixup,cutmix]]'"
            )
        for name in pair:
            if name not in labels:
                raise ConfigError("pairs", f"{name!r} is no row of this table.{suggest(name, labels)}")
    wanted = [(labels.index(a), labels.index(b)) for a, b in spec.pairs]
    found = []
    for dataset in datasets if wanted else ():
        groups = [row.entries[dataset].group for row in rows]
        compared = compare(groups, wanted, spec.statistics, stepwise=True)
        for (a, b), c in zip(wanted, compared, strict=True):
            if c.delta is not None:
                n = (groups[a].n, groups[b].n)
                found.append(Pair(labels[a], labels[b], dataset, n, c.delta, c.low, c.high, c.p))
    return tuple(found)


def _anova(
    frame: pd.DataFrame, conditions: Sequence[Condition], datasets: Sequence[str], rule: Rule, shown: Figure
) -> tuple[dict[str, Any], ...]:
    """For a product of two factors, or of conditions and data sets: main effects and interaction."""
    if len(conditions) < 2 or shown.column not in frame:
        return ()
    used = frame.loc[[i for c in conditions for i in dict.fromkeys(c.members)]]
    used = used[~used.index.duplicated()].copy()
    groups = [group for group, _ in conditions[0].levels]
    for condition in reversed(conditions):  # cells in two rows count for the first
        for group, level in (*condition.levels, ("condition", condition.label)):
            used.loc[list(condition.members), f"({group})"] = level
    found: list[dict[str, Any]] = []
    for dataset in datasets if len(groups) == 2 else ():
        alike = used[used[COLUMN] == dataset]
        found += _effects(
            alike, f"({groups[0]})", f"({groups[1]})", groups, dataset if len(datasets) > 1 else None, rule, shown
        )
    if len(datasets) > 1:
        names = [groups[0] if len(groups) == 1 else "condition", "data set"]
        found += _effects(used, "(condition)", COLUMN, names, None, rule, shown)
    return tuple(found)


def _effects(
    data: pd.DataFrame,
    first: str,
    second: str,
    names: Sequence[str],
    dataset: str | None,
    rule: Rule,
    shown: Figure,
) -> list[dict[str, Any]]:
    effects = interaction(data, first, second, metric=shown.column, statistics=rule)
    if effects is None:
        return []
    titles = [names[0], names[1], f"{names[0]} × {names[1]}"]
    return [e | {"effect": t, "dataset": dataset} for e, t in zip(effects.to_dict("records"), titles, strict=True)]


@dataclass(frozen=True)
class _Column:
    """One data set's cells, before anything is compared."""

    members: list[list[int]]
    """For each condition the index labels of its cells."""
    done: list[list[int]]
    """Those with a result, by seed."""
    groups: list[Group]
    first: list[int]
    """For each condition the first that is the same cells under another name, itself otherwise."""
    scatters: list[Scatter | None]

    def pairs(self, own: Sequence[int | None]) -> dict[int, tuple[int, int]]:
        """Condition → (its baseline, itself), each set of cells once."""
        found = {}
        for k, base in enumerate(own):
            if base is not None and self.first[k] == k and self.first[base] != k:
                found[k] = (self.first[base], k)
        return found


def build_entries(
    frame: pd.DataFrame, conditions: Sequence[Condition], against: Against, spec: TableSpec, datasets: Sequence[str]
) -> dict[str, list[Entry]]:
    """For each data set an entry per condition. Rows that are the same cells under another name are counted once."""
    shown = figure(spec.metric)
    columns = {dataset: _column(frame, conditions, dataset, shown) for dataset in datasets}
    pairs = {dataset: column.pairs(against.own) for dataset, column in columns.items()}
    counts = {d: supported(columns[d].groups, list(pairs[d].values()), spec.statistics) for d in datasets}
    entries: dict[str, list[Entry]] = {}
    for dataset, column in columns.items():
        part = counts[dataset] / sum(counts.values()) if against.whole and counts[dataset] else 1.0
        wanted = pairs[dataset]
        found = compare(column.groups, list(wanted.values()), spec.statistics, margin=spec.margin, part=part)
        compared = dict(zip(wanted, found, strict=True))
        once = [k for k in range(len(conditions)) if column.first[k] == k]
        highest = shown.metric.better == "higher"
        ranked = [column.groups[k] if highest else column.groups[k].negated() for k in once]
        best = dict(zip(once, not_beaten(ranked, spec.statistics), strict=True))
        scatters = with_widths(column.groups, column.scatters, list(wanted.values()), spec.statistics, part)
        for k, base in enumerate(against.own):
            versus = None if base is None else (conditions[base].label, base)
            entry = _entry(frame, shown, column, k, compared, best, versus)
            scatter = scatters.get(column.first[k], column.scatters[k])
            entries.setdefault(dataset, []).append(dataclasses.replace(entry, scatter=scatter))
    return entries


def _column(frame: pd.DataFrame, conditions: Sequence[Condition], dataset: str, shown: Figure) -> _Column:
    datasets, seeds = frame[COLUMN].to_dict(), frame["seed"].to_dict()
    members = [[i for i in c.members if datasets[i] == dataset] for c in conditions]
    done = [[i for i, v in zip(m, figures_of(frame, m, shown.column), strict=True) if v is not None] for m in members]
    done = [sorted(d, key=lambda i: int(seeds[i])) for d in done]
    groups = [_group(frame, d, shown) for d in done]
    first = [done.index(d) if d else k for k, d in enumerate(done)]
    has_predictions = shown == figure()  # predictions are those of the last model, right or wrong
    scatters = [
        scatter_of(g, all_hits(frame, d) if has_predictions and len(d) > 1 else None)
        for g, d in zip(groups, done, strict=True)
    ]
    return _Column(members, done, groups, first, scatters)


def _group(frame: pd.DataFrame, cells: Sequence[int], shown: Figure) -> Group:
    values = tuple(v for v in figures_of(frame, cells, shown.column) if v is not None)
    images = [v for v in figures_of(frame, cells, "num_eval") if v and shown.metric.counts]
    return Group(
        values, tuple(int(seed) for seed in frame["seed"].loc[list(cells)]), 100 / min(images) if images else 0.0
    )


def _entry(
    frame: pd.DataFrame,
    shown: Figure,
    column: _Column,
    k: int,
    compared: dict[int, Comparison],
    best: dict[int, bool],
    versus: tuple[str, int] | None,
) -> Entry:
    own, done, rows = column.first[k], column.done[k], column.members[k]
    group, base = column.groups[k], None if versus is None else column.groups[versus[1]]
    values: dict[str, tuple[float, ...]] = {}
    for each in figures():
        if known := [v for v in figures_of(frame, done, each.column) if v is not None]:
            values[each.column] = tuple(known)
    missing = tuple(in_words(frame, i) for i in rows if i not in set(done)) or (("not run",) if not rows else ())
    parameters = figure_of(frame, done[0], "num_parameters") if done else None
    hours = [v for v in figures_of(frame, done, "device_hours") if v is not None]
    alone = Comparison(group.n, group.mean, group.sd, None, None, None, None)
    checkpoint = own in compared and versus is not None
    return Entry(
        values=values,
        metric=shown.column,
        seeds=group.seeds,
        comparison=compared.get(own, alone),
        best=best[own],
        checkpoint=_checkpoints(frame, column.done[versus[1]], done) if checkpoint and versus else None,
        missing=missing,
        ids=tuple(map(str, frame["id"].loc[done])),
        parameters=None if parameters is None else int(parameters),
        device_hours=float(np.sum(hours)) if hours else None,
        images=min((int(v) for v in figures_of(frame, done, "num_eval") if v), default=None),
        versus=versus[0] if versus is not None and versus[1] != k else None,
        centre=base.mean if base is not None and base.n else None,
        settings={c: tuple(sorted({plain_number(v) for v in frame[c].loc[done]}, key=repr))
                  for c in SETTINGS if c in frame},
    )  # fmt: skip


def plain_number(value: Any) -> Any:
    """A frame's number as Python's: None for a missing one, whole ones without a fraction."""
    if value is None or value != value:
        return None
    return int(value) if float(value).is_integer() else float(value)


def figure_of(frame: pd.DataFrame, i: int, column: str) -> float | None:
    if column not in frame:
        return None
    value = frame.at[i, column]
    return None if value is None or value != value else float(value)


def figures_of(frame: pd.DataFrame, rows: Sequence[int], column: str) -> list[float | None]:
    """`figure_of` of several rows: thousands are taken at once."""
    if column not in frame:
        return [None] * len(rows)
    return [None if v is None or v != v else float(v) for v in frame[column].loc[list(rows)]]


def in_words(frame: pd.DataFrame, i: int) -> str:
    """A cell without figures and why: `none/s0 failed (ValueError: …)`, `none/s0: FILE: damaged …`."""
    row = frame.loc[i]
    name, state = (row.get(key) if isinstance(row.get(key), str) else row["id"] for key in ("name", "state"))
    if state == "damaged":
        return f"{name}: {' | '.join(row['faults'].splitlines())}"
    if isinstance(row.get(REFUSED), str):
        return f"{name} {row[REFUSED]}"
    reason = f" ({row['failure']})" if isinstance(row.get("failure"), str) else ""
    return f"{name} {'not evaluated' if state == 'finished' else state}{reason}"


def _checkpoints(frame: pd.DataFrame, baseline: Sequence[int], other: Sequence[int]) -> CheckpointComparison | None:
    """For single seeds with stored predictions: a comparison of these two checkpoints."""
    if len(baseline) != 1 or len(other) != 1:
        return None
    found = all_hits(frame, [baseline[0], other[0]])  # gained and lost images are pairs by position
    return None if found is None else compare_checkpoints(*found)
