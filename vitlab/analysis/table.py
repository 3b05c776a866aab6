"""From cells to the model of a table: what stands in each place, and what is compared with what."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from vitlab.analysis.conditions import COLUMN, Condition, dataset_labels, find_baselines, find_conditions, same
from vitlab.analysis.entries import build_entries, in_words
from vitlab.analysis.notes import row_notes, table_notes
from vitlab.analysis.per_class import compare_classes
from vitlab.analysis.prose import caption, detectable_lines, findings, pairing_lines
from vitlab.analysis.same_data import leave_out_other_images
from vitlab.analysis.statistics import interaction
from vitlab.analysis.table_model import Pair, Row, Table, TableSpec
from vitlab.analysis.varied import varied_lines, with_paired
from vitlab.config import ConfigError, suggest
from vitlab.core.comparisons import Rule, compare
from vitlab.core.metrics import Figure, figure


def build_table(frame: pd.DataFrame, spec: TableSpec) -> Table:
    """Lay out the cells of `frame` (see `collect`). Raises ConfigError for a factor or row that no run has."""
    known = frame[frame["seed"].notna()] if "seed" in frame else frame[:0]  # others have not even a configuration
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
    for condition in reversed(conditions):  # cells that stand in two rows count for the first
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
