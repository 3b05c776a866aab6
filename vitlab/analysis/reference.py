"""Published values compared with ours: a CSV of row, dataset, figure, value, sd, source, and facts on the recipe."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy import special

from vitlab.analysis.table_model import Entry, Table
from vitlab.config import ConfigError
from vitlab.config.choices import CONF
from vitlab.core.comparisons import Group
from vitlab.core.families import sidak
from vitlab.core.metrics import PRIMARY, figure

COLUMNS = ("row", "dataset", "figure", "value", "sd", "source")
RECIPE = {"epochs": "recipe.epochs", "batch_size": "recipe.batch_size", "ema_decay": "recipe.ema_decay"}
"""Further columns that a file may have → the setting of ours that they are held against."""
FIGURES = {each.name: each.column for each in map(figure, ("top1", "top5", "best.top1", "ema.top1"))}
_OLDER = {name.replace(".", "_"): name for name in FIGURES}
"""How earlier files spell these names: `best_top1`."""
_WORDS = {
    f"{selection}.{PRIMARY}": words
    for selection, words in {
        "last": "the last epoch's", "best": "the best epoch's", "ema.last": "the averaged weights'",
        "ema.best": "the averaged weights' best",
    }.items()
}  # fmt: skip


def read_reference(name: str) -> list[dict[str, Any]]:
    """The lines of a reference file: a path, or a name in conf/table/reference. Raises ConfigError for a malformed one.

    `value`, `sd` and the columns of RECIPE are numbers, or None where the file leaves them empty.
    """
    path = Path(name) if Path(name).is_file() else CONF / "table" / "reference" / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (CONF / "table" / "reference").glob("*.csv")))
        raise ConfigError("reference", f"no file {name!r}; shipped: {known}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise ConfigError("reference", f"{path} is not UTF-8 (byte {error.start}); save it as CSV UTF-8") from error
    numbered = [(i, line) for i, line in enumerate(io.StringIO(text), 1) if line.strip() and not line.startswith("#")]
    lines = list(csv.DictReader(text for _, text in numbered))
    for (number, _), line in zip(numbered[1:], lines, strict=True):
        keys = set(line)
        line["figure"] = _OLDER.get(str(line.get("figure")), line.get("figure"))
        if not set(COLUMNS) <= keys <= {*COLUMNS, *RECIPE} or line["figure"] not in FIGURES:
            raise ConfigError(
                "reference",
                f"{path}, line {number}: the columns are {','.join(COLUMNS)} and, where known, "
                f"{','.join(RECIPE)}; figure is one of {', '.join(FIGURES)}",
            )
        for key in ("value", "sd", *RECIPE):
            line[key] = _number(line.get(key), f"{path}, line {number}: {key}")
    _check_scale(path, [(number, line) for (number, _), line in zip(numbered[1:], lines, strict=True)])
    if not lines:
        raise ConfigError("reference", f"{path} has no line below its header {','.join(COLUMNS)}")
    return lines


def _check_scale(path: Path, lines: list[tuple[int, dict[str, Any]]]) -> None:
    """Raise ConfigError for shares in place of percentages: for a file whose every value is at most 1."""
    known = [(number, line["value"]) for number, line in lines if line["value"] is not None]
    if known and max(value for _, value in known) <= 1:
        number, value = known[0]
        raise ConfigError(
            "reference",
            f"{path}, line {number}: value {value:g}, as all values of this file, is a share, and the table is in "
            f"percent: write {100 * value:g}",
        )
    for number, value in known:
        if not 0 <= value <= 100:
            raise ConfigError("reference", f"{path}, line {number}: value {value:g} is no percentage")


def _number(text: str | None, where: str) -> float | None:
    if not (text or "").strip():
        return None
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError("reference", f"{where} {text!r} is no number")
    return value


def compare_with_reference(table: Table, lines: list[dict[str, Any]], *, asked: bool = True) -> Table:
    """The table with each published value compared with ours, a verdict, and the causes that the records can show.

    Raises ConfigError where no line is about a row and data set of the table, unless the layout brings the file and
    nobody `asked` for it.
    """
    labels = {row.label: row for row in table.rows}
    matched = [line for line in lines if line["row"] in labels and line["dataset"] in (*table.datasets, "*")]
    if not matched and asked:
        key, own = ("dataset", table.datasets) if any(x["row"] in labels for x in lines) else ("row", tuple(labels))
        theirs = ", ".join(dict.fromkeys(line[key] for line in lines))
        words = {"row": "rows", "dataset": "data sets"}[key]
        raise ConfigError("reference", f"its {words} ({theirs}) are none of the table's ({', '.join(own)})")
    pairs = [
        (line, dataset, entry)
        for line in matched
        for dataset, entry in labels[line["row"]].entries.items()
        if line["dataset"] in (dataset, "*")
    ]
    count = max(1, sum(_margin(line, entry, 1) is not None for line, _, entry in pairs))
    entries = [{**line, "dataset": d} | _verdict(line, d, entry, count) for line, d, entry in pairs]
    unknown = list(dict.fromkeys(x["row"] for x in lines if x["row"] not in labels)) if asked else []
    notes = [f"the reference has rows that the table has not: {', '.join(unknown)}"] if unknown else []
    return dataclasses.replace(table, reference=tuple(entries), notes=(*table.notes, *notes))


def _margin(line: Mapping[str, Any], entry: Entry, count: int) -> float | None:
    """The difference from a published value that seed noise alone explains, with probability 0.95 in all `count` lines.

    A published deviation is taken as known; without one, the value is taken as one more run that scatters as ours do.
    None where neither is known.
    """
    if line["value"] is None or entry.mean(FIGURES[line["figure"]]) is None:
        return None
    step = 100 / entry.images if entry.images else 0.0
    group, level = Group(entry.values[FIGURES[line["figure"]]], resolution=step), sidak(count)
    if group.n > 1 and group.variance:
        own = float(-special.stdtrit(group.n - 1, level / 2)) ** 2 * group.variance
        if line["sd"] is None:
            return math.sqrt(own * (1 / group.n + 1))
        return math.sqrt(own / group.n + (float(special.ndtri(level / 2)) * line["sd"]) ** 2)
    if not line["sd"]:
        return None
    return -float(special.ndtri(level / 2)) * line["sd"] * math.sqrt(1 / max(1, group.n) + 1)


def _verdict(line: Mapping[str, Any], dataset: str, entry: Entry, count: int) -> dict[str, Any]:
    """Decide whether the difference is within seed noise, where the spread is known."""
    ours, value = entry.mean(FIGURES[line["figure"]]), line["value"]
    found: dict[str, Any] = {"ours": ours, "delta": None, "margin": None, "verdict": "", "causes": ""}
    if value is None:
        return found | {"verdict": "not known: fill it in"}
    if ours is None:
        return found | {"verdict": "not run"}
    found["delta"] = ours - value
    margin = _margin(line, entry, count)
    if margin is None:
        return found | {"verdict": "one seed each: seed noise is unknown"}
    if abs(found["delta"]) <= margin:
        return found | {"margin": margin, "verdict": f"matches within seed noise (±{margin:.2f})"}
    causes = f"{line['row']} on {dataset}, {line['figure']}: {'; '.join(_causes(line, entry, margin))}"
    return found | {"margin": margin, "verdict": f"differs beyond seed noise (±{margin:.2f})", "causes": causes}


def _causes(line: Mapping[str, Any], entry: Entry, margin: float) -> list[str]:
    """Causes that the records show: epochs, global batch, averaged weights, the choice of the epoch."""
    causes = []
    for key, column in RECIPE.items():
        ours = entry.settings.get(column, ())
        shown = ", ".join("none" if v is None else f"{v:g}" for v in ours) or "not recorded"
        name = {"epochs": "epochs", "batch_size": "global batch", "ema_decay": "EMA decay"}[key]
        if line[key] is None:
            causes.append(f"{name} {shown} here, not stated there")
        elif ours != (line[key],):
            causes.append(f"{name} {shown} here, {line[key]:g} there")
    if line["figure"] in (figure().name, figure("best.top1").name):
        asked = FIGURES[line["figure"]]
        others = {f: mean for f in _WORDS if f != asked and (mean := entry.mean(f)) is not None}
        near = [f"{_WORDS[f]} {mean:.2f} would match" for f, mean in others.items()
                if abs(mean - line["value"]) <= margin]  # fmt: skip
        causes += near or [f"no choice of epoch or weights explains it ({_WORDS[asked]} is compared above)"]
    return causes
