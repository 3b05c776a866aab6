"""Grids and files that say why a table is unsure, and which classes are behind a difference."""

from __future__ import annotations

import csv
import io

from vitlab.analysis.formats.cells import DELTA, GAP, PLUS_MINUS, Cell, Grid
from vitlab.analysis.table_model import ClassEffect, Table


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
