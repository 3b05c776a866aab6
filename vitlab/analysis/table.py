"""The one table model that every format is rendered from, so that they cannot disagree."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitlab.analysis.collect import flatten
from vitlab.analysis.statistics import (
    CheckpointComparison,
    Comparison,
    compare_checkpoints,
    dunnett,
    indistinguishable_from_best,
    interaction,
    pooled_variance,
)
from vitlab.config import ConfigError, choice, plain, suggest
from vitlab.dunnett import minimum_detectable_difference

_LEFT_OPEN = (
    "pretrain.recipe.", "pretrain.augment.",
    "pretrain.dataset.num_classes", "pretrain.dataset.num_train", "pretrain.dataset.num_eval",
)  # fmt: skip
"""What a row does not ask of a pre-training: how it was trained, and counts that follow from what it saw."""
_COLUMN = "(column)"
"""The frame's column that says in which column of the table a cell stands."""


@dataclass(frozen=True)
class TableSpec:
    """How a study is laid out: `conf/table/*.yaml`."""

    name: str
    title: str
    study: str | None = None
    reading: str | None = None
    factor: str | None = None
    """The group whose options are the rows; null: whatever varies."""
    rows: tuple[str, ...] | None = None
    baseline: str | None = None
    ticks: Mapping[str, str] = field(default_factory=dict)
    """Column title → the configuration's key that it shows on (✓) or off (✗)."""
    footnotes: Mapping[str, str] = field(default_factory=dict)
    """Row → what a reader should know of it."""
    reference: str | None = None


@dataclass(frozen=True)
class Entry:
    """One condition on one data set."""

    values: dict[str, tuple[float, ...]]
    """Figure (last.top1, last.top5, best.top1, …) → the value of every seed."""
    seeds: tuple[int, ...]
    comparison: Comparison
    best: bool
    """Not to be told from the best of its data set."""
    checkpoint: CheckpointComparison | None
    missing: tuple[str, ...]
    """Cells without a result, in words."""
    ids: tuple[str, ...]
    parameters: int | None
    device_hours: float | None

    def mean(self, figure: str) -> float | None:
        values = self.values.get(figure, ())
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class Row:
    label: str
    ticks: dict[str, tuple[bool, bool]]
    """Column title → (on, differs from the baseline)."""
    entries: dict[str, Entry]
    """Data set → entry."""
    note: str | None = None


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    caption: str
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    """The baseline first."""
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    """Footnotes: gaps and confounds."""
    flags: tuple[str, ...]
    """The notes that `strict=true` refuses."""
    reference: tuple[dict[str, Any], ...] = ()
    anova: tuple[dict[str, Any], ...] = ()


def build_table(frame: pd.DataFrame, spec: TableSpec, references: Sequence[dict[str, Any]] = ()) -> Table:
    """Lay out the cells of `frame` (see `collect`). Raises ConfigError for a factor or row that no run has."""
    if not len(frame) or "seed" not in frame:
        raise ConfigError("output_dir: no cell has a record yet; train with python run.py first")
    frame = frame.assign(**{_COLUMN: _dataset_labels(frame)})
    conditions = _conditions(frame, spec)
    baseline = _baseline(conditions, spec)
    conditions = [baseline, *(c for c in conditions if c is not baseline)]
    shown = {i for condition in conditions for i in condition.members}
    left_out = [_in_words(frame, i) for i in frame.index if i not in shown]
    frame = frame.loc[[i in shown for i in frame.index]]
    datasets = tuple(dict.fromkeys(frame[_COLUMN]))
    entries = {d: _entries(frame, conditions, d) for d in datasets}
    ticks = {title: key for title, key in spec.ticks.items() if key in frame}
    rows = tuple(
        Row(
            condition.label,
            {t: _tick(frame, condition, baseline, key) for t, key in ticks.items()},
            {d: entries[d][i] for d in datasets},
            spec.footnotes.get(condition.label),
        )
        for i, condition in enumerate(conditions)
    )
    notes, flags = _notes(frame, conditions, rows, left_out)
    effects = _anova(frame, conditions, datasets)
    return Table(
        spec.name,
        spec.title,
        _caption(frame, spec, rows),
        datasets,
        rows,
        tuple(_findings(rows, datasets)),
        tuple(notes),
        tuple(flags),
        tuple(references),
        effects,
    )


@dataclass(frozen=True)
class _Condition:
    label: str
    members: tuple[int, ...]
    """Index labels of the frame's rows."""
    keys: frozenset[str]
    """The columns that define the condition."""


def _config_columns(frame: pd.DataFrame) -> list[str]:
    return [c for c in frame.columns if c.split(".")[0] in ("model", "dataset", "augment", "pretrain", "recipe")]


def _varying(frame: pd.DataFrame) -> list[str]:
    return [c for c in _config_columns(frame) if frame[c].map(repr).nunique() > 1]


def _conditions(frame: pd.DataFrame, spec: TableSpec) -> list[_Condition]:
    """The rows of the table, each with the cells that are meant by it."""
    if spec.factor and spec.rows:
        return _declared(frame, spec)
    varying = [c for c in _varying(frame) if not c.startswith("dataset.")]
    if spec.factor:
        varying = [c for c in varying if c.startswith(f"{spec.factor}.")]
    found: dict[tuple[str, ...], list[int]] = {}
    for i in frame.index:
        found.setdefault(tuple(repr(frame.at[i, c]) for c in varying), []).append(i)
    return [
        _Condition(_label(frame, members, varying), tuple(members), frozenset(varying)) for members in found.values()
    ]


def _declared(frame: pd.DataFrame, spec: TableSpec) -> list[_Condition]:
    """The rows that the table's file names. A cell belongs to a row by its resolved values, never by its label."""
    assert spec.factor and spec.rows
    conditions, keys = [], [c for c in frame.columns if c.startswith(f"{spec.factor}.")]
    for name in spec.rows:
        values = flatten(plain(choice(spec.factor, name)), f"{spec.factor}.")
        wanted = {k: v for k, v in values.items() if k in keys and not k.startswith(_LEFT_OPEN)}
        members = [i for i in frame.index if all(_same(frame.at[i, k], v) for k, v in wanted.items())]
        conditions.append(_Condition(name, tuple(members), frozenset(keys)))
    if not any(c.members for c in conditions):
        raise ConfigError(f"table: no cell of the study is a row of table={spec.name} ({', '.join(spec.rows)})")
    return conditions


def _same(found: Any, wanted: Any) -> bool:
    if wanted is None:
        return found is None or found != found
    return found == wanted


def _label(frame: pd.DataFrame, members: Sequence[int], varying: Sequence[str]) -> str:
    """Options' names where they tell the conditions apart, else the values that vary."""
    groups = list(dict.fromkeys(c.split(".")[0] for c in varying))
    parts = []
    for group in groups:
        column = f"label.{group}"
        own = [c for c in varying if c.startswith(f"{group}.")]
        label = str(frame.at[members[0], column]) if column in frame else group
        alike = frame[frame[column] == label] if column in frame else frame
        if len(alike[own].map(repr).drop_duplicates()) > 1:
            label = " ".join(f"{c.split('.', 1)[1]}={frame.at[members[0], c]}" for c in own)
        parts.append(label)
    if not parts:
        return str(frame.at[members[0], "label.augment"]) if "label.augment" in frame else "all cells"
    return " / ".join(parts)


def _baseline(conditions: list[_Condition], spec: TableSpec) -> _Condition:
    names = [c.label for c in conditions]
    if spec.baseline is None:
        return next((c for c in conditions if c.label.split(" / ")[0] in ("none", "scratch", "deit")), conditions[0])
    if spec.baseline not in names:
        raise ConfigError(f"baseline: {spec.baseline!r} is no row of this table.{suggest(spec.baseline, names)}")
    return conditions[names.index(spec.baseline)]


def _dataset_labels(frame: pd.DataFrame) -> list[str]:
    """For each cell its data set's name, with what varies within it: data sets never share a column."""
    if "dataset.name" not in frame:
        return ["?"] * len(frame)
    inner = {}
    for name, same in frame.groupby("dataset.name"):
        columns = [c for c in same.columns if c.startswith("dataset.")]
        inner[name] = [c for c in columns if same[c].map(repr).nunique() > 1]
    return [
        " ".join([str(name), *(f"{c.split('.', 1)[1]}={frame.at[i, c]}" for c in inner[name])])
        for i, name in frame["dataset.name"].items()
    ]


def _entries(frame: pd.DataFrame, conditions: Sequence[_Condition], dataset: str) -> list[Entry]:
    members = [[i for i in c.members if frame.at[i, _COLUMN] == dataset] for c in conditions]
    done = [[i for i in m if _figure(frame, i, "last.top1") is not None] for m in members]
    done = [sorted(d, key=lambda i: int(frame.at[i, "seed"])) for d in done]
    groups = [[float(frame.at[i, "last.top1"]) for i in d] for d in done]
    compared, best = dunnett(groups, 0), indistinguishable_from_best(groups)
    entries = []
    for k, rows in enumerate(members):
        figures = {}
        for column in ("last.top1", "last.top5", "last.loss", "best.top1", "best.top5", "ema.last.top1"):
            values = [v for i in done[k] if (v := _figure(frame, i, column)) is not None]
            if values:
                figures[column] = tuple(values)
        missing = tuple(_in_words(frame, i) for i in rows if i not in done[k]) or (("not run",) if not rows else ())
        parameters = _figure(frame, done[k][0], "num_parameters") if done[k] else None
        hours = [v for i in done[k] if (v := _figure(frame, i, "device_hours")) is not None]
        entry = Entry(
            values=figures,
            seeds=tuple(int(frame.at[i, "seed"]) for i in done[k]),
            comparison=compared[k],
            best=best[k],
            checkpoint=_checkpoints(frame, done[0], done[k]) if k else None,
            missing=missing,
            ids=tuple(str(frame.at[i, "id"]) for i in done[k]),
            parameters=None if parameters is None else int(parameters),
            device_hours=float(np.sum(hours)) if hours else None,
        )
        entries.append(entry)
    return entries


def _figure(frame: pd.DataFrame, i: int, column: str) -> float | None:
    if column not in frame:
        return None
    value = frame.at[i, column]
    return None if value is None or value != value else float(value)


def _in_words(frame: pd.DataFrame, i: int) -> str:
    failure = frame.at[i, "failure"] if "failure" in frame else None
    reason = f" ({failure})" if isinstance(failure, str) else ""
    return f"{frame.at[i, 'name'] if 'name' in frame else frame.at[i, 'id']} {frame.at[i, 'state']}{reason}"


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
        count, _, data = packed.partition(":")
        return np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(data)), np.uint8))[: int(count)].astype(
            bool
        )
    file = Path(str(frame.at[i, "folder"])) / "predictions.npz" if "folder" in frame else None
    if file is None or not file.is_file():
        return None
    with np.load(file) as content:
        return content["label"] == content["top5"][:, 0]


def _tick(frame: pd.DataFrame, condition: _Condition, baseline: _Condition, key: str) -> tuple[bool, bool]:
    value = frame.at[condition.members[0], key] if condition.members else None
    base = frame.at[baseline.members[0], key] if baseline.members else None
    on = value is not None and value == value and bool(value)
    return on, bool(condition.members) and not _same(value, base if base == base else None)


def _caption(frame: pd.DataFrame, spec: TableSpec, rows: Sequence[Row]) -> str:
    def one(column: str) -> str:
        values = sorted({str(v) for v in frame[column]}) if column in frame else []
        return ", ".join(values) if len(values) <= 4 else f"{len(values)} different"

    finished = frame[frame["state"] == "finished"]
    size = sorted({int(v) for v in finished["num_eval"].dropna()}) if "num_eval" in finished else []
    counts = sorted({e.comparison.n for r in rows for e in r.entries.values() if e.comparison.n})
    parts = [spec.title]
    if spec.reading:
        parts.append(f"Reading: {spec.reading}")
    parts.append(
        f"Model {one('label.model')}, data set {one('dataset.name')}, recipe {one('label.recipe')} "
        f"({one('recipe.epochs')} epochs), evaluated on {' / '.join(f'{s:,}' for s in size) or '?'} images"
    )
    parts.append(
        "Top-1 and top-5 in percent at the last epoch, which no one chose; the best epoch's beside it is chosen on "
        "the evaluation set"
    )
    if any(str(v) == "cell" for v in frame.get("pretrain.kind", [])):
        parts.append("The pre-training has one seed of its own: the spread covers fine-tuning only")
    if counts == [1]:
        parts.append("One seed each: this supports no ranking")
    elif counts:
        several = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        parts.append(
            f"Mean ± standard deviation over {several} seeds; Δ with simultaneous 95 % intervals and adjusted p "
            "(Dunnett, pooled variance); bold: not to be told from the best"
        )
    return ". ".join(parts) + "."


def _findings(rows: Sequence[Row], datasets: Sequence[str]) -> list[str]:
    """One plain sentence per comparison."""
    lines = []
    for dataset in datasets:
        on = f" on {dataset}" if len(datasets) > 1 else ""
        base = rows[0]
        for row in rows[1:]:
            entry = row.entries[dataset]
            c = entry.comparison
            if c.delta is None:
                continue
            change = f"{row.label} {c.delta:+.2f} points over {base.label}{on}"
            if c.low is not None and c.high is not None:
                verdict = "" if c.significant else ": no difference shown"
                lines.append(f"{change}, 95 % CI {c.low:.2f} to {c.high:.2f}, {_p(c.p)}, {c.n} seeds{verdict}.")
            elif entry.checkpoint is not None:
                k = entry.checkpoint
                lines.append(
                    f"{change}, one seed. Checkpoint-level: {k.only_second} images gained and {k.only_first} lost of "
                    f"{k.images:,} (McNemar {_p(k.p)}, paired bootstrap {k.low:.2f} to {k.high:.2f}); this is "
                    "about these two checkpoints, not the recipes."
                )
            else:
                lines.append(f"{change}, one seed: no interval can be given.")
        groups = [r.entries[dataset].values.get("last.top1", ()) for r in rows]
        counts = [len(g) for g in groups if g]
        variance, freedom = pooled_variance(groups)
        if freedom and len(counts) > 1 and min(counts) > 1:
            least = minimum_detectable_difference(len(counts) - 1, min(counts), float(np.sqrt(variance)))
            lines.append(
                f"With {min(counts)} seeds and a seed deviation of {np.sqrt(variance):.2f} points, a difference of "
                f"{least:.2f} points{on} would have been found four times in five."
            )
    return lines


def _p(p: float | None) -> str:
    return "p unknown" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _notes(
    frame: pd.DataFrame, conditions: Sequence[_Condition], rows: Sequence[Row], left_out: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Footnotes for the reader, and those among them that make a table less than strict."""
    flags = [f"in no row of this table, by their values: {'; '.join(left_out)}"] if left_out else []
    flags += _mixed(frame, conditions)
    for row in rows:
        for dataset, entry in row.entries.items():
            if entry.missing:
                flags.append(f"{row.label} on {dataset}: {'; '.join(entry.missing)}")
    most = max((e.comparison.n for r in rows for e in r.entries.values()), default=0)
    for row in rows:
        for dataset, entry in row.entries.items():
            if 0 < entry.comparison.n < most:
                flags.append(f"{row.label} on {dataset}: {entry.comparison.n} of {most} seeds")
    keys = conditions[0].keys
    confounds = [c for c in _varying(frame) if c not in keys and not c.startswith("dataset.")]
    for column in confounds:
        flags.append(f"the cells differ in {column} too, which is not the ablated factor")
    finished = frame[frame["state"] == "finished"]
    for column, words in (
        ("commit", "code versions"),
        ("device_name", "kinds of device"),
        ("devices", "device counts"),
    ):
        if column in finished and finished[column].nunique(dropna=False) > 1:
            flags.append(f"the cells mix {finished[column].nunique(dropna=False)} {words}")
    notes = [*(f"{row.label}: {row.note}" for row in rows if row.note), *flags]
    return notes, flags


def _mixed(frame: pd.DataFrame, conditions: Sequence[_Condition]) -> list[str]:
    """Rows whose cells differ in what a row leaves open."""
    lines = []
    for condition in conditions:
        members = frame.loc[list(condition.members)]
        differing = sorted(k for k in condition.keys if members[k].map(repr).nunique() > 1)
        if differing:
            lines.append(f"{condition.label}: its cells differ in {', '.join(differing)}")
    return lines


def _anova(
    frame: pd.DataFrame, conditions: Sequence[_Condition], datasets: Sequence[str]
) -> tuple[dict[str, Any], ...]:
    """For a product of conditions and data sets: main effects and interaction."""
    if len(datasets) < 2 or len(conditions) < 2 or "last.top1" not in frame:
        return ()
    data = frame.copy()
    data["condition"] = ""
    for condition in conditions:
        data.loc[list(condition.members), "condition"] = condition.label
    data["data set"] = frame[_COLUMN]
    effects = interaction(data, "condition", "data set")
    return () if effects is None else tuple(effects.to_dict("records"))
