"""What stands in each place of a table: the seeds of one condition on one data set, and what they are compared with."""

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

from vitlab.analysis.conditions import COLUMN, Against, Condition
from vitlab.analysis.predictions import all_hits
from vitlab.analysis.same_data import REFUSED
from vitlab.analysis.scatter import Scatter, scatter_of, with_widths
from vitlab.analysis.statistics import CheckpointComparison, compare_checkpoints
from vitlab.analysis.table_model import SETTINGS, Entry, TableSpec
from vitlab.core.comparisons import Comparison, Group, compare, not_beaten, supported
from vitlab.core.metrics import Figure, figure, figures


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
        told = with_widths(column.groups, column.scatters, list(wanted.values()), spec.statistics, part)
        for k, base in enumerate(against.own):
            versus = None if base is None else (conditions[base].label, base)
            entry = _entry(frame, shown, column, k, compared, best, versus)
            scatter = told.get(column.first[k], column.scatters[k])
            entries.setdefault(dataset, []).append(dataclasses.replace(entry, scatter=scatter))
    return entries


def _column(frame: pd.DataFrame, conditions: Sequence[Condition], dataset: str, shown: Figure) -> _Column:
    members = [[i for i in c.members if frame.at[i, COLUMN] == dataset] for c in conditions]
    done = [[i for i in m if figure_of(frame, i, shown.column) is not None] for m in members]
    done = [sorted(d, key=lambda i: int(frame.at[i, "seed"])) for d in done]
    groups = [_group(frame, d, shown) for d in done]
    first = [done.index(d) if d else k for k, d in enumerate(done)]
    told = shown == figure()  # predictions are the last model's, and say right or wrong
    scatters = [
        scatter_of(g, all_hits(frame, d) if told and len(d) > 1 else None) for g, d in zip(groups, done, strict=True)
    ]
    return _Column(members, done, groups, first, scatters)


def _group(frame: pd.DataFrame, cells: Sequence[int], shown: Figure) -> Group:
    values = tuple(float(frame.at[i, shown.column]) for i in cells)
    images = [v for i in cells if (v := figure_of(frame, i, "num_eval")) and shown.metric.counts]
    return Group(values, tuple(int(frame.at[i, "seed"]) for i in cells), 100 / min(images) if images else 0.0)


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
        if known := [v for i in done if (v := figure_of(frame, i, each.column)) is not None]:
            values[each.column] = tuple(known)
    missing = tuple(in_words(frame, i) for i in rows if i not in done) or (("not run",) if not rows else ())
    parameters = figure_of(frame, done[0], "num_parameters") if done else None
    hours = [v for i in done if (v := figure_of(frame, i, "device_hours")) is not None]
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
        ids=tuple(str(frame.at[i, "id"]) for i in done),
        parameters=None if parameters is None else int(parameters),
        device_hours=float(np.sum(hours)) if hours else None,
        images=min((int(v) for i in done if (v := figure_of(frame, i, "num_eval"))), default=None),
        versus=versus[0] if versus is not None and versus[1] != k else None,
        centre=base.mean if base is not None and base.n else None,
        settings={c: tuple(sorted({plain_number(frame.at[i, c]) for i in done}, key=repr))
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
