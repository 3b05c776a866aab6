"""From cells to the model of a table: what stands in each place, and what is compared with what."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitlab.analysis.conditions import COLUMN, Condition, dataset_labels, find_conditions, same
from vitlab.analysis.notes import row_notes, table_notes
from vitlab.analysis.prose import caption, detectable, findings
from vitlab.analysis.sources.wandb_runs import unpacked_hits
from vitlab.analysis.statistics import (
    CheckpointComparison,
    Comparison,
    compare_checkpoints,
    compare_pairs,
    dunnett,
    indistinguishable_from_best,
    interaction,
)
from vitlab.analysis.table_model import SETTINGS, Entry, Pair, Row, Table, TableSpec
from vitlab.config import ConfigError, suggest
from vitlab.study.contents import load_predictions
from vitlab.study.record import Record

FIGURES = ("last.top1", "last.top5", "last.loss", "best.top1", "best.top5", "ema.last.top1", "ema.best.top1")


def build_table(frame: pd.DataFrame, spec: TableSpec) -> Table:
    """Lay out the cells of `frame` (see `collect`). Raises ConfigError for a factor or row that no run has."""
    known = frame[frame["seed"].notna()] if "seed" in frame else frame[:0]  # others have not even a configuration
    unreadable = [_in_words(frame, i) for i in frame.index.difference(known.index)]
    if not len(known):
        if unreadable:
            raise ConfigError("output_dir", f"no cell can be read: {unreadable[0]}")
        raise ConfigError("output_dir", "no cell has a record yet; train with python run.py first")
    frame = known.assign(**{COLUMN: dataset_labels(known)})
    conditions = find_conditions(frame, spec)
    shown = {i for condition in conditions for i in condition.members}
    left_out = [_in_words(frame, i) for i in frame.index if i not in shown]
    frame = frame.loc[[i in shown for i in frame.index]]
    datasets = tuple(dict.fromkeys(frame[COLUMN]))
    entries = {d: _entries(frame, conditions, d) for d in datasets}
    keys = {title: key for title, key in spec.ticks.items() if key in frame}
    notes, flagged = row_notes(frame, conditions, entries, spec)
    rows = tuple(
        Row(
            condition.label,
            {title: _tick(frame, condition, conditions[0], key) for title, key in keys.items()},
            {d: entries[d][i] for d in datasets},
            notes[i],
        )
        for i, condition in enumerate(conditions)
    )
    pairs = _pairs(rows, datasets, spec)
    general, flags = table_notes(frame, rows, left_out, unreadable)
    return Table(
        name=spec.name,
        title=spec.title,
        caption=caption(frame, spec, rows),
        datasets=datasets,
        rows=rows,
        findings=tuple(findings(rows, datasets)),
        detectable=tuple(detectable(rows, datasets)),
        notes=tuple(general),
        flags=(*flagged, *flags),
        pairs=pairs,
        anova=_anova(frame, conditions, datasets),
    )


def _entries(frame: pd.DataFrame, conditions: Sequence[Condition], dataset: str) -> list[Entry]:
    """One data set's column. Rows that are the same cells under another name are counted once."""
    members = [[i for i in c.members if frame.at[i, COLUMN] == dataset] for c in conditions]
    done = [[i for i in m if _figure(frame, i, "last.top1") is not None] for m in members]
    done = [sorted(d, key=lambda i: int(frame.at[i, "seed"])) for d in done]
    groups = [[float(frame.at[i, "last.top1"]) for i in d] for d in done]
    first = [done.index(d) for d in done]
    once = [k for k in range(len(done)) if first[k] == k or not done[k]]
    compared = dict(zip(once, dunnett([groups[k] for k in once], 0), strict=True))
    best = dict(zip(once, indistinguishable_from_best([groups[k] for k in once]), strict=True))
    entries = []
    for k, rows in enumerate(members):
        own = k if k in compared else first[k]
        figures = {}
        for column in FIGURES:
            values = [v for i in done[k] if (v := _figure(frame, i, column)) is not None]
            if values:
                figures[column] = tuple(values)
        missing = tuple(_in_words(frame, i) for i in rows if i not in done[k]) or (("not run",) if not rows else ())
        parameters = _figure(frame, done[k][0], "num_parameters") if done[k] else None
        hours = [v for i in done[k] if (v := _figure(frame, i, "device_hours")) is not None]
        entry = Entry(
            values=figures,
            seeds=tuple(int(frame.at[i, "seed"]) for i in done[k]),
            comparison=compared[own],
            best=best[own],
            checkpoint=_checkpoints(frame, done[0], done[k]) if own else None,
            missing=missing,
            ids=tuple(str(frame.at[i, "id"]) for i in done[k]),
            parameters=None if parameters is None else int(parameters),
            device_hours=float(np.sum(hours)) if hours else None,
            settings={c: tuple(sorted({plain_number(frame.at[i, c]) for i in done[k]}, key=repr))
                      for c in SETTINGS if c in frame},
        )  # fmt: skip
        entries.append(entry)
    return entries


def plain_number(value: Any) -> Any:
    """A frame's number as Python's: None for a missing one, whole ones without a fraction."""
    if value is None or value != value:
        return None
    return int(value) if float(value).is_integer() else float(value)


def _figure(frame: pd.DataFrame, i: int, column: str) -> float | None:
    if column not in frame:
        return None
    value = frame.at[i, column]
    return None if value is None or value != value else float(value)


def _in_words(frame: pd.DataFrame, i: int) -> str:
    """A cell without figures and why: `none/s0 failed (ValueError: …)`, `none/s0: FILE: damaged …`."""
    row = frame.loc[i]
    name, state = (row.get(key) if isinstance(row.get(key), str) else row["id"] for key in ("name", "state"))
    if state == "damaged":
        return f"{name}: {' | '.join(row['faults'].splitlines())}"
    reason = f" ({row['failure']})" if isinstance(row.get("failure"), str) else ""
    return f"{name} {'not evaluated' if state == 'finished' else state}{reason}"


def _checkpoints(frame: pd.DataFrame, baseline: Sequence[int], other: Sequence[int]) -> CheckpointComparison | None:
    """For single seeds with stored predictions: these two checkpoints beside one another."""
    if len(baseline) != 1 or len(other) != 1:
        return None
    first, second = (_hits(frame, i) for i in (baseline[0], other[0]))
    if first is None or second is None or len(first) != len(second):
        return None
    return compare_checkpoints(first, second)


def _hits(frame: pd.DataFrame, i: int) -> np.ndarray | None:
    """Which evaluation images the cell's last model gets right (N,) bool; from its folder, or from W&B's summary."""
    packed = frame.at[i, "hits"] if "hits" in frame else None
    if isinstance(packed, str):
        return unpacked_hits(packed)
    if "folder" not in frame or "predictions.npz" in str(frame.at[i, "faults"] if "faults" in frame else ""):
        return None
    content = load_predictions(Record(Path(str(frame.at[i, "folder"]))))
    return None if content is None else content["label"] == content["top5"][:, 0]


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
        groups = [row.entries[dataset].values.get("last.top1", ()) for row in rows]
        compared: list[Comparison] = compare_pairs(groups, wanted)
        for (a, b), c in zip(wanted, compared, strict=True):
            if c.delta is not None:
                n = (len(groups[a]), len(groups[b]))
                found.append(Pair(labels[a], labels[b], dataset, n, c.delta, c.low, c.high, c.p))
    return tuple(found)


def _anova(frame: pd.DataFrame, conditions: Sequence[Condition], datasets: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """For a product of two factors, or of conditions and data sets: main effects and interaction."""
    if len(conditions) < 2 or "last.top1" not in frame:
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
        found += _effects(alike, f"({groups[0]})", f"({groups[1]})", groups, dataset if len(datasets) > 1 else None)
    if len(datasets) > 1:
        names = [groups[0] if len(groups) == 1 else "condition", "data set"]
        found += _effects(used, "(condition)", COLUMN, names, None)
    return tuple(found)


def _effects(
    data: pd.DataFrame, first: str, second: str, names: Sequence[str], dataset: str | None
) -> list[dict[str, Any]]:
    effects = interaction(data, first, second)
    if effects is None:
        return []
    titles = [names[0], names[1], f"{names[0]} × {names[1]}"]
    return [e | {"effect": t, "dataset": dataset} for e, t in zip(effects.to_dict("records"), titles, strict=True)]
