r"""A table as an \input-able LaTeX fragment: booktabs rules, siunitx columns aligned at the decimal point."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vitlab.analysis.formats.grids import CROSS, DELTA, TICK, Cell, Grid, blocks, grids
from vitlab.analysis.table_model import Context, Table
from vitlab.core.plugins import register_format

_SPECIAL = {
    "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", DELTA: r"$\Delta$",
    TICK: r"\cmark{}", CROSS: r"\xmark{}", "→": r"$\rightarrow$", "×": r"$\times$", "<": r"$<$", ">": r"$>$",
    "−": r"$-$", "…": r"\dots{}",
}  # fmt: skip
_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?: ± (\d+)\.(\d+))?")
_UNTITLED = ("findings", "notes")
"""Blocks of text whose lines need no title."""
_SIGNED = re.compile(r"[+-]\d+\.\d+")


@register_format("tex")
def latex_file(table: Table, context: Context) -> str:
    """The fragment, with the provenance in a comment."""
    return f"% {context.provenance}\n{to_latex(table)}"


def to_latex(table: Table) -> str:
    r"""The fragment; its first lines say which packages it needs. A table wider than the line is made to fit."""
    tabulars = [_tabular(grid) for grid in grids(table)]
    below: list[str] = []
    for block in blocks(table):
        below += [*([] if block.name in _UNTITLED else [f"{block.title}:"]), *block.lines]
    lines = [
        r"% needs: \usepackage{booktabs,siunitx,amssymb,graphicx}",
        r"\providecommand{\cmark}{\ensuremath{\checkmark}}",
        r"\providecommand{\xmark}{\ensuremath{\times}}",
        r"\begin{table}[tp]", r"\centering", rf"\caption{{{escape(table.caption)}}}", rf"\label{{tab:{table.name}}}",
        r"\smallskip",
        r"\sisetup{detect-weight=true,separate-uncertainty=true,retain-explicit-plus=true,"
        r"table-align-uncertainty=false}",
    ]  # fmt: skip
    for tabular in tabulars:
        lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", *tabular, "}", r"\par\medskip"]
    lines += [r"\begin{minipage}{\linewidth}\footnotesize", *(rf"{_note(text)}\par" for text in below)]
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}", ""])


def escape(text: str) -> str:
    text = re.sub(r"(?<![\w.-])-(?=\d)", "−", text)
    return "".join(_SPECIAL.get(character, character) for character in text)


def _note(text: str) -> str:
    mark = re.match(r"\^([a-z]+) ", text)
    return rf"\textsuperscript{{{mark[1]}}}{escape(text[mark.end() :])}" if mark else escape(text)


def _tabular(grid: Grid) -> list[str]:
    formats = [_format([row[i] for row in grid.rows]) for i in range(len(grid.titles))]
    columns = "".join(
        f or {"left": "l", "center": "c", "right": "r"}[c.align] for f, c in zip(formats, grid.rows[0], strict=True)
    )
    titles = [
        rf"{{{escape(title)}}}" if form else escape(title) for title, form in zip(grid.titles, formats, strict=True)
    ]
    body = [
        " & ".join(_cell(cell, form is not None) for cell, form in zip(row, formats, strict=True)) + r" \\"
        for row in grid.rows
    ]
    if grid.name == "main":
        body.insert(1, r"\midrule")  # below the baseline
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(titles) + r" \\", r"\midrule"]
    return [*head, *body, r"\bottomrule", r"\end{tabular}"]


def _format(cells: Sequence[Cell]) -> str | None:
    """siunitx's column for the numbers among the cells; None for a column of words."""
    numbers = [m for cell in cells if (m := _NUMBER.fullmatch(cell.text))]
    if not numbers or any(cell.align != "right" for cell in cells):
        return None
    whole = max(len(m[2]) for m in numbers)
    digits = max(len(m[3] or "") for m in numbers)
    sign = "-" if any(m[1] for m in numbers) else ""
    spread = max((len(m[4] + m[5]) for m in numbers if m[4]), default=0)
    return f"S[table-format={sign}{whole}.{digits}{f'({spread})' if spread else ''}]"


def _cell(cell: Cell, aligned: bool) -> str:
    mark = rf"\textsuperscript{{{cell.mark}}}" if cell.mark else ""
    if aligned:
        if _NUMBER.fullmatch(cell.text):
            return (r"\bfseries " if cell.bold else "") + cell.text.replace("±", "+-") + mark
        return f"{{{escape(cell.text)}}}" if cell.text else ""
    if cell.align == "right" and _SIGNED.search(cell.text):
        return _SIGNED.sub(lambda number: rf"\num{{{number[0]}}}", cell.text)
    text = escape(cell.text)
    return (rf"\textbf{{{text}}}" if cell.bold else text) + mark
