"""The page's figures as inline SVG that follows the page's colour scheme.

Classes carry the colours: `up`, `down` and `level` (Okabe and Ito's blue and vermilion, and grey), each with a mark of
its own shape, so that no meaning depends on colour alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitlab.analysis.formats.plots import MOST_CURVES, verdict
from vitlab.analysis.table_model import Entry, Table
from vitlab.core.metrics import Figure

FOREST_WIDTH, FOREST_HEIGHT = 230, 30

Scale = tuple[float, float]
Rows = Sequence[Mapping[str, Any]]


def forest_scale(table: Table, dataset: str) -> Scale:
    """From the least to the greatest difference to the baseline's mean that is drawn."""
    ends = [0.0, *((-table.margin, table.margin) if table.margin is not None else ())]
    for row in table.rows:
        entry = row.entries[dataset]
        if entry.centre is not None:
            ends += [value - entry.centre for value in entry.scores]
        ends += [end for end in (entry.comparison.low, entry.comparison.high) if end is not None]
    margin = 0.04 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def forest_axis(scale: Scale) -> str:
    """The axis above a column of `forest`; a number at its end may reach out of it."""
    ticks = "".join(
        f'<text x="{_at(tick, scale, FOREST_WIDTH):.1f}" y="11" text-anchor="middle">{tick:+g}</text>'
        if tick
        else f'<text x="{_at(0, scale, FOREST_WIDTH):.1f}" y="11" text-anchor="middle">0</text>'
        for tick in nice_ticks(scale, 4)
    )
    return f'<svg class="forest" width="{FOREST_WIDTH}" height="15" overflow="visible" aria-hidden="true">{ticks}</svg>'


def forest(entry: Entry, scale: Scale, margin: float | None = None) -> str:
    """A row's seeds, mean and simultaneous interval, relative to its baseline's mean, on a band of the margin."""
    values, c, base = entry.scores, entry.comparison, entry.centre
    middle, zero = FOREST_HEIGHT / 2, _at(0, scale, FOREST_WIDTH)
    marks = [f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{FOREST_HEIGHT}"/>']
    if margin is not None:
        left, right = (_at(end, scale, FOREST_WIDTH) for end in (-margin, margin))
        marks.insert(
            0, f'<rect class="margin" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{FOREST_HEIGHT}"/>'
        )
    if values and base is not None:
        kind = verdict(c)
        if c.low is not None and c.high is not None:
            ends = [_at(end, scale, FOREST_WIDTH) for end in (c.low, c.high)]
            marks.append(
                f'<line class="interval {kind}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle}" y2="{middle}">'
                f"<title>95 % CI {c.low:+.2f} to {c.high:+.2f}</title></line>"
            )
        marks += [
            f'<circle class="seed" cx="{_at(value - base, scale, FOREST_WIDTH):.1f}" cy="{middle}" r="3.4">'
            f"<title>seed {seed}: {value:.2f}</title></circle>"
            for seed, value in zip(entry.seeds, values, strict=True)
        ]
        x = _at(c.mean - base, scale, FOREST_WIDTH)
        marks.append(f'<path class="mean {kind}" d="{_shape(kind, x, middle)}"><title>mean {c.mean:.2f}</title></path>')
    size = f'width="{FOREST_WIDTH}" height="{FOREST_HEIGHT}"'
    return f'<svg class="forest" {size} role="img" aria-label="every seed, mean and interval">{"".join(marks)}</svg>'


def _shape(kind: str, x: float, y: float) -> str:
    """A triangle that points up or down, a square, or a diamond."""
    if kind == "same":
        return f"M{x - 4.5:.1f} {y - 4.5}h9v9h-9z"
    if kind == "level":
        return f"M{x:.1f} {y - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"
    tip = -6 if kind == "up" else 6
    return f"M{x:.1f} {y + tip}l6 {-2 * tip + tip / 6:.1f}h-12z"


def curves_panel(
    label: str, seeds: Sequence[Rows], base: Sequence[Rows], x: Scale, y: Scale, shown: Figure, *,
    end: float | None = None, below: str = "",
) -> str:  # fmt: skip
    """One condition's metric over the epochs, a line per seed, before the baseline's in grey.

    `end` is the last epoch of cells that are still trained; `below` are the items of a list under the panel.
    """
    width, height, left, bottom, top = 250, 150, 30, 20, 8
    inner, tall = width - left - 8, height - bottom - top

    def line(rows: Rows, kind: str) -> str:
        points = [(r["epoch"], r[shown.row_key]) for r in rows if shown.row_key in r]
        places = " ".join(f"{left + _at(e, x, inner):.1f},{top + tall - _at(v, y, tall):.1f}" for e, v in points)
        if len(points) == 1:
            cx, cy = places.split(",")
            return f'<circle class="dot {kind}" cx="{cx}" cy="{cy}" r="3"/>'
        return f'<polyline class="curve {kind}" points="{places}"/>' if points else ""

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{place:.1f}" y2="{place:.1f}"/>'
        f'<text x="{left - 5}" y="{place + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in nice_ticks(y, 4)
        for place in [top + tall - _at(tick, y, tall)]
    )
    epochs = "".join(
        f'<text x="{left + _at(tick, x, inner):.1f}" y="{height - 5}" text-anchor="middle">{tick:g}</text>'
        for tick in nice_ticks(x, 4)
    )
    lines = ""
    if end is not None:
        at = left + _at(end, x, inner)
        lines = f'<line class="end" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{top + tall}"/>'
    lines += "".join(line(rows, "base") for rows in base[:MOST_CURVES])
    lines += "".join(line(rows, "own") for rows in seeds[:MOST_CURVES])
    name = html.escape(label)
    below = f'<ul class="seeds">{below}</ul>' if below else ""
    return (
        f'<figure class="panel"><figcaption>{name}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(shown.title)} of {name} over the epochs">{grid}{epochs}{lines}</svg>{below}</figure>'
    )


def cost_chart(table: Table) -> str:
    """The metric's mean against device-hours per cell; names are moved apart."""
    points = [
        (entry.device_hours / entry.comparison.n, entry.comparison.mean, _name(row.label, dataset, table))
        for row in table.rows
        for dataset, entry in row.entries.items()
        if entry.device_hours and entry.comparison.n
    ]
    if not points:
        return ""
    right = 24 + 7 * max(len(name) for _, _, name in points)  # room for the longest name
    width, height, left, bottom, top = 400 + right, 300, 40, 38, 12
    x = padded([h for h, _, _ in points])
    y = padded([m for _, m, _ in points])
    inner, tall = width - left - right, height - bottom - top
    places = sorted(
        ((top + tall - _at(m, y, tall), left + _at(h, x, inner), h, m, name) for h, m, name in points),
    )
    marks, below = [], -math.inf
    for py, px, hours, mean, name in places:
        at = max(py, below + 14)
        below = at
        text = html.escape(name)
        marks.append(
            f'<path class="leader" d="M{px:.1f} {py:.1f}L{width - right + 8} {at:.1f}"/>'
            f'<circle class="point" cx="{px:.1f}" cy="{py:.1f}" r="5"><title>{text}: {mean:.2f} at {hours:.3g} device-h'
            f'</title></circle><text class="name" x="{width - right + 11}" y="{at + 4:.1f}">{text}</text>'
        )
    height = max(height, int(below) + bottom)
    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{place:.1f}" y2="{place:.1f}"/>'
        f'<text x="{left - 6}" y="{place + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in nice_ticks(y, 5)
        for place in [top + tall - _at(tick, y, tall)]
    )
    axis = "".join(
        f'<text x="{left + _at(tick, x, inner):.1f}" y="{top + tall + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in nice_ticks(x, 4)
    )
    title = f'<text x="{left + inner / 2}" y="{top + tall + 32}" text-anchor="middle">device-hours per cell</text>'
    return (
        f'<svg class="cost" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(table.figure.title)} against device-hours per cell">'
        f"{grid}{axis}{title}{''.join(marks)}</svg>"
    )


def _name(label: str, dataset: str, table: Table) -> str:
    return f"{label} ({dataset})" if len(table.datasets) > 1 else label


def padded(values: Sequence[float]) -> Scale:
    """From the least to the greatest value, with a margin."""
    margin = 0.08 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    return min(values) - margin, max(values) + margin


def nice_ticks(scale: Scale, most: int) -> list[float]:
    """Round values inside a scale, about `most` of them, a step of 1, 2 or 5 times a power of ten apart."""
    span = scale[1] - scale[0]
    rough = span / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(scale[0] / step)
    return [round(i * step, 10) for i in range(first, math.floor(scale[1] / step) + 1)]


def _at(value: float, scale: Scale, length: float) -> float:
    return (value - scale[0]) / (scale[1] - scale[0]) * length
