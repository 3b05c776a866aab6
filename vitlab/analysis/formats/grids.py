"""A table as grids of cells and blocks of text: what every format is made of, so that all hold the same strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.analysis.prose import checkpoint_lines, pair_line, seed_lines
from vitlab.analysis.table_model import ClassEffect, Entry, Table
from vitlab.core.metrics import Figure, figure

PLUS_MINUS, DELTA, TICK, CROSS, GAP = "±", "Δ", "✓", "✗", "--"


@dataclass(frozen=True)
class Cell:
    """The content of one place of a grid."""

    text: str
    bold: bool = False
    align: str = "right"
    mark: str = ""
    """The letter of a footnote."""


@dataclass(frozen=True)
class Grid:
    """A grid of cells with column titles."""

    name: str
    """main, details, scatter, classes or reference."""
    title: str
    titles: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


FURTHER = ("top1", "top5", "best.top1", "ema.top1")
"""Figures that are shown in addition to the one that a table compares."""


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
    return Grid("reference", "Comparison with the reference", titles, tuple(rows))


def footnotes(table: Table) -> list[str]:
    """Marked notes of rows first, then those on the whole table."""
    letters = marks(table)
    lines = [f"^{letters[row.label]} {row.label}: {'; '.join(row.notes)}" for row in table.rows if row.notes]
    return [*lines, *table.notes]


@dataclass(frozen=True)
class Block:
    """Sentences under one heading."""

    name: str
    title: str
    lines: tuple[str, ...]


def blocks(table: Table) -> list[Block]:
    """The text below the grids: every block that has a sentence."""
    several, shown = len(table.datasets) > 1, table.figure
    anova = _ANOVA["pooled" if table.statistics == "pooled" else "auto"]
    found = (
        ("findings", "Findings", [*table.findings, *table.detectable]),
        ("confusions", "Confusions (mean over seeds)", table.confusions),
        ("checkpoints", "These two checkpoints, not their conditions", checkpoint_lines(table)),
        ("pairs", "Further pairs (scatter as in the caption; p by Holm, intervals hold for all pairs together)",
         [pair_line(pair, several, shown) for pair in table.pairs]),
        ("anova", f"Main effects and interaction ({anova})", [_effect(e) for e in table.anova]),
        ("causes", "Causes that the records can show", [line["causes"] for line in table.reference if line["causes"]]),
        ("seeds", f"Every seed ({shown.metric.title}, {_SEEDS[shown.selection]})", seed_lines(table)),
        ("notes", "Notes", footnotes(table)),
    )  # fmt: skip
    return [Block(name, title, tuple(lines)) for name, title, lines in found if lines]


_SEEDS = {
    "last": "last epoch", "best": "best epoch", "ema.last": "averaged weights, last epoch",
    "ema.best": "averaged weights, best epoch",
}  # fmt: skip
_ANOVA = {
    "auto": "Brunner, Dette and Munk's analysis of variance, every row its own scatter",
    "pooled": "analysis of variance, type II, one variance for all rows",
}


def _effect(effect: dict[str, Any]) -> str:
    on = f" on {effect['dataset']}" if effect["dataset"] else ""
    p = "< 0.001" if effect["p"] < 0.001 else f"= {effect['p']:.3f}"
    freedom = ", ".join(f"{effect[key]:.3g}" for key in ("df", "df_residual"))
    return f"{effect['effect']}{on}: F({freedom}) = {effect['F']:.2f}, p {p}"


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
    heads = (
        "",
        *(("data set",) if several else ()),
        "class",
        "images",
        "baseline",
        figure().title,
        f"{DELTA} (95 % CI)",
        "p",
    )
    return Grid("classes", "Per class (intervals hold for all classes of a row together)", heads, tuple(rows))
