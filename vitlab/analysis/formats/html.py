"""A table as one self-contained page: the grid with every seed's point, findings, learning curves, links to runs."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from vitlab.analysis.formats.grids import Cell, Grid, blocks, grids, scatter_grid
from vitlab.analysis.formats.plots import LearningCurves, verdict
from vitlab.analysis.formats.svg import cost_chart, curves_panel, forest, forest_axis, forest_scale, padded
from vitlab.analysis.table_model import Context, Row, Table
from vitlab.core.plugins import register_format

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--paper:#fff;--card:#f6f8fa;--mark:#dcecf9;
--up:#0072b2;--down:#d55e00;--level:#6e7781;--same:#009e73}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9da7b1;--line:#363d45;--paper:#14171a;--card:#1c2126;
--mark:#17364d;--up:#56b4e9;--down:#f0803c;--level:#9da7b1}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--paper);
margin:0 auto;padding:2rem 1.5rem 4rem;max-width:84rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.1rem;margin:2.4rem 0 .6rem}
p.caption{color:var(--soft);max-width:62rem;margin:.6rem 0 0;font-size:.92rem}
a{color:var(--up)}ul{margin:.4rem 0;padding-left:1.2rem;max-width:62rem}li{margin:.25rem 0}
.facts{display:flex;flex-wrap:wrap;gap:.5rem;margin:0 0 1.4rem;padding:0;list-style:none}
.facts li{background:var(--card);border:1px solid var(--line);border-radius:2rem;padding:.12rem .8rem;margin:0;
font-size:.88rem;color:var(--soft)}.facts b{color:var(--ink)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.94rem;border-bottom:2px solid var(--ink)}
th,td{padding:.34rem .7rem;text-align:right;white-space:nowrap}
thead th{font-weight:600;color:var(--soft);border-bottom:1.5px solid var(--ink);vertical-align:bottom;font-size:.85rem}
.left{text-align:left}.center{text-align:center}
th.tick,td.center{padding:.34rem .3rem}
th.tick span{writing-mode:vertical-rl;transform:rotate(180deg);display:inline-block;line-height:1.1}
tbody th{font-weight:600;text-align:left;position:sticky;left:0;background:var(--paper);z-index:1}
thead th:first-child{position:sticky;left:0;background:var(--paper);z-index:2}
.main tbody tr:first-child>*{border-bottom:1px solid var(--line)}
tbody tr:hover>*{background:var(--card)}
td.off{color:var(--line)}td.changed{background:var(--mark)}td.changed b{color:var(--up)}td.words{white-space:normal}
td.plot,th.plot{padding:0 .4rem;line-height:0}td.plot svg{display:block}sup{color:var(--soft);font-weight:400}
svg text{font:11px system-ui,sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
svg text.name{fill:var(--ink);font-size:12px}
.zero{stroke:var(--level);stroke-dasharray:2 2}.interval{stroke-width:2.5;stroke-linecap:round}
.seed{fill:var(--paper);stroke:var(--level);stroke-width:1.4}.mean{stroke:var(--paper);stroke-width:1}
.interval.up{stroke:var(--up)}.interval.down{stroke:var(--down)}.interval.level{stroke:var(--level)}
.interval.same{stroke:var(--same)}.mean.same{fill:var(--same)}.margin{fill:var(--same);opacity:.15}
.mean.up{fill:var(--up)}.mean.down{fill:var(--down)}.mean.level{fill:var(--level)}
.grid{stroke:var(--line);stroke-width:.8}.leader{stroke:var(--line);fill:none}.point{fill:var(--up)}
.curve{fill:none;stroke-width:1.6;stroke-linejoin:round}.curve.own{stroke:var(--up)}.dot.own{fill:var(--up)}
.curve.base{stroke:var(--level);stroke-dasharray:3 2;opacity:.8}.dot.base{fill:var(--level)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(14.5rem,1fr));gap:1rem}
figure{margin:0}.panel{background:var(--card);border-radius:.6rem;padding:.5rem .5rem .2rem}
.panel svg{display:block;width:100%}
figcaption{font-weight:600;font-size:.9rem;padding:0 .3rem .2rem}.cost{width:100%;max-width:40rem}
.findings{list-style:none;padding:0}.findings li{padding-left:1.6rem;position:relative}
.findings li::before{position:absolute;left:.1rem;content:"◆";color:var(--level)}
.findings .up::before{content:"▲";color:var(--up)}.findings .down::before{content:"▼";color:var(--down)}
.findings .same::before{content:"■";color:var(--same)}.findings .plain::before{content:"·"}
.legend{color:var(--soft);font-size:.88rem;margin:.5rem 0 0}code{font-size:.85em}
@media(max-width:40rem){body{padding:1.1rem .9rem 3rem;font-size:15px}h1{font-size:1.35rem}th,td{padding:.3rem .45rem}
.panels{grid-template-columns:repeat(2,minmax(0,1fr));gap:.6rem}.panel svg text{font-size:13px}}
@media print{body{max-width:none}.scroll{overflow:visible}}
"""
_LEGEND = (
    "Points: every seed's difference to the baseline's mean. ▲ better, ▼ worse, ◆ no difference shown, ■ same within "
    "the margin (band); lines: simultaneous 95 % intervals. Point at a mark for its value."
)


@register_format("html")
def html_file(table: Table, context: Context) -> str:
    """The page."""
    return to_html(table, context.curves, context.links, context.provenance)


def to_html(table: Table, curves: LearningCurves, links: Mapping[str, str], provenance: str) -> str:
    """The page. `links` maps cells' identities to addresses; `provenance` goes into a comment."""
    title = html.escape(table.title)
    first, *others = grids(table)
    parts = [
        f"<h1>{title}</h1>{_facts(table)}",
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{_main(first, table)}</div>',
        f'<p class="legend">{_LEGEND}</p><p class="caption">{html.escape(table.caption)}</p>',
        _findings(table),
    ]
    if "scatter" not in table.columns and (grid := scatter_grid(table)):
        others = [grid, *others]
    parts += [f'<h2>{html.escape(grid.title)}</h2><div class="scroll">{_plain(grid)}</div>' for grid in others]
    parts.append(_curves(curves, table))
    if chart := cost_chart(table):
        parts.append(f"<h2>Accuracy against cost</h2>{chart}")
    for block in blocks(table):
        if block.name != "findings":  # these are shown above
            items = "".join(f"<li>{_superscript(html.escape(line))}</li>" for line in block.lines)
            parts.append(f"<h2>{html.escape(block.title)}</h2><ul>{items}</ul>")
    parts.append(_runs(table, links))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><!-- {html.escape(provenance)} --><body>{''.join(parts)}</body></html>\n"
    )


def _facts(table: Table) -> str:
    """Short facts below the heading."""
    counts = sorted({e.comparison.n for row in table.rows for e in row.entries.values()})
    cells = len({i for row in table.rows for e in row.entries.values() for i in e.ids})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    many = "gap or confound" if len(table.flags) == 1 else "gaps or confounds"
    gaps = f"<b>{len(table.flags)}</b> {many}: see the notes" if table.flags else "no gaps, no confounds"
    facts = [f"<b>{len(table.rows)}</b> conditions", f"<b>{cells}</b> finished cells", f"<b>{seeds}</b> seeds", gaps]
    facts += [f"<b>{html.escape(dataset)}</b>" for dataset in table.datasets]
    return f'<ul class="facts">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>'


def _main(grid: Grid, table: Table) -> str:
    """The main grid, with a column of points and intervals after each difference."""
    ticks = len(table.rows[0].ticks)
    plots = {1 + ticks + 4 * i + 1: dataset for i, dataset in enumerate(table.datasets)}
    scales = {dataset: forest_scale(table, dataset) for dataset in table.datasets}
    head = ""
    for i, title in enumerate(grid.titles):
        text = html.escape(title)
        head += f'<th class="tick"><span>{text}</span></th>' if 0 < i <= ticks else f"<th>{text}</th>"
        if i in plots:
            head += f'<th class="plot">{forest_axis(scales[plots[i]])}</th>'
    body = ""
    for row, cells in zip(table.rows, grid.rows, strict=True):
        body += "<tr>"
        for i, cell in enumerate(cells):
            body += _cell(cell, first=i == 0, tick=0 < i <= ticks)
            if i in plots:
                plot = forest(row.entries[plots[i]], scales[plots[i]], table.margin)
                body += f'<td class="plot">{plot}</td>'
        body += "</tr>"
    return f'<table class="main"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _plain(grid: Grid) -> str:
    head = "".join(
        f'<th class="{cell.align}">{html.escape(t)}</th>' for t, cell in zip(grid.titles, grid.rows[0], strict=True)
    )
    rows = ("".join(_cell(cell, first=i == 0) for i, cell in enumerate(row)) for row in grid.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Cell, *, first: bool, tick: bool = False) -> str:
    text = html.escape(cell.text)
    text = f"<b>{text}</b>" if cell.bold else text
    if cell.mark:
        text += f"<sup>{cell.mark}</sup>"
    if first:
        return f'<th scope="row">{text}</th>'
    classes = [] if cell.align == "right" else [cell.align]
    if tick:
        classes += ["changed"] if cell.bold else ["off"] if cell.text == "✗" else []
    return f'<td class="{" ".join(classes)}">{text}</td>' if classes else f"<td>{text}</td>"


def _findings(table: Table) -> str:
    """The sentences, each behind the mark of its verdict."""
    kinds = [
        verdict(row.entries[dataset].comparison)
        for dataset in table.datasets
        for row in table.rows
        if row.entries[dataset].comparison.delta is not None
    ]
    pairs = [*zip(kinds, table.findings, strict=True), *(("plain", line) for line in table.detectable)]
    items = "".join(f'<li class="{kind}">{html.escape(line)}</li>' for kind, line in pairs)
    return f'<h2>Findings</h2><ul class="findings">{items}</ul>' if items else ""


def _curves(curves: LearningCurves, table: Table) -> str:
    """A panel for each condition, before the baseline's curves on the same data set."""
    key, label = table.figure.row_key, html.escape(table.figure.label)
    points = [
        (row["epoch"], row[key]) for seeds in curves.values() for rows in seeds for row in rows if key in row
    ]  # fmt: skip
    if not points:
        return ""
    x = padded([epoch for epoch, _ in points]) if len({e for e, _ in points}) > 1 else padded([0, points[0][0]])
    y = padded([value for _, value in points])
    count = len(table.datasets)
    panels, bases = "", list(curves.values())[:count]
    for i, (label, seeds) in enumerate(curves.items()):
        base: Sequence[Sequence[Mapping[str, float]]] = [] if i < count else bases[i % count]
        panels += curves_panel(label, seeds, base, x, y, table.figure)
    return (
        f'<h2>Learning curves</h2><div class="panels">{panels}</div><p class="legend">{label} on the evaluation set '
        f"over the epochs, a line per seed; dashed grey: {html.escape(table.rows[0].label)}.</p>"
    )


def _runs(table: Table, links: Mapping[str, str]) -> str:
    items = "".join(_run_links(row, links) for row in table.rows)
    return f"<h2>Runs</h2><ul>{items}</ul>" if items else ""


def _run_links(row: Row, links: Mapping[str, str]) -> str:
    anchors = []
    for entry in row.entries.values():
        for seed, identity in zip(entry.seeds, entry.ids, strict=True):
            name = f"<code>{html.escape(identity)}</code>"
            if link := links.get(identity):
                name = f'<a href="{html.escape(link)}">{name}</a>'
            anchors.append(f"{name} (seed {seed})")
    return f"<li>{html.escape(row.label)}: {', '.join(anchors)}</li>" if anchors else ""


def _superscript(line: str) -> str:
    return re.sub(r"^\^([a-z]+) ", r"<sup>\1</sup> ", line)
