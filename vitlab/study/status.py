"""Where the cells of all studies stand, from their records and Slurm's queue alone: no configuration is composed."""

from __future__ import annotations

import dataclasses
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
from vitlab.study.slurm_queue import Queued, queue, submitted_jobs
from vitlab.study.studies import Entry, read_studies

SILENT = 10
"""A cell that has written nothing for so many times its own epochs' time is stale; at least `SILENT_SECONDS`."""
SILENT_SECONDS = 600.0
SAVE_SECONDS = 120.0
"""How long cells may take to save before their jobs are ended."""
_ORDER = ("finished", "running", "stale", "queued", "failed", "damaged", "interrupted", "not begun")


@dataclass(frozen=True)
class Standing:
    """One cell: its state, the text that says more, its job in Slurm's queue, and how far it is."""

    entry: Entry
    state: str
    text: str = ""
    job: str | None = None
    lock: Mapping[str, Any] | None = None
    """Of a cell that a process trains: its host and pid."""
    row: Mapping[str, Any] | None = None
    """The last row of metrics.jsonl of a cell that has begun and is not finished; None before its first epoch ends."""
    seconds_left: float | None = None
    """Of a running cell, at the rate of its own epochs."""

    @property
    def epochs(self) -> int | None:
        """The epochs of the cell by the study's list; None where it does not say."""
        found = _epochs(self.entry)
        return found if isinstance(found, int) else None

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

    @property
    def is_over(self) -> bool:
        """Whether every cell has ended, or waits for a pre-training that has ended without a result."""
        ended = {cell.entry["id"]: cell.state for cell in self.cells if cell.state in ("finished", "failed", "damaged")}

        def over(cell: Standing) -> bool:
            return cell.entry["id"] in ended or (
                cell.state == "not begun" and ended.get(cell.entry.get("needs") or "", "finished") != "finished"
            )

        return all(map(over, self.cells))

    @property
    def counts(self) -> dict[str, int]:
        """State → how many cells are in it."""
        found = Counter(cell.state for cell in self.cells)
        return {state: found[state] for state in _ORDER if found[state]}

    def lines(self) -> list[str]:
        """A line on the whole, and one for each cell that is neither finished nor still to begin."""
        parts = [f"{count} {state}" for state, count in self.counts.items()]
        shown = [cell.line for cell in self.cells if cell.state not in ("finished", "not begun")]
        return [f"study {self.name}: {', '.join(parts)} of {len(self.cells)}", *shown]


def status(output_dir: Path, study: str | None = None) -> list[StudyStatus]:
    """Where every study below `output_dir` stands, or the named one; those that were planned last come last."""
    jobs = submitted_jobs(output_dir)
    queued = (queue() or {}) if jobs else {}
    known: dict[str, Standing] = {}
    found = []
    for name, entries in read_studies(output_dir):
        if study is not None and name != study:
            continue
        for entry in entries:
            if entry["id"] not in known:
                known[entry["id"]] = _standing(Record(output_dir / entry["id"]), entry, jobs, queued)
        cells = tuple(dataclasses.replace(known[entry["id"]], entry=entry) for entry in entries)
        found.append(StudyStatus(name, cells))
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


def _standing(record: Record, entry: Entry, jobs: Mapping[str, str], queued: Mapping[str, Queued]) -> Standing:
    state, job = record.state(), jobs.get(record.id)
    where = queued.get(job or "")
    job = job if where else None
    if state == "finished":
        return Standing(entry, "finished")
    row = None if state == "missing" else _last_row(record)
    if state == "running":
        return _running(record, entry, job, row)
    if where is not None:
        reason = f" ({where.reason})" if where.reason and where.reason != "None" else ""
        after = f", saved after epoch {row['epoch']}" if row else ""
        starts = ": it starts" if where.state != "PENDING" else ""
        return Standing(entry, "queued", f" as {job}{starts}{reason}{after}", job, row=row)
    if state == "failed":
        return Standing(entry, "failed", f": {record.why_failed()}", row=row)
    if state == "interrupted":
        done = f" after epoch {row['epoch']} of {_epochs(entry)}" if row else " before its first epoch ended"
        return Standing(entry, "interrupted", f"{done}, {_ago(record)} ago; no process trains it", row=row)
    return Standing(entry, "not begun")


def _running(record: Record, entry: Entry, job: str | None, row: dict[str, Any] | None) -> Standing:
    try:
        lock = json.loads((record.folder / "lock").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        lock = {}
    where = f" on {lock.get('host', 'an unknown host')}{f' as {job}' if job else ''}"
    if row is None:
        return Standing(entry, "running", f"{where}, no epoch has ended yet", job, lock)
    epochs = _epochs(entry)
    text = f"{where}, epoch {row['epoch']} of {epochs}"
    total = row.get("seconds")
    seconds = total / row["epoch"] if isinstance(total, int | float) else None
    if isinstance(rate := row.get("images_per_second"), int | float):
        text += f", {rate:,.0f} img/s"
    silent = time.time() - (record.folder / "metrics.jsonl").stat().st_mtime
    left = None
    if seconds is not None:
        if silent > max(SILENT * seconds, SILENT_SECONDS):
            text += f": holds its lock and has written nothing for {duration(silent)}"
            return Standing(entry, "stale", text, job, lock, row)
        if isinstance(epochs, int) and epochs > row["epoch"]:
            left = max(0.0, (epochs - row["epoch"]) * seconds - silent)
            text += f", about {duration(left)} left (until {clock(left)})"
    return Standing(entry, "running", text, job, lock, row, left)


def clock(seconds: float) -> str:
    """The time of day in so many seconds, with the day where that is not within the next twelve hours."""
    return time.strftime("%H:%M" if seconds < 43200 else "%d %b %H:%M", time.localtime(time.time() + seconds))


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
