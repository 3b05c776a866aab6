"""DeiT's and the book's log.txt as cells of a table: one JSON object per epoch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vitlab.analysis.sources.records import frame
from vitlab.config import ConfigError
from vitlab.core.errors import UserError
from vitlab.core.metrics import PRIMARY, row_key

_THEIRS = {"top1": "test_acc1", "top5": "test_acc5", "loss": "test_loss"}
"""A metric of ours → its name in DeiT's log."""


def collect_logs(places: Sequence[Path]) -> pd.DataFrame:
    """The runs of log files, or of every log.txt below a folder; a run is named after its folder.

    Folders (or files) `NAME_seed1` or `NAME/s1` are seeds of one condition NAME. Raises ConfigError where there is no
    log, UserError for a line that is not DeiT's, a figure that is not a number, or two logs of one condition and seed.
    """
    files = [f for place in places for f in (sorted(place.rglob("log.txt")) if place.is_dir() else [place])]
    if not files or not all(f.is_file() for f in files):
        raise ConfigError(
            "logs", f"no log.txt in {', '.join(map(str, places)) or 'nothing'}; give logs='[FILE_OR_FOLDER,…]'"
        )
    rows, seen = [], set()
    for file in files:
        epochs = [
            _epoch(file, i, line)
            for i, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
            if line.strip()
        ]
        if not epochs:
            raise UserError(f"{file}: empty")
        if file.read_bytes() in seen:  # a copy of a log is the same run
            continue
        seen.add(file.read_bytes())
        epochs = list(
            {e["epoch"]: e for e in epochs}.values()
        )  # a resumed run logs an epoch again: the later line is used
        name, seed = _name(file)
        evaluated = [e for e in epochs if row_key(PRIMARY) in e]
        row = {
            "id": "d" + hashlib.sha256(file.read_bytes()).hexdigest()[:11],
            "name": f"{name}/s{seed}",
            "state": "finished",
            "seed": seed,
            "label.model": name,
            "model.name": name,
            "dataset.name": "as logged",
            "recipe.epochs": epochs[-1]["epoch"],
            "num_parameters": epochs[-1]["n_parameters"],
            "num_eval": None,
            "rows": json.dumps(epochs),
        }
        if evaluated:
            best = max(evaluated, key=lambda e: e[row_key(PRIMARY)])
            for part, e in (("last", evaluated[-1]), ("best", best)):
                row |= {f"{part}.{name}": e[row_key(name)] for name in _THEIRS} | {f"{part}.epoch": e["epoch"]}
        rows.append(row)
    names = [row["name"] for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            "logs", f"two different logs are called {twice[0]}; rename a folder, or name its seed: NAME_seed1"
        )
    return frame(rows)


def _name(file: Path) -> tuple[str, int]:
    """The condition and the seed in a log's path; seed 0 where it has none."""
    place = file.parent if file.name == "log.txt" else file.with_suffix("")
    if alone := re.fullmatch(r"s(?:eed)?[_-]?(\d+)", place.name):
        return place.parent.name, int(alone[1])
    if named := re.fullmatch(r"(.+?)[_-]s(?:eed)?[_-]?(\d+)", place.name):
        return named[1], int(named[2])
    return place.name, 0


def _epoch(file: Path, number: int, line: str) -> dict[str, float]:
    try:
        content = json.loads(line)
        row = {"epoch": content["epoch"] + 1, "train/loss": content["train_loss"], "train/lr": content["train_lr"],
               "n_parameters": content["n_parameters"]}  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}, line {number}: not a line of DeiT's log.txt ({error!r})") from error
    if _THEIRS[PRIMARY] in content:
        row |= {row_key(name): content[theirs] for name, theirs in _THEIRS.items()}
    for key, value in row.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{file}, line {number}: {key} is {value!r}, not a number; the run is damaged")
    return row
