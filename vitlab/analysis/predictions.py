"""What cells predicted on the evaluation images: which are right, and the effect of a condition on every class."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitlab.analysis.compare_cells import saw_the_same, values_of
from vitlab.analysis.table_model import ClassEffect, Entry, Row
from vitlab.core.comparisons import Group, Rule, compare
from vitlab.core.errors import ConfigError
from vitlab.core.wandb import unpack_hits
from vitlab.study.contents import load_answers, load_predictions
from vitlab.study.record import Record


def hits(frame: pd.DataFrame, cells: Sequence[int]) -> list[np.ndarray | None]:
    """Which evaluation images each cell's last model gets right (N,) bool; None where that is not stored."""
    found = []
    for packed, own in zip(values_of(frame, cells, "hits"), answers(frame, cells), strict=True):
        if isinstance(packed, str):
            found.append(unpack_hits(packed))
        else:
            found.append(None if own is None else own[0] == own[1])
    return found


def answers(frame: pd.DataFrame, cells: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray] | None]:
    """For each cell the class and the predicted class of every evaluation image, (N,) each, or None.

    W&B's summaries hold neither.
    """
    for folder, faults in zip(values_of(frame, cells, "folder"), values_of(frame, cells, "faults"), strict=True):
        known = isinstance(folder, str) and "predictions.npz" not in str(faults)
        yield load_answers(Record(Path(folder))) if known else None


def recorded_class_names(frame: pd.DataFrame, i: int) -> tuple[str, ...] | None:
    """The classes' names, as the cell's record has them."""
    if "folder" not in frame or not isinstance(frame.at[i, "folder"], str):
        return None
    content = load_predictions(Record(Path(frame.at[i, "folder"])))
    return None if content is None or "classes" not in content else tuple(map(str, content["classes"]))


def all_hits(frame: pd.DataFrame, cells: Sequence[int]) -> np.ndarray | None:
    """(S, N) bool of S cells; None where one of them has none, or their records do not name the same images."""
    if not cells or not saw_the_same(frame, cells):
        return None
    found = hits(frame, cells)
    known = [array for array in found if array is not None]
    if len(known) < len(cells) or len({len(array) for array in known}) > 1:
        return None
    return np.stack(known)


@dataclass(frozen=True)
class _Answers:
    """The predictions of the seeds of one condition on the same N images."""

    label: np.ndarray
    """(N,) the class of each image."""
    predicted: np.ndarray
    """(S, N)."""

    def group(self, number: int, seeds: tuple[int, ...]) -> Group:
        """Each seed's share, in percent, of the images of a class that it gets right."""
        own = self.label == number
        shares = 100 * (self.predicted[:, own] == number).mean(1)
        return Group(tuple(map(float, shares)), seeds, 100 / int(own.sum()))

    def confusion(self, count: int) -> np.ndarray:
        """(C, C): how many images of one class a seed takes for another, on average; 0 where it is right."""
        places = (self.label * count + self.predicted).ravel()
        found = np.bincount(places, minlength=count * count).reshape(count, count) / len(self.predicted)
        np.fill_diagonal(found, 0.0)
        return found


def compare_classes(
    frame: pd.DataFrame, rows: Sequence[Row], datasets: Sequence[str], rule: Rule, margin: float | None
) -> tuple[list[ClassEffect], list[str]]:
    """The effects on every class, simultaneous over the classes of a row, and the lines on confusions and gaps.

    Raises ConfigError where no cell's record holds what was predicted.
    """
    effects: list[ClassEffect] = []
    lines: list[str] = []
    for dataset in datasets:
        known = {row.label: _answers(frame, row.entries[dataset]) for row in rows}
        names = _names(frame, rows, dataset, known)
        on = f" on {dataset}" if len(datasets) > 1 else ""
        for row in rows:
            entry = row.entries[dataset]
            if entry.comparison.delta is None or entry.versus is None:
                continue
            base = next(r for r in rows if r.label == entry.versus)
            first, second = known[base.label], known[row.label]
            if first is None or second is None or not np.array_equal(first.label, second.label):
                lines.append(f"{row.label}{on}: no predictions of the same images in its records and {base.label}'s")
                continue
            effects += _effects(row.label, dataset, (base, first), (row, second), names, rule, margin)
            lines += _grown(row.label + on, first, second, names)
        present = {int(n) for a in known.values() if a is not None for n in np.unique(a.label)}
        if absent := [name for number, name in enumerate(names) if present and number not in present]:
            lines.append(f"classes without test images{on}: {', '.join(absent)}")
    if not effects:
        raise ConfigError(
            "per_class",
            "no row and its baseline have records of what was predicted (predictions.npz; W&B's summaries hold only "
            "which images are right); leave it out",
        )
    return effects, lines


def _answers(frame: pd.DataFrame, entry: Entry) -> _Answers | None:
    cells = [i for identity in entry.ids for i in frame.index[frame["id"] == identity][:1]]
    found = list(answers(frame, cells))
    known = [pair for pair in found if pair is not None]
    if not known or len(known) < len(found) or any(not np.array_equal(known[0][0], label) for label, _ in known):
        return None
    return _Answers(known[0][0].astype(int), np.stack([predicted for _, predicted in known]).astype(int))


def _names(
    frame: pd.DataFrame, rows: Sequence[Row], dataset: str, known: dict[str, _Answers | None]
) -> tuple[str, ...]:
    """The classes' names where a record has them, else their numbers."""
    highest = max((int(max(a.label.max(), a.predicted.max())) for a in known.values() if a is not None), default=-1)
    for row in rows:
        for identity in row.entries[dataset].ids:
            found = recorded_class_names(frame, frame.index[frame["id"] == identity][0])
            if found is not None and len(found) > highest:
                return found
    return tuple(f"class {number}" for number in range(highest + 1))


def _effects(
    label: str, dataset: str, base: tuple[Row, _Answers], row: tuple[Row, _Answers], names: Sequence[str], rule: Rule,
    margin: float | None,
) -> list[ClassEffect]:  # fmt: skip
    present = [int(number) for number in np.unique(base[1].label)]
    groups = [a.group(n, r.entries[dataset].seeds) for r, a in (base, row) for n in present]
    pairs = [(i, len(present) + i) for i in range(len(present))]
    found = compare(groups, pairs, rule, margin=margin)
    images = [int((base[1].label == number).sum()) for number in present]
    return [
        ClassEffect(label, base[0].label, dataset, names[number], images[i], groups[i].mean, found[i])
        for i, number in enumerate(present)
    ]


def _grown(label: str, first: _Answers, second: _Answers, names: Sequence[str]) -> list[str]:
    """The confusion that grew most, by the mean number of images of a seed."""
    before, after = first.confusion(len(names)), second.confusion(len(names))
    grown = after - before
    true, taken = np.unravel_index(int(grown.argmax()), grown.shape)
    if grown[true, taken] <= 0:
        return [f"{label}: no confusion grew"]
    return [
        f"{label}: the confusion that grew most is {names[int(true)]} taken for {names[int(taken)]}, "
        f"{before[true, taken]:.1f} → {after[true, taken]:.1f} of {int((first.label == true).sum()):,} images a seed"
    ]
