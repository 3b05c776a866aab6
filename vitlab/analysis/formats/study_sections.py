"""The parts of a page that are there only while its study is not finished: where the cells stand, failures, curves."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterable, Sequence

from vitlab.analysis.formats.page_plots import Scale, curves_panel, padded
from vitlab.analysis.table_model import CellState, StudyState
from vitlab.core.metrics import Figure

MOST_ROWS = 40
"""Of a larger study only the cells that are neither finished nor still to begin are listed at once."""
MOST_CELLS, MOST_PANELS = 1000, 120
"""What a page holds at most of a study: more would be slow to read every few seconds."""
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[^\n\t\x20-\x7e\x80-\U0010ffff]|[\x80-\x9f]")
SCRIPT = """<script>
(()=>{const box=document.getElementById("refresh"),key="vitlab "+location.pathname,
all=q=>[...document.querySelectorAll(q)];
try{const was=JSON.parse(sessionStorage.getItem(key));if(was){box.checked=was.on;all("details").forEach((d,i)=>{
if(was.open[i]!==undefined)d.open=was.open[i]});all(".scroll,pre").forEach((s,i)=>{s.scrollLeft=was.left[i]||0});
scrollTo(0,was.y)}}catch(e){}
addEventListener("pagehide",()=>{try{sessionStorage.setItem(key,JSON.stringify({on:box.checked,y:scrollY,
open:all("details").map(d=>d.open),left:all(".scroll,pre").map(s=>s.scrollLeft)}))}catch(e){}});
box.parentElement.hidden=false;const old=document.getElementById("old");
const age=()=>{old.hidden=Date.now()/1000-old.dataset.at<old.dataset.patience};age();setInterval(age,10000);
setInterval(()=>{if(box.checked&&document.visibilityState==="visible"&&!String(getSelection()))location.reload()},
1000*box.dataset.seconds)})()</script>"""
"""Keeps the place in the page, and what is open, when the page is read again; the reader can stop that."""


def head(study: StudyState) -> str:
    """What a browser needs to read the page again: a script, which a reader can stop, else the browser's own means."""
    return f'<noscript><meta http-equiv="refresh" content="{study.refresh}"></noscript>'


def title(study: StudyState) -> str:
    return f"{study.counts.get('finished', 0)}/{len(study.cells)} {study.name}"


def overview(study: StudyState) -> str:
    """Counts, the share that is trained, device-hours, the expected end, and how current all this is."""
    counts = ", ".join(f"{count} {state}" for state, count in study.counts.items())
    percent = f"{100 * study.share:.0f} %"
    facts = [f"<b>{_hours(sum(cell.spent or 0.0 for cell in study.cells))}</b> device-hours spent"]
    coming = [cell for cell in study.cells if cell.is_coming]
    priced = [cell.to_come for cell in coming if cell.to_come is not None]
    facts += [f"about <b>{_hours(sum(priced))}</b> to come"] if priced else []
    if unpriced := len(coming) - len(priced):
        facts.append(f"<b>{unpriced}</b> without an estimate: no cell of their model has trained an epoch")
    if study.ends and study.at_once:
        facts.append(f"ends about <b>{study.ends}</b> with {study.at_once} at once")
    at = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(study.written))
    return (
        f'<p class="state">{html.escape(counts)} of {len(study.cells)} cells</p>'
        f'<progress max="1" value="{study.share:.4f}" aria-label="epochs trained">{percent}</progress>'
        f'<p class="legend">{percent} of all epochs</p>'
        f'<ul class="facts">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>'
        f'<p class="legend">Written {at}. <label hidden><input type="checkbox" id="refresh" checked '
        f'data-seconds="{study.refresh}"> Reload every {study.refresh} seconds</label></p>'
        f'<p id="old" class="alarm" role="status" data-at="{study.written:.0f}" data-patience="{study.patience}" '
        "hidden>"
        f"This page is no longer kept current. To do so: <code>{html.escape(study.command)}</code></p>"
    )


def failures(study: StudyState) -> str:
    """Why cells failed, with the last lines of their logs."""
    failed = [cell for cell in study.cells if cell.failure]
    if not failed:
        return ""
    shown = "".join(map(_failure, failed[:MOST_ROWS]))
    more = f"<p>… and {len(failed) - MOST_ROWS} more</p>" if len(failed) > MOST_ROWS else ""
    return f"<h2>What went wrong</h2>{shown}{more}"


def _failure(cell: CellState) -> str:
    name = html.escape(cell.name)
    lines = "\n".join(_CONTROL.sub("", line) for line in cell.log)
    log = (
        f'<pre tabindex="0" role="region" aria-label="the end of the log of {name}">{html.escape(lines)}</pre>'
        if lines
        else ""
    )
    return (
        f'<section class="failure"><h3>{html.escape(cell.mark)} {name} {html.escape(cell.state)}</h3>'
        f"<p>{html.escape(_CONTROL.sub('', cell.failure))}</p>{log}<p>{_link(cell, 'log.txt', 'the whole log')}</p>"
        "</section>"
    )


def cells(study: StudyState, shown: Figure) -> str:
    """The plan: every cell with its state; of a large study at once only those that are worth a look."""
    if len(study.cells) <= MOST_ROWS:
        return f"<h2>Cells</h2>{_cells('cells', study.cells, shown)}"
    now = [cell for cell in study.cells if cell.state not in ("finished", "not begun")]
    first = _cells("cells that are trained, wait or have failed", now[:MOST_CELLS], shown) if now else ""
    listed = study.cells[:MOST_CELLS]
    which = f"All {len(listed)} cells" if len(listed) == len(study.cells) else f"The first {len(listed)} cells"
    return f"<h2>Cells</h2>{first}<details><summary>{which}</summary>{_cells('all cells', listed, shown)}</details>"


def _cells(name: str, listed: Iterable[CellState], shown: Figure) -> str:
    titles = ("cell", "state", "epoch", shown.title, "img/s", "ends", "device-h spent", "to come", "record")
    head = "".join(f'<th scope="col"{" class=left" if i < 2 else ""}>{text}</th>' for i, text in enumerate(titles))
    body = "".join(f"<tr>{_row(cell, shown)}</tr>" for cell in listed)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table class="cells">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(cell: CellState, shown: Figure) -> str:
    known = [row[shown.row_key] for row in cell.rows if shown.row_key in row]
    epoch = f"{cell.epoch} of {cell.epochs}" if (cell.epoch or cell.state == "running") and cell.epochs else ""
    figures = (
        epoch, shown.shown(known[-1]) if known else "not yet" if cell.is_coming else "",
        f"{cell.rate:,.0f}" if cell.rate and cell.state == "running" else "", cell.ends or "",
        _hours(cell.spent), "" if not cell.is_coming else "?" if cell.to_come is None else _hours(cell.to_come),
    )  # fmt: skip
    about = f" <small>{html.escape(cell.about)}</small>" if cell.about else ""
    kind = cell.state.replace(" ", "-")
    state = f'<span aria-hidden="true">{html.escape(cell.mark)}</span> {html.escape(cell.state)}{about}'
    return (
        f'<th scope="row">{html.escape(cell.name)}</th><td class="left words {kind}">{state}</td>'
        + "".join(f"<td>{html.escape(text)}</td>" for text in figures)
        + f"<td>{_link(cell, '', cell.id)}</td>"
    )


def _link(cell: CellState, file: str, text: str) -> str:
    if not cell.folder:
        return f"<code>{html.escape(text)}</code>"
    target = f"{cell.folder}/{file}" if file else cell.folder
    return f'<a href="{html.escape(target)}"><code>{html.escape(text)}</code></a>'


def curves(study: StudyState, shown: Figure, baseline: Iterable[str]) -> str:
    """A panel for each condition, a line for each of its cells, up to the epoch at which they end.

    Behind them are those of the cells of the `baseline`, where these are finished.
    """
    groups: dict[str, list[CellState]] = {}
    for cell in study.cells:
        groups.setdefault(cell.group, []).append(cell)
    begun = {name: own for name, own in groups.items() if any(cell.rows for cell in own)}
    if not begun:
        return ""
    base = [cell for cell in study.cells if cell.id in set(baseline)]
    scales = {
        part: _scales([cell for own in begun.values() for cell in own if cell.part == part], shown)
        for part in {cell.part for own in begun.values() for cell in own}
    }
    drawn = list(begun.items())[:MOST_PANELS]
    panels = [_panel(name, own, shown, base, *scales[own[0].part]) for name, own in drawn]
    waiting = [name for name in groups if name not in begun]
    notes = [
        f"{shown.label} on the evaluation set over the epochs, a line per cell; the upright line is the last epoch."
    ]
    notes += [f"Dashed grey: {base[0].group}."] if base else []
    notes += [f"{len(begun) - len(drawn)} more conditions are not drawn."] if len(begun) > len(drawn) else []
    notes += [f"Not yet begun: {', '.join(waiting[:20])}{', …' if len(waiting) > 20 else ''}."] if waiting else []
    note = html.escape(" ".join(notes))
    return f'<h2>Learning curves</h2><div class="panels">{"".join(panels)}</div><p class="legend">{note}</p>'


def _scales(drawn: Sequence[CellState], shown: Figure) -> tuple[Scale, Scale]:
    """The axes that all panels of a part of the study have: epochs, and the metric."""
    end = max(max(cell.epochs or 0, cell.epoch) for cell in drawn)
    values = [row[shown.row_key] for cell in drawn for row in cell.rows if shown.row_key in row]
    return (0.0, 1.04 * end), padded(values) if values else (0.0, 100.0)


def _panel(name: str, own: Sequence[CellState], shown: Figure, base: Sequence[CellState], x: Scale, y: Scale) -> str:
    alone = own[0].part != "cell" or any(cell in own for cell in base)
    end = max(max(cell.epochs or 0, cell.epoch) for cell in own)
    items = "".join(f"<li>{_standing(cell, shown)}</li>" for cell in own[:10])
    items += f"<li>… and {len(own) - 10} more</li>" if len(own) > 10 else ""
    behind = [] if alone else [cell.rows for cell in base]
    return curves_panel(name, [cell.rows for cell in own], behind, x, y, shown, end=end, below=items)


def _standing(cell: CellState, shown: Figure) -> str:
    """Where a cell of a panel stands, in a line."""
    known = [row[shown.row_key] for row in cell.rows if shown.row_key in row]
    parts = [f"{cell.mark} {cell.seed}"]
    parts += [shown.shown(known[-1])] if known else []
    if cell.state == "running":
        parts += [f"epoch {cell.epoch} of {cell.epochs}"] if cell.epoch else ["first epoch"]
        parts += [f"ends {cell.ends}"] if cell.ends else []
    elif cell.state != "finished":
        parts.append("not yet begun" if cell.state == "not begun" else cell.state)
    return html.escape(", ".join(parts))


def _hours(hours: float | None) -> str:
    """Device-hours with two significant digits, and never as a power of ten."""
    if hours is None:
        return "?"
    return (
        f"{hours:,.0f}"
        if hours >= 10
        else f"{hours:.1f}"
        if hours >= 1
        else f"{hours:.2g}"
        if hours >= 1e-3
        else ("0" if not hours else "< 0.001")
    )
