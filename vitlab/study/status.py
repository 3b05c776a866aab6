"""Where the cells of all studies stand, from their records and Slurm's queue alone: no configuration is composed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlab.study.progress import MARKS, duration
from vitlab.study.record import Record
from vitlab.study.slurm_watch import Queued, queue, submitted_jobs
from vitlab.study.studies import Entry, read_studies

SILENT = 10
"""A cell that has written nothing for so many times its own epochs' time is stale; at least `SILENT_SECONDS`."""
SILENT_SECONDS = 600.0
SAVE_SECONDS = 120.0
"""How long cells may take to save before their jobs are ended."""
_ORDER = ("finished", "running", "stale", "queued", "failed", "damaged", "interrupted", "not begun")


@dataclass(frozen=True)
class Standing:
    """One cell: its state, the text that says more, and its job in Slurm's queue."""

    entry: Entry
    state: str
    text: str
    job: str | None = None
    lock: Mapping[str, Any] | None = None
    """Of a cell that a process trains: its host and pid."""

    @property
    def line(self) -> str:
        mark = MARKS.get({"queued": "waiting", "stale": "failed"}.get(self.state, self.state), "·")
        return f"  {mark} {self.entry['name']}  {self.entry['id']}  {self.state}{self.text}"


@dataclass(frozen=True)
class StudyStatus:
    """The cells of one study, in its order."""

    name: str
    cells: tuple[Standing, ...]

    @property
    def is_going_on(self) -> bool:
        """Whether a process trains one of its cells, or will."""
        return any(cell.state in ("running", "queued") for cell in self.cells)

    def lines(self) -> list[str]:
        """A line on the whole, and one for each cell that is neither finished nor still to begin."""
        counts = Counter(cell.state for cell in self.cells)
        parts = [f"{counts[state]} {state}" for state in _ORDER if counts[state]]
        shown = [cell.line for cell in self.cells if cell.state not in ("finished", "not begun")]
        return [f"study {self.name}: {', '.join(parts)} of {len(self.cells)}", *shown]


def status(output_dir: Path, study: str | None = None) -> list[StudyStatus]:
    """Where every study below `output_dir` stands, or the named one; those that were planned last come last."""
    jobs = submitted_jobs(output_dir)
    queued = (queue() or {}) if jobs else {}
    known: dict[str, tuple[str, str, str | None, Mapping[str, Any] | None]] = {}
    found = []
    for name, entries in read_studies(output_dir):
        if study is not None and name != study:
            continue
        for entry in entries:
            if entry["id"] not in known:
                known[entry["id"]] = _standing(Record(output_dir / entry["id"]), entry, jobs, queued)
        found.append(StudyStatus(name, tuple(Standing(entry, *known[entry["id"]]) for entry in entries)))
    return found


def cancel(found: StudyStatus, wait: float = SAVE_SECONDS) -> list[str]:
    """Take a study's waiting jobs out of Slurm's queue, and have its running ones save and end; returns what is left.

    Cells that a command on some machine trains are left to it: a line names them.
    """
    jobs = {cell.job: cell for cell in found.cells if cell.job}
    if jobs:
        now = queue() or {}
        waiting = [job for job in jobs if job in now and now[job].state == "PENDING"]
        running = [job for job in jobs if job in now and job not in waiting]
        if waiting:
            _scancel(*waiting)
        if running:
            _scancel("--signal=TERM", *running)  # the cell saves; its job then ends by itself
        end = time.monotonic() + wait
        while (left := [job for job in running if job in (queue() or {})]) and time.monotonic() < end:
            time.sleep(1)
        if left:
            _scancel(*left)
    elsewhere = [cell for cell in found.cells if cell.lock is not None and not cell.job]
    lines = [f"{found.name}: {len(jobs)} of its jobs cancelled; what was trained is saved"] if jobs else []
    for cell in elsewhere:
        assert cell.lock is not None
        where = f"process {cell.lock.get('pid', '?')} on {cell.lock.get('host', '?')}"
        lines.append(f"{cell.entry['name']} is left to the command that trains it ({where}): end that one with Ctrl-C")
    return lines or [f"{found.name}: none of its cells is running or queued"]


def _scancel(*words: str) -> None:
    subprocess.run(["scancel", *words], capture_output=True, timeout=60, check=False)


def _standing(
    record: Record, entry: Entry, jobs: Mapping[str, str], queued: Mapping[str, Queued]
) -> tuple[str, str, str | None, Mapping[str, Any] | None]:
    state, job = record.state(), jobs.get(record.id)
    where = queued.get(job or "")
    job = job if where else None
    if state == "finished":
        return "finished", "", None, None
    if state == "running":
        return _running(record, entry, job)
    if where is not None:
        reason = f" ({where.reason})" if where.reason and where.reason != "None" else ""
        after = f", saved after epoch {row['epoch']}" if (row := _last_row(record)) else ""
        starts = ": it starts" if where.state != "PENDING" else ""
        return "queued", f" as {job}{starts}{reason}{after}", job, None
    if state == "failed":
        return "failed", f": {record.why_failed()}", None, None
    if state == "interrupted":
        row = _last_row(record)
        done = f" after epoch {row['epoch']} of {_epochs(entry)}" if row else " before its first epoch ended"
        return "interrupted", f"{done}, {_ago(record)} ago; no process trains it", None, None
    return "not begun", "", None, None


def _running(record: Record, entry: Entry, job: str | None) -> tuple[str, str, str | None, Mapping[str, Any] | None]:
    try:
        lock = json.loads((record.folder / "lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        lock = {}
    row, epochs = _last_row(record), _epochs(entry)
    where = f" on {lock.get('host', 'an unknown host')}{f' as {job}' if job else ''}"
    if row is None:
        return "running", f"{where}, no epoch has ended yet", job, lock
    text = f"{where}, epoch {row['epoch']} of {epochs}"
    total = row.get("seconds")
    seconds = total / row["epoch"] if isinstance(total, int | float) else None
    if isinstance(rate := row.get("images_per_second"), int | float):
        text += f", {rate:,.0f} img/s"
    silent = time.time() - (record.folder / "metrics.jsonl").stat().st_mtime
    if seconds is not None:
        if silent > max(SILENT * seconds, SILENT_SECONDS):
            return "stale", f"{text}: holds its lock and has written nothing for {duration(silent)}", job, lock
        if isinstance(epochs, int) and epochs > row["epoch"]:
            left = max(0.0, (epochs - row["epoch"]) * seconds - silent)
            end = time.strftime("%H:%M" if left < 43200 else "%d %b %H:%M", time.localtime(time.time() + left))
            text += f", about {duration(left)} left (until {end})"
    return "running", text, job, lock


def _epochs(entry: Entry) -> Any:
    """The epochs of a cell by the study's list, or of the pre-training that it means; "?" where it does not say."""
    tree: Any = entry.get("experiment") or {}
    keys = ("pretrain", "recipe", "epochs") if entry["part"] == "pretraining" else ("recipe", "epochs")
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return "?" if tree is None else tree


def _last_row(record: Record) -> dict[str, Any] | None:
    """The last whole row of metrics.jsonl."""
    try:
        with (record.folder / "metrics.jsonl").open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 65536))
            row = json.loads(stream.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("epoch"), int) else None


def _ago(record: Record) -> str:
    times = [
        file.stat().st_mtime for name in ("metrics.jsonl", "config.yaml") if (file := record.folder / name).exists()
    ]
    return duration(time.time() - max(times)) if times else "some time"
