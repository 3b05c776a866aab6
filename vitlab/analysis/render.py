"""A table as Markdown, LaTeX, CSV and JSON. The same strings go into every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass

from vitlab.analysis.table import Entry, Row, Table

PLUS_MINUS, DELTA, TICK, CROSS, GAP = "±", "Δ", "✓", "✗", "--"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of the grid."""

    text: str
    bold: bool = False
    align: str = "right"


def grid(table: Table) -> tuple[list[str], list[list[Cell]]]:
    """Column titles, and one list of cells per row: what every format shows."""
    several = len(table.datasets) > 1
    ticks = list(table.rows[0].ticks)
    titles = ["", *ticks]
    for dataset in table.datasets:
        prefix = f"{dataset}: " if several else ""
        titles += [f"{prefix}top-1", f"{prefix}{DELTA} (95 % CI)"] + ([] if several else ["p", "top-5", "best top-1"])
        titles += [f"{prefix}n"]
    titles += [] if several else ["params", "device-h"]
    marks = {row.label: chr(ord("a") + i) for i, row in enumerate(r for r in table.rows if r.note)}
    rows = []
    for row in table.rows:
        mark = f" ^{marks[row.label]}" if row.label in marks else ""
        cells = [Cell(row.label + mark, align="left")]
        cells += [Cell(TICK if on else CROSS, changed, "center") for on, changed in row.ticks.values()]
        for dataset in table.datasets:
            cells += _entry_cells(row, row.entries[dataset], table, brief=several)
        if not several:
            entry = row.entries[table.datasets[0]]
            cells.append(Cell(f"{entry.parameters / 1e6:.3g} M" if entry.parameters else GAP))
            cells.append(Cell(f"{entry.device_hours:.2g}" if entry.device_hours is not None else GAP))
        rows.append(cells)
    return titles, rows


def _entry_cells(row: Row, entry: Entry, table: Table, brief: bool) -> list[Cell]:
    c = entry.comparison
    if not c.n:
        return [Cell(GAP)] * (2 if brief else 5) + [Cell("0")]
    spread = f" {PLUS_MINUS} {c.sd:.2f}" if c.sd is not None else ""
    delta = "" if c.delta is None else f"{c.delta:+.2f}"
    if c.low is not None and c.high is not None:
        delta += f" ({c.low:+.2f} to {c.high:+.2f})"
    cells = [Cell(f"{c.mean:.2f}{spread}", entry.best), Cell(delta)]
    if not brief:
        p = "" if c.p is None else "< 0.001" if c.p < 0.001 else f"{c.p:.3f}"
        cells += [Cell(p), Cell(_mean(entry, "last.top5")), Cell(_mean(entry, "best.top1"))]
    return [*cells, Cell(str(c.n))]


def _mean(entry: Entry, figure: str) -> str:
    value = entry.mean(figure)
    return GAP if value is None else f"{value:.2f}"


def footnotes(table: Table) -> list[str]:
    """Marked notes of rows first, then gaps and confounds."""
    noted = [row for row in table.rows if row.note]
    lines = [f"^{chr(ord('a') + i)} {row.label}: {row.note}" for i, row in enumerate(noted)]
    return lines + [note for note in table.notes if not any(note == f"{r.label}: {r.note}" for r in noted)]


def seed_lines(table: Table) -> list[str]:
    """Every seed's top-1: means hide what a reader should see."""
    lines = []
    for row in table.rows:
        for dataset in table.datasets:
            values = row.entries[dataset].values.get("last.top1", ())
            if len(values) > 1:
                on = f" on {dataset}" if len(table.datasets) > 1 else ""
                lines.append(f"{row.label}{on}: {', '.join(f'{v:.2f}' for v in values)}")
    return lines


def extras(table: Table) -> list[tuple[str, list[str]]]:
    """The blocks of text below the grid: title and lines."""
    blocks = [("Findings", list(table.findings)), ("Every seed (top-1, last epoch)", seed_lines(table))]
    if table.anova:
        lines = [
            f"{e['effect']}: F = {e['F']:.2f}, p = {'< 0.001' if e['p'] < 0.001 else format(e['p'], '.3f')}"
            for e in table.anova
        ]
        blocks.append(("Main effects and interaction (analysis of variance, type II)", lines))
    if table.reference:
        blocks.append(("Beside the reference", [_reference_line(r) for r in table.reference]))
    blocks.append(("Notes", footnotes(table)))
    return [(title, lines) for title, lines in blocks if lines]


def _reference_line(entry: dict) -> str:
    ours = "not run" if entry["ours"] is None else f"{entry['ours']:.2f}"
    known = "not known" if entry["value"] is None else f"{entry['value']:.2f} ({entry['source']})"
    return f"{entry['row']} on {entry['dataset']}, {entry['figure']}: ours {ours}, reference {known}{entry['verdict']}"


def to_markdown(table: Table) -> str:
    titles, rows = grid(table)
    text = [[f"**{c.text}**" if c.bold else c.text for c in row] for row in rows]
    widths = [max(len(t), *(len(r[i]) for r in text), 3) for i, t in enumerate(titles)]
    ends = {"left": (":", "-"), "center": (":", ":"), "right": ("-", ":")}
    rule = [ends[rows[0][i].align][0] + "-" * (w - 2) + ends[rows[0][i].align][1] for i, w in enumerate(widths)]

    def line(parts: list[str]) -> str:
        place = {"left": str.ljust, "center": str.center, "right": str.rjust}
        cells = zip(parts, widths, rows[0], strict=True)
        justified = [place[cell.align](part, width) for part, width, cell in cells]
        return "| " + " | ".join(justified) + " |"

    lines = [line(titles), "| " + " | ".join(rule) + " |", *map(line, text), "", table.caption]
    for title, block in extras(table):
        lines += ["", f"{title}:", "", *(f"- {entry}" for entry in block)]
    return "\n".join(lines) + "\n"


_LATEX = {
    "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "Δ": r"$\Delta$",
    "✓": r"\cmark", "✗": r"\xmark",
    "→": r"$\rightarrow$", "×": r"$\times$", "<": r"$<$", ">": r"$>$", "−": "--",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _tex_label(text: str) -> str:
    label, _, mark = text.partition(" ^")
    return _tex(label) + (rf"\textsuperscript{{{mark}}}" if mark else "")


def to_latex(table: Table) -> str:
    r"""An \input-able booktabs table; needs booktabs, amssymb (ticks) and, for wide tables, graphicx."""
    titles, rows = grid(table)
    columns = "".join({"left": "l", "center": "c", "right": "r"}[c.align] for c in rows[0])
    body = []
    for row in rows:
        parts = [_tex_label(row[0].text)] + [rf"\textbf{{{_tex(c.text)}}}" if c.bold else _tex(c.text) for c in row[1:]]
        body.append(" & ".join(parts) + r" \\")
    body.insert(1, r"\midrule")
    notes = [_tex(note) for note in footnotes(table)]
    return "\n".join([
        r"% needs: \usepackage{booktabs,amssymb,graphicx}",
        r"\providecommand{\cmark}{\ensuremath{\checkmark}}",
        r"\providecommand{\xmark}{\ensuremath{\times}}",
        r"\begin{table}[t]", r"\centering", rf"\caption{{{_tex(table.caption)}}}", rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(_tex, titles)) + r" \\", r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}}", *(rf"\par\footnotesize {note}" for note in notes), r"\end{table}", "",
    ])  # fmt: skip


def to_csv(table: Table) -> str:
    """One line per condition and data set, with every seed's value; numbers unrounded."""
    stream = io.StringIO()
    ticks = list(table.rows[0].ticks)
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([
        "row", "dataset", *ticks, "n", "seeds", "top1", "sd", "delta", "ci_low", "ci_high", "p_adjusted", "top5",
        "best_top1", "ema_top1", "top1_values", "parameters", "device_hours", "missing", "ids",
    ])  # fmt: skip
    for row in table.rows:
        for dataset, e in row.entries.items():
            c = e.comparison
            writer.writerow([
                row.label, dataset, *(int(on) for on, _ in row.ticks.values()), c.n, " ".join(map(str, e.seeds)),
                c.mean if c.n else "", *("" if v is None else v for v in (c.sd, c.delta, c.low, c.high, c.p)),
                *("" if (v := e.mean(f)) is None else v for f in ("last.top5", "best.top1", "ema.last.top1")),
                " ".join(map(repr, e.values.get("last.top1", ()))), e.parameters or "",
                "" if e.device_hours is None else e.device_hours, "; ".join(e.missing), " ".join(e.ids),
            ])  # fmt: skip
    return stream.getvalue()


def to_json(table: Table) -> str:
    """The model itself."""
    content = dataclasses.asdict(table)
    return (
        json.dumps({"schema_version": 1} | content, indent=1, ensure_ascii=False, default=str).replace("NaN", "null")
        + "\n"
    )
