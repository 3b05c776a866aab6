"""Published values beside ours: a CSV of row, dataset, figure, value, sd, source; an empty value is not known."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

from vitlab.analysis.table import Entry, Table
from vitlab.config import ConfigError
from vitlab.config.choices import CONF

COLUMNS = ("row", "dataset", "figure", "value", "sd", "source")
FIGURES = {"top1": "last.top1", "top5": "last.top5", "best_top1": "best.top1"}


def read_reference(name: str) -> list[dict[str, Any]]:
    """The lines of a reference file: a path, or a name in conf/reference. Raises ConfigError for a malformed one."""
    path = Path(name) if Path(name).is_file() else CONF / "reference" / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (CONF / "reference").glob("*.csv")))
        raise ConfigError(f"reference: no file {name!r}; shipped: {known}")
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    for number, line in enumerate(lines, start=2):
        if set(line) != set(COLUMNS) or line["figure"] not in FIGURES:
            raise ConfigError(
                f"reference: {path}, line {number}: the columns are {','.join(COLUMNS)}, and figure is one of "
                f"{', '.join(FIGURES)}"
            )
        try:
            for key in ("value", "sd"):
                line[key] = float(line[key]) if line[key].strip() else None
        except ValueError:
            raise ConfigError(f"reference: {path}, line {number}: {key} {line[key]!r} is no number") from None
    return lines


def beside_reference(table: Table, lines: list[dict[str, Any]]) -> Table:
    """The table with each known value beside ours and a verdict. Raises ConfigError where no row's name matches."""
    labels = {row.label: row for row in table.rows}
    matched = [line for line in lines if line["row"] in labels]
    if lines and not matched:
        raise ConfigError(
            f"reference: its rows ({', '.join(dict.fromkeys(x['row'] for x in lines))}) are none of the table's "
            f"({', '.join(labels)})"
        )
    entries = []
    for line in matched:
        for dataset, entry in labels[line["row"]].entries.items():
            if line["dataset"] in (dataset, "*"):
                ours = entry.mean(FIGURES[line["figure"]])
                entries.append({**line, "dataset": dataset, "ours": ours, "verdict": _verdict(line, entry, ours)})
    return dataclasses.replace(table, reference=tuple(entries))


def _verdict(line: dict[str, Any], entry: Entry, ours: float | None) -> str:
    """Whether the difference is within what seeds do (two standard errors), where the spread is known."""
    if line["value"] is None or ours is None:
        return ""
    difference = ours - line["value"]
    spread = entry.comparison.sd or line["sd"]
    if spread is None:
        return f": {difference:+.2f}; one seed each, so seed noise cannot be ruled out"
    error = math.sqrt(spread**2 / max(1, entry.comparison.n) + (line["sd"] or spread) ** 2)
    within = abs(difference) <= 2 * error
    causes = "" if within else "; look at epochs, global batch, EMA, and whether it is the last or the best epoch"
    return f": {difference:+.2f}, {'within' if within else 'beyond'} seed noise ({2 * error:.2f}){causes}"
