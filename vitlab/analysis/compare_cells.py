"""Whether cells can be compared: the images that they were trained and evaluated on, and all differences of two."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitlab.analysis.conditions import COLUMN
from vitlab.core.errors import UserError
from vitlab.core.integrity import Fingerprint, fingerprints_from
from vitlab.core.metrics import figure
from vitlab.study.contents import load_predictions, read_contents
from vitlab.study.record import Record

REFUSED = "(refused)"
"""The frame's column that holds why a finished cell's figures are left out."""


def leave_out_other_images(frame: pd.DataFrame, keep: bool) -> tuple[pd.DataFrame, list[str]]:
    """`frame` without the figures of cells that were evaluated on other images than most of their column of the table
    (of equally many: than the first); `keep` leaves them in. Returns a line for each mixture of images too.

    Mixed training images are a line only: they are what a study may be about.
    """
    lines: list[str] = []
    refused: dict[int, str] = {}
    column = figure().column
    evaluated = (frame["state"] == "finished") & (frame[column].notna() if column in frame else False)
    for dataset in dict.fromkeys(frame[COLUMN]):
        on = f" on {dataset}" if frame[COLUMN].nunique() > 1 else ""
        done = list(frame.index[evaluated & (frame[COLUMN] == dataset)])
        groups = _groups(frame, done, "eval")
        if len(groups) > 1 and keep:
            lines.append(
                f"the cells{on} were evaluated on {len(groups)} different sets of images: {_shown(frame, groups)}"
            )
        elif len(groups) > 1:
            kept = max(groups, key=len)
            others = [i for group in groups if group is not kept for i in group]
            refused |= {i: f"left out: evaluated on other images than {_name(frame, kept[0])}" for i in others}
            lines.append(
                f"evaluated on other images{on} than {_names(frame, kept)}, and left out: {_names(frame, others)}. "
                f"study.rerun='[{','.join(str(frame.at[i, 'id']) for i in others)}]' trains them again on those that "
                "are there now; mixed_data=true of analyze.py shows them as they are"
            )
        trained = _groups(frame, [i for i in done if i not in refused], "train")
        if len(trained) > 1:
            lines.append(
                f"the cells{on} were trained on {len(trained)} different sets of images: {_shown(frame, trained)}"
            )
    if not refused:
        return frame, lines
    figures = [c for c in frame.columns if c.split(".")[0] in ("last", "best", "ema") or c == "device_hours"]
    frame = frame.copy()
    frame.loc[list(refused), figures] = None
    return frame.assign(**{REFUSED: [refused.get(i) for i in frame.index]}), lines


def values_of(frame: pd.DataFrame, cells: Sequence[int], column: str) -> list[Any]:
    """A column's values for some cells, in their order; None for each where there is no such column."""
    return frame[column].loc[list(cells)].tolist() if column in frame else [None] * len(cells)


def saw_the_same(frame: pd.DataFrame, cells: Sequence[int]) -> bool:
    """Whether the records of all cells name the evaluation images of the first; False where one of several has none."""
    if len(cells) < 2:
        return True
    first, *others = (_fingerprint(text, "eval") for text in dict.fromkeys(values_of(frame, cells, "data")))
    return first is not None and all(other is not None and first.agrees(other) for other in others)


def _groups(frame: pd.DataFrame, rows: Sequence[int], split: str) -> list[list[int]]:
    """The rows by the images that they name, in their order; rows that name none are in no group."""
    groups: list[tuple[Fingerprint, list[int]]] = []
    texts = frame["data"].loc[list(rows)] if "data" in frame else [None] * len(rows)
    for i, text in zip(rows, texts, strict=True):
        found = _fingerprint(text, split)
        if found is None:
            continue
        at = next((n for n, (known, _) in enumerate(groups) if known.agrees(found)), None)
        if at is None:
            groups.append((found, [i]))
        else:
            groups[at][1].append(i)
            groups[at] = groups[at][0].joined(found), groups[at][1]
    old = {known.images < 0 for known, _ in groups}
    return [g for known, g in groups if len(old) == 1 or known.images >= 0]


@functools.lru_cache(maxsize=256)
def _fingerprint(text: Any, split: str) -> Fingerprint | None:
    """The fingerprint of a split in a cell's record. Older records hold one text for both, which only their own kind
    equals: those have a negative number of images.
    """
    data = json.loads(text) if isinstance(text, str) else None
    if isinstance(data, str):
        train, _, held_out = data.partition("-")
        return Fingerprint(-1, train if split == "train" else held_out)
    try:
        return fingerprints_from(data).get(split)
    except ValueError:
        return None


def _name(frame: pd.DataFrame, i: int) -> str:
    return str(frame.at[i, "name"])


def _names(frame: pd.DataFrame, rows: Sequence[int]) -> str:
    return ", ".join(_name(frame, i) for i in rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _shown(frame: pd.DataFrame, groups: Sequence[Sequence[int]]) -> str:
    return " | ".join(_names(frame, group) for group in groups)


def describe_difference(output_dir: Path, first: str, second: str) -> list[str]:
    """Lines that name every difference. Raises UserError for an identity without a record, or with a damaged one."""
    a, b = (_require(output_dir, name) for name in (first, second))
    for record in (a, b):
        for fault in read_contents(record).faults:
            raise fault
    lines = [f"{first} → {second}"]
    for title, file, keys in (
        ("configuration", "config.yaml", ("experiment",)),
        ("run", "config.yaml", ("runtime",)),
        ("code", "provenance.json", ("code", "commit", "dirty")),
        ("environment", "provenance.json", ("packages", "device_name", "compiled", "speed", "host", "platform")),
        ("data", "provenance.json", ("data",)),
    ):
        old, new = ({k: (record.read(file) or {}).get(k) for k in keys} for record in (a, b))
        changes = _differences(old, new)
        lines += [f"{title}: " + ("the same" if not changes else "")] + [f"  {change}" for change in changes]
    for record in (a, b):
        result = record.read("result.json")
        last = result and result.get("last")
        shown = [f"{f.title} {f.shown(last[f.metric.name])}" for f in (figure(), figure("loss"))] if last else []
        lines.append(", ".join([f"{record.id}: {record.state()}", *shown]))
    lines.append(_disagreement(a, b))
    return lines


def _require(output_dir: Path, name: str) -> Record:
    record = Record(output_dir / name)
    if record.read("config.yaml") is None:
        known = (
            sorted(p.name for p in output_dir.iterdir() if (p / "config.yaml").is_file()) if output_dir.is_dir() else []
        )
        raise UserError(f"diff: no cell {name!r} in {output_dir}; there are: {', '.join(known[:20]) or 'none'}")
    return record


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for name in dict.fromkeys([*old, *new]):
            lines += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return lines
    return [] if old == new else [f"{key.removeprefix('experiment.')}: {old} → {new}"]


def _disagreement(a: Record, b: Record) -> str:
    one, two = (load_predictions(record) for record in (a, b))
    if one is None or two is None:
        return "predictions: not stored for both"
    if not np.array_equal(one["index"], two["index"]) or not np.array_equal(one["label"], two["label"]):
        return "predictions: of different evaluation sets"
    first, second, label = one["top5"][:, 0], two["top5"][:, 0], one["label"]
    differ = first != second
    gained, lost = int((differ & (second == label)).sum()), int((differ & (first == label)).sum())
    return f"predictions: they disagree on {int(differ.sum())} of {len(label)} images ({gained} gained, {lost} lost)"
