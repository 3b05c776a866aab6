"""A table as one self-contained page: the grid, every seed's point, learning curves, findings, links to runs."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from vitlab.analysis.plot import Curves, draw_curves, draw_differences
from vitlab.analysis.render import extras, grid
from vitlab.analysis.table import Table

_STYLE = """
:root{color-scheme:light dark;--ink:#1a1d21;--soft:#5b6470;--line:#d9dee4;--paper:#fff;--mark:#eaf3fb}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa4b0;--line:#39414a;--paper:#15181c;--mark:#1d3346}
 figure img{filter:invert(.92) hue-rotate(180deg)}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{margin:0 auto;padding:1.5rem;max-width:72rem}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 1rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.95rem}
th,td{padding:.35rem .7rem;text-align:right;white-space:nowrap}
th{font-weight:600;color:var(--soft);border-bottom:2px solid var(--ink)}
thead th{vertical-align:bottom}td:first-child,th:first-child{text-align:left}
tbody tr:first-child td{border-bottom:1px solid var(--line)}tbody tr:last-child td{border-bottom:2px solid var(--ink)}
td.center{text-align:center}.changed{background:var(--mark)}
p.caption{color:var(--soft);max-width:60rem}li{margin:.2rem 0}figure{margin:0}img{max-width:100%;height:auto}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));gap:1.5rem}
code{font-size:.85em;color:var(--soft)}
@media(max-width:40rem){body{padding:1rem;font-size:15px}th,td{padding:.3rem .45rem}}
"""


def to_html(table: Table, curves: Curves, links: Mapping[str, str], provenance: str) -> str:
    """The page. `links` maps cells' identities to addresses; `provenance` goes into a comment."""
    titles, rows = grid(table)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = []
    tick_columns = len(table.rows[0].ticks)
    for row in rows:
        cells = []
        for i, cell in enumerate(row):
            classes = ["center"] * (cell.align == "center") + ["changed"] * (cell.bold and 0 < i <= tick_columns)
            text = html.escape(cell.text)
            if i == 0 and " ^" in text:
                label, mark = text.split(" ^")
                text = f"{label} <sup>{mark}</sup>"
            attribute = f' class="{" ".join(classes)}"' if classes else ""
            cells.append(f"<td{attribute}>{f'<b>{text}</b>' if cell.bold else text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    blocks = "".join(
        f"<h2>{html.escape(title)}</h2><ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"
        for title, lines in extras(table)
    )
    figures = _figure(draw_differences(table), "Difference to the baseline: every seed, mean and interval")
    if any(curves.values()):
        figures += _figure(draw_curves(curves), "Top-1 on the evaluation set over the epochs")
    runs = ""
    for row in table.rows:
        ids = [i for entry in row.entries.values() for i in entry.ids if i in links]
        if ids:
            anchors = (f'<a href="{html.escape(links[i])}"><code>{i}</code></a>' for i in ids)
            runs += f"<li>{html.escape(row.label)}: {', '.join(anchors)}</li>"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(table.title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><!-- {html.escape(provenance)} --><body><h1>{html.escape(table.title)}</h1>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'<p class="caption">{html.escape(table.caption)}</p><div class="figures">{figures}</div>{blocks}'
        f"<h2>Runs</h2><ul>{runs}</ul></body></html>\n"
    )


def _figure(figure: Figure, caption: str) -> str:
    """An inline SVG without dates or random names, so that the page repeats byte for byte."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "vitlab", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    data = base64.b64encode(stream.getvalue().encode()).decode()
    alt = html.escape(caption)
    return f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"><figcaption>{alt}</figcaption></figure>'
