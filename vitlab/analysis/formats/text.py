"""A table as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from vitlab.analysis.formats.grids import FURTHER, Cell, Grid, blocks, grids
from vitlab.analysis.table_model import Context, Entry, Row, Table
from vitlab.core.metrics import Figure, figure
from vitlab.core.plugins import register_format


@register_format("md")
def markdown_file(table: Table, context: Context) -> str:
    """The Markdown, with the provenance in a comment."""
    return f"{to_markdown(table)}\n<!-- {context.provenance} -->\n"


def to_markdown(table: Table) -> str:
    """The grids as pipe tables, the blocks as lists."""
    first, *others = grids(table)
    lines = [*_pipes(first), "", table.caption]
    for grid in others:
        lines += ["", f"{grid.title}:", "", *_pipes(grid)]
    for block in blocks(table):
        lines += ["", f"{block.title}:", "", *(f"- {line}" for line in block.lines)]
    return "\n".join(lines) + "\n"


def _pipes(grid: Grid) -> list[str]:
    text = [[_marked(cell) for cell in row] for row in grid.rows]
    columns = grid.rows[0]
    widths = [max(len(t), *(len(r[i]) for r in text), 3) for i, t in enumerate(grid.titles)]
    ends = {"left": (":", "-"), "center": (":", ":"), "right": ("-", ":")}
    rule = [ends[c.align][0] + "-" * (w - 2) + ends[c.align][1] for c, w in zip(columns, widths, strict=True)]
    place = {"left": str.ljust, "center": str.center, "right": str.rjust}

    def line(parts: list[str]) -> str:
        cells = zip(parts, widths, columns, strict=True)
        return "| " + " | ".join(place[cell.align](part, width) for part, width, cell in cells) + " |"

    return [line(list(grid.titles)), "| " + " | ".join(rule) + " |", *map(line, text)]


def _marked(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.bold else cell.text
    return f"{text} ^{cell.mark}" if cell.mark else text


@register_format("csv")
def to_csv(table: Table, context: Context | None = None) -> str:
    """A line per condition and data set (`block` is rows), numbers unrounded, with every seed's value.

    Below them the lines of all other grids and blocks, whose sentences are in the column `text`.
    """
    stream, shown = io.StringIO(), table.figure
    ticks = list(table.rows[0].ticks)
    columns = [
        "block", "row", "dataset", *ticks, "n", "seeds", shown.name, "sd", "baseline", "delta", "ci_low", "ci_high",
        "p_adjusted", "same_within_margin", *(each.name for each in _csv_figures(shown)), f"{shown.name}_values",
        "parameters", "device_hours", "missing", "ids", "text",
    ]  # fmt: skip
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        for dataset, entry in row.entries.items():
            writer.writerow(_numbers(row, dataset, entry, shown))
    writer.writerows(_sentences(table))
    return stream.getvalue()


def _csv_figures(shown: Figure) -> list[Figure]:
    return [each for each in map(figure, FURTHER) if each != shown]


def _numbers(row: Row, dataset: str, e: Entry, shown: Figure) -> dict[str, Any]:
    c = e.comparison
    return {
        "block": "rows", "row": row.label, "dataset": dataset,
        **{title: int(on) for title, (on, _) in row.ticks.items()}, "n": c.n,
        "seeds": " ".join(map(str, e.seeds)), shown.name: c.mean if c.n else "", "sd": c.sd, "baseline": e.versus,
        "delta": c.delta, "ci_low": c.low, "ci_high": c.high, "p_adjusted": c.p,
        "same_within_margin": None if c.same is None else int(c.same),
        **{each.name: e.mean(each.column) for each in _csv_figures(shown)},
        f"{shown.name}_values": " ".join(map(repr, e.scores)), "parameters": e.parameters,
        "device_hours": e.device_hours, "missing": "; ".join(e.missing), "ids": " ".join(e.ids),
    }  # fmt: skip


def _sentences(table: Table) -> Iterator[dict[str, Any]]:
    """The lines of a CSV file below its rows: the caption, the further grids (titles and cells), the blocks."""
    yield {"block": "caption", "text": table.caption}
    for grid in grids(table)[1:]:
        for cells in grid.rows:
            named = dict(zip(grid.titles, (cell.text for cell in cells), strict=True))
            line = {"block": grid.name, "row": named.pop("", ""), "dataset": named.pop("data set", table.datasets[0])}
            yield line | {"text": "; ".join(f"{title}: {text}" for title, text in named.items() if text)}
    for block in blocks(table):
        about: list[dict[str, Any]] = [{}] * len(block.lines)
        if block.name == "pairs":
            about = [
                {"row": p.second, "dataset": p.dataset, "baseline": p.first, "n": min(p.n), "delta": p.delta,
                 "ci_low": p.low, "ci_high": p.high, "p_adjusted": p.p}
                for p in table.pairs
            ]  # fmt: skip
        for line, numbers in zip(block.lines, about, strict=True):
            yield {"block": block.name, "text": line} | numbers


def classes_csv(table: Table) -> str:
    """One line per row, data set and class; numbers unrounded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    top1 = figure().name
    titles = f"row,baseline,dataset,class,images,baseline_{top1},{top1},n,delta,ci_low,ci_high,p_adjusted"
    writer.writerow(titles.split(","))
    for e in table.classes:
        c = e.comparison
        figures = ("" if v is None else v for v in (c.delta, c.low, c.high, c.p))
        writer.writerow([e.row, e.versus, e.dataset, e.name, e.images, e.base, c.mean, c.n, *figures])
    return stream.getvalue()


@register_format("json")
def to_json(table: Table, context: Context | None = None) -> str:
    """The model of the table, with the grids and blocks as they are shown; missing values are null."""
    content = {"schema_version": 1, "provenance": context.provenance if context else None}
    content |= dataclasses.asdict(table)
    content["grids"] = [
        {"name": grid.name, "title": grid.title, "titles": grid.titles,
         "rows": [[cell.text for cell in row] for row in grid.rows]}
        for grid in grids(table)
    ]  # fmt: skip
    content["blocks"] = [dataclasses.asdict(block) for block in blocks(table)]
    return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
