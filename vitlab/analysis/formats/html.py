"""A table as one self-contained page: the grid with every seed's point, findings, learning curves, links to runs."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vitlab.analysis.formats import study_sections
from vitlab.analysis.formats.grids import Cell, Grid, blocks, grids, scatter_grid
from vitlab.analysis.formats.page_plots import cost_chart, curves_panel, forest, forest_axis, forest_scale, padded
from vitlab.analysis.formats.plots import LearningCurves, verdict
from vitlab.analysis.table_model import Context, Row, StudyState, Table
from vitlab.core.metrics import Figure, figure
from vitlab.core.plugins import register_format

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--paper:#fff;--card:#f6f8fa;--mark:#dcecf9;
--up:#0072b2;--down:#d55e00;--level:#646d76;--same:#009e73;--link:#006ca9;--wrong:#b84f00}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9da7b1;--line:#363d45;--paper:#14171a;--card:#1c2126;
--mark:#17364d;--up:#56b4e9;--down:#f0803c;--level:#9da7b1;
--link:#56b4e9;--wrong:#f0803c}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--paper);
margin:0 auto;padding:2rem 1.5rem 4rem;max-width:84rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .6rem;letter-spacing:-.01em}
h2{font-size:1.1rem;margin:2.4rem 0 .6rem}
p.caption{color:var(--soft);max-width:62rem;margin:.6rem 0 0;font-size:.92rem}
a{color:var(--link)}ul{margin:.4rem 0;padding-left:1.2rem;max-width:62rem}li{margin:.25rem 0}
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
td.off{color:var(--level)}td.changed{background:var(--mark)}td.changed b{color:var(--link)}td.words{white-space:normal}
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
figure{margin:0;min-width:0}.panel{background:var(--card);border-radius:.6rem;padding:.5rem .5rem .2rem}
.panel svg{display:block;width:100%}
figcaption{font-weight:600;font-size:.9rem;padding:0 .3rem .2rem;overflow-wrap:anywhere}
.cost{width:100%;max-width:40rem}
.findings{list-style:none;padding:0}.findings li{padding-left:1.6rem;position:relative}
.findings li::before{position:absolute;left:.1rem;content:"◆";color:var(--level)}
.findings .up::before{content:"▲";color:var(--up)}.findings .down::before{content:"▼";color:var(--down)}
.findings .same::before{content:"■";color:var(--same)}.findings .plain::before{content:"·"}
.legend{color:var(--soft);font-size:.88rem;margin:.5rem 0 0}code{font-size:.85em}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.scroll:focus-visible,pre:focus-visible,summary:focus-visible{outline:2px solid var(--up);outline-offset:2px}
.state{margin:.2rem 0;font-size:1.05rem}progress{width:100%;max-width:40rem;height:.8rem;accent-color:var(--up)}
.legend+.facts{margin-top:.7rem}.facts+.legend{margin-top:-.6rem}
.alarm{border-left:4px solid var(--down);padding:.3rem .8rem;background:var(--card)}
.cells td.left{min-width:14rem}td small{color:var(--soft)}td.running,td.finished{color:var(--ink)}
td.failed,td.damaged,td.stale{color:var(--wrong);font-weight:600}
.failure{border-left:4px solid var(--down);padding:.1rem 0 .1rem .8rem;margin:.8rem 0}
.failure h3{font-size:1rem;margin:0}.failure p{margin:.3rem 0;white-space:pre-line;overflow-wrap:anywhere}
pre{background:var(--card);padding:.6rem;overflow:auto;max-height:18rem;font-size:.82rem;margin:.3rem 0;
border-radius:.3rem}
.end{stroke:var(--level);stroke-dasharray:1 3}.seeds{list-style:none;margin:0;padding:.1rem .3rem .3rem;
font-size:.82rem;color:var(--soft)}.seeds li{margin:0}details{margin:.8rem 0}summary{cursor:pointer}
@media(max-width:40rem){body{padding:1.1rem .9rem 3rem;font-size:15px}h1{font-size:1.35rem}th,td{padding:.3rem .45rem}
.panels{grid-template-columns:repeat(2,minmax(0,1fr));gap:.6rem}.panel svg text{font-size:13px}
.cells td.left{min-width:7rem}}
@media print{body{max-width:none}.scroll{overflow:visible}}
"""
_LEGEND = (
    "Points: every seed's difference to the baseline's mean. ▲ better, ▼ worse, ◆ no difference shown, ■ same within "
    "the margin (band); lines: simultaneous 95 % intervals. Point at a mark for its value."
)


@register_format("html")
def html_file(table: Table, context: Context) -> str:
    """The page."""
    return to_html(table, context.curves, context.links, context.provenance, context.study)


def to_html(
    table: Table, curves: LearningCurves, links: Mapping[str, str], provenance: str, study: StudyState | None = None
) -> str:
    """The page. `links` maps cells' identities to addresses; `provenance` goes into a comment.

    With `study` it is the page of a study that is not finished, which shows first where its cells stand.
    """
    title = html.escape(table.title)
    first, *others = grids(table)
    parts = []
    if study is None:
        parts += [f"<h1>{title}</h1>{_facts(table)}"]
    else:
        first = _so_far(first, table, study)
        parts += [*_beginning(study, table.figure), "<h2>The table so far</h2>"]
        parts += [f"<p>{title}</p>"] if table.title != f"Study {study.name}" else []
    parts += [
        _region(title, _main(first, table)),
        f'<p class="legend">{_LEGEND}</p><p class="caption">{html.escape(table.caption)}</p>',
        _findings(table),
    ]
    if "scatter" not in table.columns and (grid := scatter_grid(table)):
        others = [grid, *others]
    parts += [f"<h2>{html.escape(grid.title)}</h2>{_region(html.escape(grid.title), _plain(grid))}" for grid in others]
    baseline = [i for entry in table.rows[0].entries.values() for i in entry.ids]
    parts.append(_curves(curves, table) if study is None else study_sections.curves(study, table.figure, baseline))
    if chart := cost_chart(table):
        parts.append(f"<h2>Accuracy against cost</h2>{chart}")
    for block in blocks(table):
        if block.name != "findings":  # these are shown above
            items = "".join(f"<li>{_superscript(html.escape(line))}</li>" for line in block.lines)
            parts.append(f"<h2>{html.escape(block.title)}</h2><ul>{items}</ul>")
    parts.append(_runs(table, links))
    return _document(title, parts, provenance, study)


def without_table(study: StudyState) -> str:
    """The page of a study that is not finished and of which no table can be made: `study.problem` says why."""
    parts = _beginning(study, figure())
    parts.append(f'<h2>The table so far</h2><p class="state">No table yet: {html.escape(study.problem)}</p>')
    parts.append(study_sections.curves(study, figure(), ()))
    return _document(html.escape(f"Study {study.name}"), parts, "", study)


def _beginning(study: StudyState, shown: Figure) -> list[str]:
    return [
        f"<h1>{html.escape(f'Study {study.name}')}</h1>{study_sections.overview(study)}",
        study_sections.failures(study),
        study_sections.cells(study, shown),
    ]


def _document(title: str, parts: Sequence[str], provenance: str, study: StudyState | None) -> str:
    head = tail = ""
    if study is not None:
        title, head, tail = html.escape(study_sections.title(study)), study_sections.head(study), study_sections.SCRIPT
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">{head}'
        f"<style>{_STYLE}</style></head><!-- {html.escape(provenance)} --><body><main>{''.join(parts)}</main>{tail}"
        "</body></html>\n"
    )


def _region(name: str, table: str) -> str:
    """A table that may be wider than the page: a keyboard can scroll it too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{table}</div>'


def _so_far(grid: Grid, table: Table, study: StudyState) -> Grid:
    """The main grid, with what is still to come of each condition in place of an empty figure and of n."""
    coming = tuple(f"{cell.name} " for cell in study.cells if cell.is_coming)
    rows, ticks = [], len(table.rows[0].ticks)
    for row, cells in zip(table.rows, grid.rows, strict=True):
        changed = list(cells)
        for i, dataset in enumerate(table.datasets):
            entry, at = row.entries[dataset], 1 + ticks + 4 * i
            if any(line.startswith(coming) for line in entry.missing):
                n = entry.comparison.n
                changed[at] = changed[at] if n else replace(changed[at], text="not yet")
                changed[at + 3] = replace(changed[at + 3], text=f"{n} of {n + len(entry.missing)}")
        rows.append(tuple(changed))
    return replace(grid, rows=tuple(rows))


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
        head += _head(title, "tick" if 0 < i <= ticks else "")
        if i in plots:
            head += f'<th scope="col" class="plot" aria-label="drawn">{forest_axis(scales[plots[i]])}</th>'
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
    head = "".join(_head(t, cell.align) for t, cell in zip(grid.titles, grid.rows[0], strict=True))
    rows = ("".join(_cell(cell, first=i == 0) for i, cell in enumerate(row)) for row in grid.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _head(title: str, kind: str) -> str:
    text = html.escape(title) or '<span class="unseen">condition</span>'
    text = f"<span>{text}</span>" if kind == "tick" else text
    return f'<th scope="col" class="{kind}">{text}</th>' if kind else f'<th scope="col">{text}</th>'


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
