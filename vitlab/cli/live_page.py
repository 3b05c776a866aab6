"""The page of a study, `output_dir/studies/NAME.html`, written again while its cells train, from their records."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.analysis.formats.html import without_table
from vitlab.analysis.sources.records import read_record
from vitlab.analysis.table_model import CellState, StudyState
from vitlab.cli.analyze import AnalyzeConfig, context_of, refuse_flags, study_of, tabulate
from vitlab.cli.values import typed
from vitlab.config import ConfigError
from vitlab.core.errors import UserError, as_user_error
from vitlab.core.files import write_text
from vitlab.core.integrity import DamagedError
from vitlab.core.plugins import FORMATS
from vitlab.study.progress import MARKS
from vitlab.study.record import Record
from vitlab.study.spending import Accounts, Spending
from vitlab.study.status import Standing, StudyStatus, clock, status
from vitlab.study.studies import FOLDER, read_study

POLL_SECONDS = 2.0
"""How often the records are looked at."""
SHARE = 0.05
"""The part of a core that this takes at most: a large study is looked at less often."""
AGAIN_SECONDS = 60.0
"""How often the page is written where nothing happens, so that it shows that it is kept current."""
_LOG_LINES = 12


class LivePage:
    """Writes the page of one study. `config`, `layout` and `table_name` are those of `analyze.py`."""

    def __init__(
        self, config: AnalyzeConfig, study: str, layout: Mapping[str, Any] | None = None, table_name: str | None = None
    ) -> None:
        self.config = dataclasses.replace(config, study=study)
        self.layout, self.table_name, self.study = layout, table_name, study
        self.output_dir = Path(config.output_dir)
        self.file = self.output_dir / FOLDER / f"{study}.html"
        self._accounts = Accounts(self.output_dir)
        self._rows: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._read: dict[tuple[str, int], Mapping[str, Any]] = {}

    def status(self) -> StudyStatus:
        """Where the study stands. Raises UserError where its list is gone, or cannot be read."""
        for found in status(self.output_dir, self.study):
            return found
        read_study(self.output_dir, self.study)
        raise ConfigError("study", f"no study {self.study!r} in {self.output_dir}/ any more")

    def write(self, now: StudyStatus, pause: float = POLL_SECONDS) -> None:
        """Write the page: of a study that is over the one of `analyze.py`, else with the state of each cell.

        `pause` is how long it takes until the next one at least. Raises UserError.
        """
        state = None if now.is_over else self._state(now, pause)
        try:
            table, frame = tabulate(self.config, self.layout, self.table_name, state and self._read_once)
        except UserError as error:
            if state is None:
                raise
            text = without_table(dataclasses.replace(state, problem=str(error)))
        else:
            state = state and _with_damage(state, frame)
            context = dataclasses.replace(context_of(table, frame, self.file.parent), study=state)
            text = FORMATS["html"](table, context)
        write_text(self.file, text)

    def _state(self, now: StudyStatus, pause: float) -> StudyState:
        spending = self._accounts.of(now)
        cells = tuple(self._cell(cell, spending[cell.entry["id"]]) for cell in now.cells)
        running = [cell for cell in now.cells if cell.state == "running"]
        coming = [spending[cell.entry["id"]] for cell in now.cells]
        ends = None  # of the whole study
        if running and all(each.to_come is not None for each in coming):
            left = sum((each.to_come or 0.0) / each.devices for each in coming) / len(running)
            ends = clock(max([left, *(cell.seconds_left or 0.0 for cell in running)]))
        where = [] if self.config.output_dir == "runs" else [typed("output_dir", self.config.output_dir)]
        return StudyState(
            self.study, cells, now.counts, time.time(), ends, len(running),
            " ".join(["python analyze.py watch=true", typed("study", self.study), *where]),
            refresh=15 if len(cells) <= 500 else 60, patience=max(300, round(3 * pause)),
        )  # fmt: skip

    def _cell(self, cell: Standing, spending: Spending) -> CellState:
        record, state, row = Record(self.output_dir / cell.entry["id"]), cell.state, cell.row or {}
        left = cell.seconds_left
        if left is None and state == "running" and spending.to_come is not None:
            left = spending.to_come / spending.devices
        wrong = state in ("failed", "stale")
        about = cell.text.lstrip(": ,") if state in ("queued", "interrupted") else ""
        if state == "running":
            about = f"on {(cell.lock or {}).get('host', 'an unknown host')}{f' as {cell.job}' if cell.job else ''}"
        return CellState(
            cell.entry["id"], cell.entry["name"], state,
            MARKS.get({"queued": "waiting", "stale": "failed"}.get(state, state), "·"), about, cell.entry["part"],
            rows=self._rows_of(record, state), epochs=cell.epochs, rate=row.get("images_per_second"),
            ends=None if left is None else clock(left),
            spent=_hours(spending.spent), to_come=_hours(spending.to_come),
            folder=f"../{record.id}" if record.folder.is_dir() else "", failure=cell.text.lstrip(": ") if wrong else "",
            log=tuple(record.log_tail(_LOG_LINES)) if wrong else (),
        )  # fmt: skip

    def _read_once(self, record: Record) -> Mapping[str, Any]:
        """`read_record`, but a finished cell, whose predictions it compares with their digests, is read only once."""
        try:
            key = record.id, (record.folder / "result.json").stat().st_mtime_ns
        except OSError:
            return read_record(record)
        if key not in self._read:
            self._read[key] = read_record(record)
        return self._read[key]

    def _rows_of(self, record: Record, state: str) -> Sequence[Mapping[str, Any]]:
        if state == "not begun":
            return ()
        if record.id not in self._rows or state != "finished":
            try:
                rows = record.rows()
            except DamagedError:
                rows = []
            if state != "finished":
                self._rows.pop(record.id, None)
                return rows
            self._rows[record.id] = rows
        return self._rows[record.id]


def _with_damage(state: StudyState, frame: pd.DataFrame) -> StudyState:
    """`state`, with what reading the records has shown: files of finished cells that are not what was written."""
    damaged = frame[frame["state"] == "damaged"]
    faults = dict(zip(damaged["id"], damaged["faults"], strict=True)) if len(damaged) else {}
    mark, counts = MARKS["damaged"], dict(state.counts)
    cells = []
    for cell in state.cells:
        if cell.id in faults:
            counts[cell.state] -= 1
            counts["damaged"] = counts.get("damaged", 0) + 1
            cell = dataclasses.replace(cell, state="damaged", mark=mark, about="", failure=faults[cell.id], to_come=0.0)
        cells.append(cell)
    known = {name: count for name, count in counts.items() if count}
    return dataclasses.replace(state, cells=tuple(cells), counts=known)


def _hours(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 3600


def keep_current(
    page: LivePage, say: Callable[[str], None], ends: Callable[[float], bool], *, until_over: bool = False
) -> StudyStatus | None:
    """Write a page whenever a cell of its study has got further; returns where the study stands in the end.

    `ends(seconds)` waits so long, and says whether this is to end: then the page is written once more. With
    `until_over` it also ends with the study. What goes wrong is said once, and tried again.
    """
    said: set[str] = set()
    shown: object = None
    written, pause, now, last = 0.0, POLL_SECONDS, None, False
    while True:
        begun, used = time.monotonic(), time.process_time()
        try:
            now = page.status()
            seen = [(c.entry["id"], c.state, c.job, c.row and c.row["epoch"]) for c in now.cells]
            if last or seen != shown or begun > written + AGAIN_SECONDS:
                page.write(now, pause)
                if not written and not last:
                    say(f"page: {page.file}{'' if now.is_over else ', written again after each evaluation'}")
                shown, written = seen, time.monotonic()
        except Exception as error:
            mistake = as_user_error(error)
            line = f"page: {mistake}; the study goes on" if mistake else f"page: {traceback.format_exc().rstrip()}"
            if line not in said:
                say(line)
            said.add(line)
        if last or (until_over and now and now.is_over and shown is not None):
            return now
        used = time.process_time() - used  # on a busy machine much less than has passed
        pause = max(POLL_SECONDS, time.monotonic() - begun, used * (1 / SHARE - 1))
        last = ends(pause)


def watch_study(config: AnalyzeConfig, layout: Mapping[str, Any] | None, table_name: str | None) -> list[str]:
    """Keep the page of a study current until all its cells have ended, or Ctrl-C; returns closing lines.

    Raises ConfigError where there is no such study, or something is asked for that has no page.
    """
    for key, other in (("source", config.source != "runs"), ("sync", config.sync), ("diff", config.diff is not None)):
        if other:
            what = f"source={config.source}" if key == "source" else key
            raise ConfigError("watch", f"shows the records of a study below output_dir, and goes with no {what}; leave "
                              "one of the two out")  # fmt: skip
    study = study_of(config, None if layout is None else layout.get("study"))
    page = LivePage(config, study, layout, table_name)
    if read_study(page.output_dir, study) is None:
        known = ", ".join(sorted(file.stem for file in (page.output_dir / FOLDER).glob("*.json"))) or "none"
        raise ConfigError("study", f"no study {study!r} in {config.output_dir}/; its studies: {known}")
    try:
        tabulate(page.config, layout, table_name)
    except ConfigError as error:
        if error.key != "output_dir":  # else: no cell has a record yet
            raise

    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        return False

    try:
        now = keep_current(page, lambda line: print(line, flush=True), wait, until_over=True)
    except KeyboardInterrupt:
        return [f"study {study} goes on; its page stays as it is until the same command is typed again"]
    refuse_flags(config, tabulate(page.config, layout, table_name)[0])
    where = "" if config.output_dir == "runs" else f" {typed('output_dir', config.output_dir)}"
    return [*(now.lines()[:1] if now else []), f"next: python analyze.py {typed('study', study)}{where}"]
