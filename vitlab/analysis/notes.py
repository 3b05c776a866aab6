"""Footnotes: missing cells, unequal numbers of seeds, confounds, and what the seeds of a row vary."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vitlab.analysis.compare_cells import saw_the_same, values_of
from vitlab.analysis.conditions import COLUMN, PAIRED, Against, Condition, config_columns, varying
from vitlab.analysis.prose import p_in_words
from vitlab.analysis.scatter import excess_line, excess_noise
from vitlab.analysis.statistics import unequal_spread
from vitlab.analysis.table_model import Entry, Row, TableSpec
from vitlab.study.mixture import mixtures


def row_notes(
    frame: pd.DataFrame,
    conditions: Sequence[Condition],
    against: Against,
    entries: Mapping[str, Sequence[Entry]],
    spec: TableSpec,
) -> tuple[list[tuple[str, ...]], list[str]]:
    """The footnote lines of each condition, and those of all lines that `strict=true` refuses."""
    confounds = [c for c in varying(frame) if c not in conditions[0].keys and not c.startswith("dataset.")]
    notes, flags = [], []
    for k, condition in enumerate(conditions):
        lines_of_row = [spec.footnotes[condition.label]] if condition.label in spec.footnotes else []
        twin = next((c.label for c in conditions[:k] if condition.members and c.members == condition.members), None)
        if twin and not lines_of_row:
            lines_of_row.append(f"the same cells as {twin}, counted once")
        own = against.own[k]
        gaps = _within(frame, condition)
        if own is None:
            gaps.append(f"its block has no baseline ({against.phrase}), so it is not compared")
        for dataset, column in entries.items():
            on = f"on {dataset}: " if len(entries) > 1 else ""
            most = max(e.comparison.n for e in column)
            entry = column[k]
            if entry.missing and not (twin and twin in (c.label for c in conditions[:k])):
                gaps.append(on + "; ".join(entry.missing))
            if 0 < entry.comparison.n < most:
                gaps.append(f"{on}{entry.comparison.n} of {most} seeds")
            base = conditions[k if own is None else own]
            if own is not None and not _pairable(frame, column[own], entry):
                gaps.append(
                    f"{on}not compared image by image with {base.label}: the records do not name the same evaluation "
                    "images"
                )
            gaps += [on + line for line in _beyond(frame, condition, base, dataset, confounds)]
        notes.append((*lines_of_row, *gaps))
        flags += [f"{condition.label}: {gap}" for gap in gaps]
    return notes, flags


def _pairable(frame: pd.DataFrame, base: Entry, entry: Entry) -> bool:
    """False where two single checkpoints cannot be compared image by image because of their records."""
    if "data" not in frame or len(base.ids) != 1 or len(entry.ids) != 1 or base.ids == entry.ids:
        return True
    first, second = (frame.index[frame["id"] == e.ids[0]][0] for e in (base, entry))
    return saw_the_same(frame, (first, second))


def _within(frame: pd.DataFrame, condition: Condition) -> list[str]:
    """Fields that the row leaves open and in which its cells differ."""
    members = frame.loc[list(condition.members)]
    differing = sorted(k for k in condition.keys if members[k].map(repr).nunique() > 1)
    return [f"its cells differ in {', '.join(differing)}"] if differing else []


def _beyond(
    frame: pd.DataFrame, condition: Condition, base: Condition, dataset: str, columns: Sequence[str]
) -> list[str]:
    """Differences between a row and the baseline (or within the baseline) other than the ablated factor."""
    lines = []
    for column in columns:
        here, there = (_values(frame, c, dataset, column) for c in (condition, base))
        if condition is base and len(here) > 1:
            lines.append(f"its cells differ among themselves in {column}: {', '.join(here)}")
        elif condition is not base and here and there and here != there:
            lines.append(f"differs in {column} too: {', '.join(here)}, where {base.label} has {', '.join(there)}")
    return lines


def _values(frame: pd.DataFrame, condition: Condition, dataset: str, column: str) -> list[str]:
    datasets, values = (values_of(frame, condition.members, key) for key in (COLUMN, column))
    return sorted({_shown(value) for value, own in zip(values, datasets, strict=True) if own == dataset})


def _shown(value: Any) -> str:
    return "none" if value is None or value != value else str(value)


def _not_deits(finished: pd.DataFrame) -> list[str]:
    """How cells of recipe=deit differ from DeiT's own training."""
    if "label.recipe" not in finished or "recipe.precision" not in finished:
        return []
    cells = finished[(finished["label.recipe"] == "deit") & (finished["recipe.precision"] == "bf16")]
    note = "recipe=deit trains in bf16 autocast, where DeiT trains in fp16 with loss scaling; conf/recipe/deit.yaml"
    return [f"{note} names every difference"] if len(cells) else []


def table_notes(
    frame: pd.DataFrame,
    rows: Sequence[Row],
    left_out: Sequence[str],
    unreadable: Sequence[str],
    mixed_data: Sequence[str],
    spec: TableSpec,
) -> tuple[list[str], list[str]]:
    """Notes on the whole table, and those of them that `strict=true` refuses (they are in both).

    `frame` holds the cells of the rows alone; `left_out` are those in no row, `unreadable` those without a
    readable configuration, `mixed_data` what `leave_out_other_images` found, all as text.
    """
    finished = frame[frame["state"] == "finished"]
    flags = [f"in no row of this table, by their values: {'; '.join(left_out)}"] if left_out else []
    flags += [f"in no row of this table: {cell}" for cell in unreadable]
    if "faults" in frame:
        damaged = frame[frame["faults"].notna() & (frame["state"] != "damaged")]  # those are in their rows' notes
        for name, faults in zip(damaged["name"], damaged["faults"], strict=True):
            flags += [f"{name}: {fault}" for fault in faults.splitlines()]
    flags += [*mixed_data, *_mixtures(finished)]
    notes = [*flags, *_not_deits(finished), *_noise(rows)]
    for dataset in rows[0].entries if spec.statistics == "pooled" else ():
        p = unequal_spread([g for row in rows if not _copied(row, rows) for g in [_scores(row, dataset)]])
        if p is not None and p < 0.01:
            on = f" on {dataset}" if len(rows[0].entries) > 1 else ""
            notes.append(
                f"statistics=pooled assumes equal scatter, and it is not equal{on} (Bartlett, {p_in_words(p)}): these "
                "intervals are too wide for rows with less scatter and too narrow for the others; leave it out"
            )
    return notes, flags


def _noise(rows: Sequence[Row]) -> list[str]:
    """Compare the seeds' scatter with that of converged training, on each data set."""
    lines = []
    for dataset in rows[0].entries:
        entries = [row.entries[dataset] for row in rows if not _copied(row, rows)]
        excess = excess_noise((e.comparison.n, e.scatter) for e in entries if e.scatter is not None)
        if excess is not None:
            lines.append(excess_line(excess, f" on {dataset}" if len(rows[0].entries) > 1 else ""))
    return lines


def _mixtures(finished: pd.DataFrame) -> list[str]:
    """Differences between the last attempts at the cells, and between the attempts at one cell."""
    if "attempts" not in finished:
        return []
    attempts = [json.loads(text) if isinstance(text, str) else [] for text in finished["attempts"]]
    lines = [f"the cells mix {phrase}" for phrase in mixtures(cell[-1] for cell in attempts if cell)]
    for name, cell in zip(finished["name"], attempts, strict=True):
        if within := mixtures(cell):
            lines.append(f"{name} was resumed, and mixes {'; '.join(within)}")
    return lines


def _scores(row: Row, dataset: str) -> tuple[float, ...]:
    return row.entries[dataset].scores


def _copied(row: Row, rows: Sequence[Row]) -> bool:
    """Whether an earlier row shows the same cells."""
    ids = [entry.ids for entry in row.entries.values()]
    return any(ids == [e.ids for e in other.entries.values()] for other in rows[: rows.index(row)])


SEED_COLUMNS = ("pretrain.seed", "dataset.subset_seed")
"""Seeds in addition to the cell's own."""


def with_paired(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the word `paired` where a further seed follows the cell's, so that it makes no row of its own.

    It follows where it equals the cell's seed in every one of several seeds of cells that are otherwise alike; a lone
    cell is taken as the others are.
    """
    present = [c for c in SEED_COLUMNS if c in frame]
    if not present:
        return frame
    others = [c for c in config_columns(frame) if c not in SEED_COLUMNS]
    keys = [tuple(repr(value) for value in row) for row in frame[others].itertuples(index=False)]
    found = frame.copy()
    for column in present:
        equal = [_equal(a, b) for a, b in zip(frame[column], frame["seed"], strict=True)]
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, key in enumerate(keys):
            groups.setdefault(key, []).append(place)
        following = [g for g in groups.values() if all(equal[p] for p in g)]
        several = [g for g in following if frame["seed"].iloc[g].nunique() > 1]
        if several:
            chosen = {p for g in following for p in g}
            values = [PAIRED if p in chosen else v for p, v in enumerate(frame[column])]
            found[column] = pd.Series(values, index=frame.index, dtype=object)
    return found


def _equal(value: object, seed: object) -> bool:
    return value is not None and value == value and value == seed


FURTHER_SEEDS = {"pretrain.seed": "pre-training", "dataset.subset_seed": "subset of the training images"}
"""Seeds that may follow the cell's own → what they draw."""


def varied_lines(
    frame: pd.DataFrame, conditions: Sequence[Condition]
) -> tuple[list[tuple[str, ...]], list[str], list[str]]:
    """What the seeds vary: a line for each condition, or one for all; and rows whose seeds vary other things."""
    lines_of_row = [_line(frame, c) for c in conditions]
    known = [line for line in dict.fromkeys(lines_of_row) if line]
    confounds = []
    for column, name in FURTHER_SEEDS.items():
        rows = [_paired(frame, c, column) for c in conditions]
        paired, fixed = ([c.label for c, r in zip(conditions, rows, strict=True) if k in r] for k in (True, False))
        if paired and fixed:
            confounds.append(
                f"the {name} varies with the seed in {', '.join(paired)} and not in {', '.join(fixed)}: their "
                "intervals do not hold the same randomness"
            )
    if len(known) == 1:
        return [()] * len(conditions), [f"seeds vary {known[0]}"], confounds
    return [(f"its seeds vary {line}",) if line else () for line in lines_of_row], [], confounds


def _line(frame: pd.DataFrame, condition: Condition) -> str:
    if not condition.members or frame.loc[list(condition.members), "seed"].nunique() < 2:
        return ""
    kinds = set(map(str, values_of(frame, condition.members, "pretrain.kind")))
    start = "initialisation" if kinds <= {"scratch", "None"} else "the initialisation that the start leaves open"
    varies, fixed = [start, "order and augmentation"], []
    if kinds == {"checkpoint"}:
        fixed.append("the checkpoint")
    for column, name in FURTHER_SEEDS.items():
        if paired := _paired(frame, condition, column):
            (varies if all(paired) else fixed).append(f"the {name}")
    if any(values_of(frame, condition.members, "dataset.val_fraction")):
        fixed.append("the images set aside to evaluate on")
    return ", ".join(varies) + (f"; not {', '.join(fixed)}" if fixed else "")


def _paired(frame: pd.DataFrame, condition: Condition, column: str) -> list[bool]:
    """For each cell of a row in which the further seed acts, whether it follows the cell's own."""

    def values(name: str) -> list[Any]:
        return [None if value != value else value for value in values_of(frame, condition.members, name)]

    if column == "pretrain.seed":
        acts = [kind == "cell" for kind in values("pretrain.kind")]
    else:
        counts, shares = values("dataset.train_per_class"), values("dataset.train_fraction")
        acts = [count is not None or (share or 1) < 1 for count, share in zip(counts, shares, strict=True)]
    return [seed == PAIRED for seed, own in zip(values(column), acts, strict=True) if own]
