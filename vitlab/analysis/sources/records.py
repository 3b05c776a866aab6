"""Every source of results as one tidy DataFrame: a row per cell, a column per fact."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError
from vitlab.core.metrics import METRICS, SELECTIONS
from vitlab.study.contents import read_contents
from vitlab.study.mixture import attempts
from vitlab.study.record import Record, failure_line, records
from vitlab.study.studies import TYPE_AGAIN, read_study

PARTS = tuple(SELECTIONS)
Read = Callable[[Record], Mapping[str, Any]]
"""Gives a cell's row, as `read_record` does."""


def collect(output_dir: str | Path = "runs", study: str | None = None, read: Read | None = None) -> pd.DataFrame:
    """The cells below `output_dir`, or those of one study in its order, whatever state they are in.

    Columns: id, name, state, seed, the flattened experiment (`augment.mixup`, `recipe.lr`, `pretrain.dataset.name`, …),
    `label.<group>`, `last.top1` … `ema.best.loss` (percent, nats), num_eval, num_parameters, device_hours, commit,
    device_name, devices, attempts (JSON: the settings of each attempt, see `study.mixture`), data (JSON: the
    fingerprints of the images trained and evaluated on), failure, faults (damaged files, one to a line). Figures of
    unfinished and of damaged cells are missing. `read` may remember what does not change. Raises UserError where no
    such study is known, or its list of cells is damaged.
    """
    folder = Path(output_dir)
    if study is None:
        return frame((read or read_record)(record) for record in records(folder))
    content = read_study(folder, study)
    if content is None:
        known = sorted(f.stem for f in (folder / "studies").glob("*.json"))
        raise UserError(f"study: no study {study!r} in {folder}; there are: {', '.join(known) or 'none'}")
    cells = [entry for entry in content["cells"] if entry["part"] == "cell"]
    return frame(_listed(folder, study, entry, read or read_record) for entry in cells)


def _listed(folder: Path, study: str, entry: Mapping[str, Any], read: Read) -> dict[str, Any]:
    """The row of a cell that a study lists, with the values that it was planned with where its own are not known.

    Where the two contradict each other, the cell's own are used: its identity is computed from them.
    """
    planned = experiment_columns(entry.get("experiment", {}), entry["labels"])
    row = {**read(Record(folder / entry["id"])), "name": entry["name"], "aliases": entry["aliases"]}
    other = [key for key, value in planned.items() if not key.startswith("label.") and row.get(key, value) != value]
    if other:
        problem = f"{other[0]} of {entry['id']} is {planned[other[0]]!r}, {row[other[0]]!r} in its config.yaml"
        fault = DamagedError(folder / "studies" / f"{study}.json", f"damaged ({problem})", TYPE_AGAIN)
        row["faults"] = "\n".join([*row.get("faults", "").splitlines(), str(fault)])
    return row | {key: value for key, value in planned.items() if key not in other}


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a DataFrame whose order of columns depends on their names alone."""
    data = pd.DataFrame(list(rows))
    return data[sorted(data.columns)] if len(data) else pd.DataFrame(columns=["id", "name", "state"])


def read_record(record: Record) -> dict[str, Any]:
    """One cell's row. Damage raises nothing: `faults` names the files, one to a line, and their values are missing."""
    found = read_contents(record)
    row: dict[str, Any] = {"id": record.id, "state": found.state, "folder": str(record.folder)}
    if found.faults:
        row["faults"] = "\n".join(map(str, found.faults))
    started_with: dict[str, Any] = {}
    if found.config is not None:
        row |= experiment_columns(found.config["experiment"], found.config["labels"])
        row |= {"name": found.config["name"], "devices": found.config["runtime"]["devices"]}
        started_with = {key: found.config["runtime"].get(key) for key in ("devices", "threads")}
    if found.provenance is not None:
        row |= {key: found.provenance.get(key) for key in ("commit", "dirty", "device_name")}
        settings = [with_defaults(attempt, started_with) for attempt in attempts(found.provenance)]
        row |= {"attempts": json.dumps(settings), "data": json.dumps(found.provenance.get("data"))}
    if found.result is not None and found.state == "finished":
        row |= result_columns(found.result)
    if found.failure is not None:
        row["failure"] = failure_line(found.failure)
    return row


def with_defaults(attempt: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """An attempt's settings, with `defaults` in place of those that it does not hold."""
    return {**defaults, **{key: value for key, value in attempt.items() if value is not None}}


def experiment_columns(experiment: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """The flattened experiment, and its labels."""
    return flatten(experiment) | {f"label.{group}": label for group, label in labels.items()}


def result_columns(result: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a result.json, of the shape that its reader has checked, as columns; NaN and infinity are none."""
    row: dict[str, Any] = {}
    for part in PARTS:
        node: Any = result
        for key in part.split("."):
            node = (node or {}).get(key)
        for name in (*METRICS, "epoch"):
            value = (node or {}).get(name)
            row[f"{part}.{name}"] = value if value is None or math.isfinite(value) else None
    row |= {key: result.get(key) for key in ("num_eval", "num_train", "num_parameters", "epochs", "images_per_second")}
    return row | {"device_hours": result["device_seconds"] / 3600, "finished_at": result.get("finished_at")}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted columns; lists as JSON, so that values can be compared."""
    flat: dict[str, Any] = {}
    _flatten_into(flat, tree, prefix)
    return flat


def _flatten_into(flat: dict[str, Any], tree: Mapping[str, Any], prefix: str) -> None:
    for key, value in tree.items():
        if type(value) not in _PLAIN and isinstance(value, Mapping):  # asked of millions of values
            _flatten_into(flat, value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value


_PLAIN = {str, int, float, bool, list, type(None)}
