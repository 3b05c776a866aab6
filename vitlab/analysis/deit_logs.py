"""DeiT's and the book's log.txt as cells of a table: one JSON object per epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vitlab.analysis.collect import frame
from vitlab.config import ConfigError


def collect_logs(places: Sequence[Path]) -> pd.DataFrame:
    """The runs of log files, or of every log.txt below a folder; a run is named after its folder.

    Raises ConfigError where there is no log, ValueError for a line that is not DeiT's.
    """
    files = [f for place in places for f in (sorted(place.rglob("log.txt")) if place.is_dir() else [place])]
    if not files or not all(f.is_file() for f in files):
        raise ConfigError(
            f"logs: no log.txt in {', '.join(map(str, places)) or 'nothing'}; give logs='[FILE_OR_FOLDER,…]'"
        )
    rows = []
    for file in files:
        epochs = [_epoch(file, i, line) for i, line in enumerate(file.read_text().splitlines(), 1) if line.strip()]
        if not epochs:
            raise ValueError(f"{file}: empty")
        name = file.parent.name if file.name == "log.txt" else file.stem
        evaluated = [e for e in epochs if "eval/top1" in e]
        row = {
            "id": "d" + hashlib.sha256(file.read_bytes()).hexdigest()[:11],
            "name": name,
            "state": "finished",
            "seed": 0,
            "label.model": name,
            "model.name": name,
            "dataset.name": "as logged",
            "recipe.epochs": epochs[-1]["epoch"],
            "num_parameters": epochs[-1]["n_parameters"],
            "num_eval": None,
            "rows": json.dumps(epochs),
        }
        if evaluated:
            best = max(evaluated, key=lambda e: e["eval/top1"])
            for part, e in (("last", evaluated[-1]), ("best", best)):
                row |= {f"{part}.top1": e["eval/top1"], f"{part}.top5": e["eval/top5"],
                        f"{part}.loss": e["eval/loss"], f"{part}.epoch": e["epoch"]}  # fmt: skip
        rows.append(row)
    return frame(rows)


def _epoch(file: Path, number: int, line: str) -> dict[str, float]:
    try:
        content = json.loads(line)
        row = {"epoch": content["epoch"] + 1, "train/loss": content["train_loss"], "train/lr": content["train_lr"],
               "n_parameters": content["n_parameters"]}  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}, line {number}: not a line of DeiT's log.txt ({error!r})") from error
    if "test_acc1" in content:
        row |= {"eval/top1": content["test_acc1"], "eval/top5": content["test_acc5"], "eval/loss": content["test_loss"]}
    return row
