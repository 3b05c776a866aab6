"""A table as grids of cells and blocks of text: what every format is made of, so that all hold the same strings."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.analysis.prose import checkpoint_lines, pair_line, seed_lines
from vitlab.analysis.table_model import ClassEffect, Context, Entry, Row, Table
from vitlab.core.metrics import Figure, figure
from vitlab.core.plugins import register_format

PLUS_MINUS, DELTA, TICK, CROSS, GAP = "±", "Δ", "✓", "✗", "--"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a grid."""

    text: str
    bold: bool = False
    align: str = "right"
    mark: str = ""
    """The letter of a footnote."""


@dataclass(frozen=True)
class Grid:
    """What a reader sees as a table."""

    name: str
    """main, details, scatter, classes or reference."""
    title: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


FURTHER = ("top1", "top5", "best.top1", "ema.top1")
"""Figures that are shown beside the one that a table compares."""


def grids(table: Table) -> list[Grid]:
    """The grids of a table: its main one; details where several data sets leave no room; published values."""
    several = len(table.datasets) > 1
    found = [_main(table, several)]
    if several:
        found.append(_details(table))
    if "scatter" in table.columns and (grid := scatter_grid(table)):
        found.append(grid)
    if table.classes:
        found.append(classes_grid(table))
    if table.reference:
        found.append(_reference(table))
    return found


def marks(table: Table) -> dict[str, str]:
    """Row → the letter of its footnote: a to z, then aa, ab, …"""
    noted = [row.label for row in table.rows if row.notes]
    return {label: (chr(96 + i // 26) if i >= 26 else "") + chr(97 + i % 26) for i, label in enumerate(noted)}


def _main(table: Table, several: bool) -> Grid:
    titles = ["", *table.rows[0].ticks]
    for dataset in table.datasets:
        prefix = f"{dataset}: " if several else ""
        titles += [f"{prefix}{table.figure.title}", f"{prefix}{DELTA} (95 % CI)", f"{prefix}p", f"{prefix}n"]
    details = _detail_figures(table)
    titles += [] if several else _detail_titles(details)
    letters, rows = marks(table), []
    for row in table.rows:
        cells = [Cell(row.label, align="left", mark=letters.get(row.label, ""))]
        cells += [Cell(TICK if on else CROSS, changed, "center") for on, changed in row.ticks.values()]
        for dataset in table.datasets:
            cells += _result_cells(row.entries[dataset], table.figure)
        cells += [] if several else _detail_cells(row.entries[table.datasets[0]], details)
        rows.append(tuple(cells))
    return Grid("main", table.title, tuple(titles), tuple(rows))


def _result_cells(entry: Entry, shown: Figure) -> list[Cell]:
    c = entry.comparison
    if not c.n:
        return [Cell(GAP), Cell(""), Cell(""), Cell("0")]
    spread = f" {PLUS_MINUS} {shown.shown(c.sd)}" if c.sd is not None else ""
    delta = "" if c.delta is None else shown.shown(c.delta, sign=True)
    if c.low is not None and c.high is not None:
        delta += f" ({shown.shown(c.low, sign=True)} to {shown.shown(c.high, sign=True)})"
    p = "" if c.p is None else "< 0.001" if c.p < 0.001 else f"{c.p:.3f}"
    return [Cell(f"{shown.shown(c.mean)}{spread}", entry.best), Cell(delta), Cell(p), Cell(str(c.n))]


def _detail_figures(table: Table) -> list[Figure]:
    """The further figures of every row: those of FURTHER that any cell has and that the table does not compare."""
    known = {column for row in table.rows for e in row.entries.values() for column in e.values}
    always = figure("top5"), figure("best.top1")
    wanted = [f for f in map(figure, FURTHER) if f != table.figure]
    return [f for f in wanted if f.column in known or f in always]


def _detail_titles(details: Sequence[Figure]) -> list[str]:
    return [*(each.title for each in details), "params", "device-h"]


def _detail_cells(entry: Entry, details: Sequence[Figure]) -> list[Cell]:
    means = [(each, entry.mean(each.column)) for each in details]
    cells = [Cell(GAP if mean is None else each.shown(mean)) for each, mean in means]
    cells.append(Cell(f"{entry.parameters / 1e6:.3g} M" if entry.parameters else GAP))
    return [*cells, Cell(GAP if entry.device_hours is None else f"{entry.device_hours:.2g}")]


def _details(table: Table) -> Grid:
    details = _detail_figures(table)
    rows = [
        (Cell(row.label, align="left"), Cell(dataset, align="left"), *_detail_cells(entry, details))
        for row in table.rows
        for dataset, entry in row.entries.items()
    ]
    return Grid("details", "Details", ("", "data set", *_detail_titles(details)), tuple(rows))


def _reference(table: Table) -> Grid:
    rows = []
    for line in table.reference:
        figures = [GAP if line[key] is None else f"{line[key]:.2f}" for key in ("ours", "value")]
        delta = "" if line["delta"] is None else f"{line['delta']:+.2f}"
        words = [line["row"], line["dataset"], line["figure"]]
        cells = [Cell(word, align="left") for word in words] + [Cell(figure) for figure in figures]
        rows.append((*cells, Cell(delta), Cell(line["verdict"], align="left"), Cell(line["source"], align="left")))
    titles = ("", "data set", "figure", "ours", "reference", DELTA, "verdict", "source")
    return Grid("reference", "Beside the reference", titles, tuple(rows))


def footnotes(table: Table) -> list[str]:
    """Marked notes of rows first, then those on the whole table."""
    letters = marks(table)
    lines = [f"^{letters[row.label]} {row.label}: {'; '.join(row.notes)}" for row in table.rows if row.notes]
    return [*lines, *table.notes]


def extras(table: Table) -> list[tuple[str, list[str]]]:
    """The blocks of text below the grids: title and lines."""
    several = len(table.datasets) > 1
    blocks = [
        ("Findings", [*table.findings, *table.detectable]),
        ("Confusions (mean over seeds)", list(table.confusions)),
        ("These two checkpoints, not their conditions", checkpoint_lines(table)),
        ("Further pairs (scatter as in the caption; p by Holm, intervals hold for all pairs together)",
         [pair_line(pair, several, table.figure) for pair in table.pairs]),
        (_ANOVA["pooled" if table.statistics == "pooled" else "auto"], [_effect(e) for e in table.anova]),
        ("Causes that the records can show", [line["causes"] for line in table.reference if line["causes"]]),
        (f"Every seed ({table.figure.metric.title}, {_SEEDS[table.figure.selection]})", seed_lines(table)),
        ("Notes", footnotes(table)),
    ]  # fmt: skip
    return [(title, lines) for title, lines in blocks if lines]


_SEEDS = {
    "last": "last epoch", "best": "best epoch", "ema.last": "averaged weights, last epoch",
    "ema.best": "averaged weights, best epoch",
}  # fmt: skip
_ANOVA = {
    "auto": "Main effects and interaction (Brunner, Dette and Munk's analysis of variance, every row its own scatter)",
    "pooled": "Main effects and interaction (analysis of variance, type II, one variance for all rows)",
}


def _effect(effect: dict[str, Any]) -> str:
    on = f" on {effect['dataset']}" if effect["dataset"] else ""
    p = "< 0.001" if effect["p"] < 0.001 else f"= {effect['p']:.3f}"
    freedom = ", ".join(f"{effect[key]:.3g}" for key in ("df", "df_residual"))
    return f"{effect['effect']}{on}: F({freedom}) = {effect['F']:.2f}, p {p}"


@register_format("md")
def markdown_file(table: Table, context: Context) -> str:
    """The Markdown, with the provenance in a comment."""
    return f"{to_markdown(table)}\n<!-- {context.provenance} -->\n"


def to_markdown(table: Table) -> str:
    first, *others = grids(table)
    lines = [*_pipes(first), "", table.caption]
    for grid in others:
        lines += ["", f"{grid.title}:", "", *_pipes(grid)]
    for title, block in extras(table):
        lines += ["", f"{title}:", "", *(f"- {entry}" for entry in block)]
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
    """One line per condition and data set, with every seed's value; numbers unrounded."""
    stream = io.StringIO()
    ticks, shown = list(table.rows[0].ticks), table.figure
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([
        "row", "dataset", *ticks, "n", "seeds", shown.slug, "sd", "baseline", "delta", "ci_low", "ci_high",
        "p_adjusted", "same_within_margin", *(each.slug for each in _csv_figures(shown)), f"{shown.slug}_values",
        "parameters", "device_hours", "missing", "ids",
    ])  # fmt: skip
    for row in table.rows:
        for dataset, entry in row.entries.items():
            writer.writerow(_csv_line(row, dataset, entry, shown))
    return stream.getvalue()


def _csv_figures(shown: Figure) -> list[Figure]:
    return [each for each in map(figure, FURTHER) if each != shown]


def _csv_line(row: Row, dataset: str, e: Entry, shown: Figure) -> list[Any]:
    c = e.comparison
    figures = [e.mean(each.column) for each in _csv_figures(shown)]
    return [
        row.label, dataset, *(int(on) for on, _ in row.ticks.values()), c.n, " ".join(map(str, e.seeds)),
        c.mean if c.n else "", "" if c.sd is None else c.sd, e.versus or "",
        *("" if v is None else v for v in (c.delta, c.low, c.high, c.p)), "" if c.same is None else int(c.same),
        *("" if v is None else v for v in figures), " ".join(map(repr, e.scores)),
        e.parameters or "", "" if e.device_hours is None else e.device_hours, "; ".join(e.missing), " ".join(e.ids),
    ]  # fmt: skip


@register_format("json")
def to_json(table: Table, context: Context | None = None) -> str:
    """The table as JSON; missing values are null."""
    content = {"schema_version": 1, "provenance": context.provenance if context else None} | _plain(
        dataclasses.asdict(table)
    )
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scatter_grid(table: Table) -> Grid | None:
    """Where the width of each interval comes from, and what would narrow it; None where no row has two seeds."""
    rows, shown = [], table.figure.shown
    for row in table.rows:
        for dataset, entry in row.entries.items():
            s = entry.scatter
            if s is None:
                continue
            excess = f"{s.seeds / s.independent:.1f}" if s.independent else GAP
            widths = [GAP if v is None else f"{PLUS_MINUS}{shown(v)}" for v in (s.half, s.one_more, s.twice)]
            names = [Cell(row.label, align="left")] + [Cell(dataset, align="left")] * (len(table.datasets) > 1)
            figures = [shown(s.seeds), GAP if s.images is None else shown(s.images), excess, *widths]
            rows.append((*names, *map(Cell, figures)))
    heads = ("between seeds", "test images", "× converged", "interval", "one seed more", "twice the images")
    titles = ("", *(("data set",) if len(table.datasets) > 1 else ()), *heads)
    return Grid("scatter", "Where the width comes from", titles, tuple(rows)) if rows else None


MOST_CLASSES = 6
"""Classes shown of each end of a row: those that lose most and those that gain most; the files hold all."""


def shown_classes(table: Table) -> list[list[ClassEffect]]:
    """For each row and data set its classes from the greatest loss to the greatest gain, the middle ones left out."""
    groups: dict[tuple[str, str], list[ClassEffect]] = {}
    for effect in table.classes:
        groups.setdefault((effect.row, effect.dataset), []).append(effect)
    found = []
    for effects in groups.values():
        effects = sorted(effects, key=lambda e: e.comparison.delta or 0.0)
        many = len(effects) > 2 * MOST_CLASSES
        found.append([*effects[:MOST_CLASSES], *effects[-MOST_CLASSES:]] if many else effects)
    return found


def classes_grid(table: Table) -> Grid:
    rows, several = [], len(table.datasets) > 1
    for effects in shown_classes(table):
        for e in effects:
            c = e.comparison
            names = [e.row, *([e.dataset] if several else []), e.name]
            delta = f"{c.delta or 0.0:+.2f}"
            if c.low is not None and c.high is not None:
                delta += f" ({c.low:+.2f} to {c.high:+.2f})"
            figures = [f"{e.images:,}", f"{e.base:.2f}", f"{c.mean:.2f}"]
            p = "" if c.p is None else "< 0.001" if c.p < 0.001 else f"{c.p:.3f}"
            cells = [*(Cell(name, align="left") for name in names), *map(Cell, figures)]
            rows.append((*cells, Cell(delta, bold=c.significant), Cell(p)))
    heads = ("", *(("data set",) if several else ()), "class", "images", "baseline", "top-1", f"{DELTA} (95 % CI)", "p")
    return Grid("classes", "Per class (intervals hold for all classes of a row together)", heads, tuple(rows))


def classes_csv(table: Table) -> str:
    """One line per row, data set and class; numbers unrounded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    titles = "row,baseline,dataset,class,images,baseline_top1,top1,n,delta,ci_low,ci_high,p_adjusted"
    writer.writerow(titles.split(","))
    for e in table.classes:
        c = e.comparison
        figures = ("" if v is None else v for v in (c.delta, c.low, c.high, c.p))
        writer.writerow([e.row, e.versus, e.dataset, e.name, e.images, e.base, c.mean, c.n, *figures])
    return stream.getvalue()
