"""Every source of results as one tidy DataFrame: a row per cell, a column per fact."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.study.mixture import attempts
from vitlab.study.record import Record, read_study, records

FIGURES = ("top1", "top5", "loss", "epoch")
PARTS = ("last", "best", "ema.last", "ema.best")


def collect(output_dir: str | Path = "runs", study: str | None = None) -> pd.DataFrame:
    """The cells below `output_dir`, or those of one study in its order, whatever state they are in.

    Columns: id, name, state, seed, the flattened experiment (`augment.mixup`, `recipe.lr`, `pretrain.dataset.name`, …),
    `label.<group>`, `last.top1` … `ema.best.loss` (percent, nats), num_eval, num_parameters, device_hours, commit,
    device_name, devices, attempts (JSON: the settings of each attempt, see `study.mixture`), failure. Figures of
    unfinished cells are missing. Raises ValueError for a damaged record, or where no such study is known.
    """
    folder = Path(output_dir)
    if study is None:
        return frame(read_record(record) for record in records(folder))
    content = read_study(folder, study)
    if content is None:
        known = sorted(f.stem for f in (folder / "studies").glob("*.json"))
        raise ValueError(f"study: no study {study!r} in {folder}; there are: {', '.join(known) or 'none'}")
    rows = []
    for entry in content["cells"]:
        if entry["part"] == "cell":
            planned = experiment_columns(entry.get("experiment", {}), entry["labels"])
            found = read_record(Record(folder / entry["id"])) | {"name": entry["name"], "aliases": entry["aliases"]}
            rows.append(found | planned)
    return frame(rows)


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a DataFrame whose order of columns depends on their names alone."""
    data = pd.DataFrame(list(rows))
    return data[sorted(data.columns)] if len(data) else pd.DataFrame(columns=["id", "name", "state"])


def read_record(record: Record) -> dict[str, Any]:
    """One cell's row."""
    config = record.read("config.yaml")
    row: dict[str, Any] = {"id": record.id, "state": record.state(), "folder": str(record.folder)}
    if config is None:
        return row
    row |= experiment_columns(config["experiment"], config["labels"])
    row |= {"name": config["name"], "devices": config["runtime"]["devices"]}
    origin = record.read("provenance.json") or {}
    row |= {"commit": origin.get("commit"), "dirty": origin.get("dirty"), "device_name": origin.get("device_name")}
    started_with = {key: config["runtime"].get(key) for key in ("devices", "threads")}
    row["attempts"] = json.dumps([with_defaults(attempt, started_with) for attempt in attempts(origin)])
    if result := record.read("result.json"):
        row |= result_columns(result)
    if failure := record.read("failure.json"):
        row["failure"] = f"{failure['type']}: {failure['message']}"
    return row


def with_defaults(attempt: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """An attempt's settings, with `defaults` in place of those that it does not hold."""
    return {**defaults, **{key: value for key, value in attempt.items() if value is not None}}


def experiment_columns(experiment: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """The flattened experiment, and the labels beside it."""
    return flatten(experiment) | {f"label.{group}": label for group, label in labels.items()}


def result_columns(result: Mapping[str, Any]) -> dict[str, Any]:
    """result.json's figures as columns. Raises ValueError for a figure that is missing or not a number."""
    row: dict[str, Any] = {}
    hours = result.get("device_seconds")
    if not isinstance((result.get("last") or {}).get("top1"), int | float) or not isinstance(hours, int | float):
        raise ValueError(
            f"{result.get('id')}: its result has no number last.top1 or device_seconds; the record is damaged, train "
            "the cell anew"
        )
    for part in PARTS:
        node: Any = result
        for key in part.split("."):
            node = (node or {}).get(key)
        for figure in FIGURES:
            value = (node or {}).get(figure)
            if value is not None and (isinstance(value, str) or not math.isfinite(value)):  # W&B writes "NaN"
                raise ValueError(
                    f"{result.get('id')}: {part}.{figure} is {value}; the record is damaged, train the cell anew"
                )
            row[f"{part}.{figure}"] = value
    row |= {key: result.get(key) for key in ("num_eval", "num_train", "num_parameters", "epochs", "images_per_second")}
    return row | {"device_hours": hours / 3600, "finished_at": result.get("finished_at")}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted columns; lists as JSON, so that values can be compared."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value) if isinstance(value, list) else value
    return flat
