"""What every format is made of: grids of cells."""

from __future__ import annotations

from dataclasses import dataclass

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
