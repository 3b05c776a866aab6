"""Cells on this machine, one process each, so that nothing that happens to one takes another down.

The processes come from a fork server that has torch and timm loaded: it costs seconds once and nothing per cell.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vitlab.config import Config
from vitlab.core.errors import as_user_error
from vitlab.core.files import make_folder
from vitlab.core.plugins import import_plugins
from vitlab.core.processes import end_with_parent
from vitlab.data.ring import Given
from vitlab.study.attempts import describe_attempts, forget, note_end, what_follows, without_progress
from vitlab.study.cell import run_cell
from vitlab.study.plan import Plan, PlannedCell
from vitlab.study.preflight import Named, prove
from vitlab.study.progress import View
from vitlab.study.record import Record
from vitlab.study.sharing import Sharing
from vitlab.study.snapshot import importing_from

SAVE_SECONDS = 60
"""How long a cell may take to save after it was asked to stop."""
POLL_SECONDS = 0.3
UNKNOWN = 255
"""multiprocessing's exit code of a process whose fork server has died: it may live, and nobody tells how it ends."""


@dataclass
class _Job:
    cell: PlannedCell
    process: Any
    pipe: Connection
    slot: int
    deadline: float | None
    outcome: str = ""
    stopping: str = ""
    orphaned: bool = False
    """Whether the fork server has died and the process trains on."""

    def signal(self, number: int) -> None:
        if not self.orphaned:
            self.process.kill() if number == signal.SIGKILL else self.process.terminate()
            return
        with contextlib.suppress(ProcessLookupError):  # multiprocessing takes it for dead
            os.kill(self.process.pid, number)


def run_locally(plan: Plan, view: View) -> dict[str, str]:
    """Train the plan's cells, as many at once as the plan says; returns what became of each: identity → outcome.

    Outcomes: finished, failed, killed, blocked (its pre-training did not finish), interrupted, running elsewhere.
    """
    config = plan.cells[0].config
    slots, context = plan.capacity.cells, fork_server(config)
    waiting, running, outcomes = list(plan.todo), [], {}
    begun: set[str] = set()
    failures = {cell.id: _failed_at(plan.record(cell)) if cell.state == "failed" else None for cell in waiting}
    stopping = 0
    with _deferred_interrupt() as interrupted, Sharing(plan, context, view) as sharing, _saving(running):
        while waiting or running:
            if interrupted() > stopping:
                stopping = interrupted()
                _stop(running, stopping > 1, view)
            if stopping:
                outcomes |= {cell.id: "interrupted" for cell in waiting}
                waiting = []
            free = [slot for slot in range(slots) if slot not in {job.slot for job in running}]
            ready = []
            for cell in _ready(waiting, plan, outcomes, view) if free else ():
                if _failed_at(plan.record(cell)) != failures[cell.id] and plan.record(cell).state() == "failed":
                    waiting.remove(cell)
                    outcomes[cell.id] = "failed"
                    view.status(cell.id, "failed", f"by another process: {plan.record(cell).why_failed()}")
                else:
                    ready.append(cell)
            for group in sharing.choose(ready, len(free), view.cells):
                for cell, given in zip(group, sharing.begin(group), strict=True):
                    waiting.remove(cell)
                    if cell.id not in begun:  # the user asks for it: what was before does not count
                        forget(plan.record(cell))
                    begun.add(cell.id)
                    running.append(_begin(cell, plan, context, free.pop(0), given))
                    view.status(cell.id, "running")
            sharing.count(job.slot for job in running)
            for job in _ended(running, view):
                running.remove(job)
                sharing.end(job.cell)
                outcome = _conclude(job, plan, view)
                if outcome == "again" and not stopping:
                    waiting.insert(0, job.cell)
                else:
                    outcomes[job.cell.id] = "interrupted" if outcome == "again" else outcome
            sharing.watch()
    return outcomes


def prove_apart(named: Named) -> None:
    """`preflight.prove` in a process of the fork server, which has torch loaded. Raises UserError like it."""
    reader, writer = mp.Pipe(duplex=False)
    process = fork_server(named[0][1]).Process(target=_prove_in_process, args=(named, writer))
    process.start()
    writer.close()
    with contextlib.suppress(EOFError):  # it died: the cells will tell why
        if (problem := reader.recv()) is not None:
            raise problem
    process.join()


def fork_server(config: Config) -> Any:
    """The start method whose processes have torch, timm and, where it is used, W&B loaded.

    The first of them is started by `importing_from` the code that all have to run.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["vitlab.study.preload", *(["wandb"] if config.wandb.mode != "disabled" else [])])
    return context


def _prove_in_process(named: Named, pipe: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
    end_with_parent(signal.SIGKILL)
    try:
        import_plugins(named[0][1].plugins)
        prove(named)
    except Exception as error:
        if as_user_error(error) is None:
            error.add_note(f"in the process that checks whether cells can start:\n{traceback.format_exc()}")
        pipe.send(error)
    else:
        pipe.send(None)


def _ready(waiting: list[PlannedCell], plan: Plan, outcomes: dict[str, str], view: View) -> Sequence[PlannedCell]:
    """The waiting cells that can start. Those whose pre-training has ended badly are taken out as blocked.

    Wait if another process trains the pre-training; take over if that process died.
    """
    ready = []
    for cell in list(waiting):
        if not (why := plan.blocked_by(cell)):
            ready.append(cell)
            continue
        state = plan.state_of(cell.needs or "")
        first = next((c for c in plan.todo if c.id == cell.needs), None)
        if first is not None and (first in waiting or first.id not in outcomes):
            continue  # ours, and still to come
        if state == "running":
            view.status(cell.id, "waiting", f"another process trains its pre-training {cell.needs}")
        elif first is not None and outcomes[first.id] == "running elsewhere" and state in ("interrupted", "missing"):
            del outcomes[first.id]
            waiting.insert(0, first)
        else:
            waiting.remove(cell)
            outcomes[cell.id] = "blocked"
            view.status(cell.id, "blocked", why)
    return ready


def _stop(running: list[_Job], at_once: bool, view: View) -> None:
    """Ask the running cells to save and end, or end them where they stand."""
    view.say(f"ending {len(running)} cells where they stand" if at_once else
             f"stopping: {len(running)} cells save and end; Ctrl-C again ends them where they stand")  # fmt: skip
    for job in running:
        job.stopping = "interrupted"
        job.deadline = None if at_once else time.monotonic() + SAVE_SECONDS
        job.signal(signal.SIGKILL if at_once else signal.SIGTERM)


def _begin(cell: PlannedCell, plan: Plan, context: Any, slot: int, given: Given) -> _Job:
    config = cell.config
    gpus = plan.capacity.devices_of(slot, config.devices)
    if plan.code_of(cell) != plan.code:  # the fork server has today's code loaded
        context, given = mp.get_context("spawn"), Given(device_share=given.device_share)
    elif given.present is not None:
        given = replace(given, place=plan.capacity.place_of(slot))
    reader, writer = context.Pipe(duplex=False)
    folder = make_folder(plan.output_dir / cell.id)
    about = (config, plan.study, cell.name, folder / "log.txt", writer, given, gpus)
    process = context.Process(target=_cell_process, args=about, name=cell.name)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits it, until it ignores Ctrl-C
    with importing_from(plan.code_of(cell)):
        process.start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    writer.close()
    minutes = config.study.cell_minutes
    return _Job(cell, process, reader, slot, time.monotonic() + 60 * minutes if minutes else None)


def _ended(running: list[_Job], view: View) -> list[_Job]:
    """Pass the cells' events on to the view; returns the jobs whose process has ended."""
    ended = []
    sources = [job.pipe for job in running] + [job.process.sentinel for job in running if not job.orphaned]
    ready = wait(sources, timeout=POLL_SECONDS)
    for job in running:
        closed = job.pipe in ready and _drain(job, view)
        if not job.orphaned and job.process.sentinel in ready:
            closed = _drain(job, view) or closed
            job.process.join()
            job.orphaned = job.process.exitcode == UNKNOWN and not closed
        if closed if job.orphaned else job.process.sentinel in ready:
            ended.append(job)
        elif job.deadline and time.monotonic() > job.deadline:
            if not job.stopping:
                job.stopping = f"hung: over study.cell_minutes={job.cell.config.study.cell_minutes:g}"
            job.signal(signal.SIGKILL)
            job.deadline = None
    view.refresh()
    return ended


def _drain(job: _Job, view: View) -> bool:
    """Take what a cell's process has said; returns whether it has ended and nothing can follow."""
    try:
        while job.pipe.poll():
            event = job.pipe.recv()
            if isinstance(event, str):
                job.outcome = event
            else:
                view.event(job.cell.id, event)
    except (EOFError, OSError):
        return True
    return False


def _conclude(job: _Job, plan: Plan, view: View) -> str:
    """What became of a cell whose process has ended, from what it said, its record and how it ended."""
    code, record = job.process.exitcode, plan.record(job.cell)
    outcome, note = job.outcome.removeprefix("already "), ""
    unknown = code == UNKNOWN
    if not outcome:
        failed = code and code > 0 and not unknown
        outcome = "finished" if record.state() == "finished" else "failed" if failed else "killed"
    if outcome == "killed" and job.stopping == "interrupted":
        outcome = "interrupted"  # before it could save: the checkpoint before counts
    elif outcome == "killed":
        ended_by = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        note = job.stopping or f"{ended_by}{', out of memory?' if ended_by == 'SIGKILL' else ''}"
        if unknown and not job.stopping:
            note = "it ended, and so had the process that starts cells (SIGKILL, out of memory?)"
        note_end(record, note)
        by_signal = not job.stopping and code is not None and (code < 0 or unknown)
        follows = what_follows(record, job.cell.config.study.attempts) if by_signal else ""
        if follows:
            view.status(job.cell.id, "waiting", f"{note}: {follows}")
            return "again"
        record.fail("Killed", describe_attempts(without_progress(record)) if by_signal else note)
        note = record.why_failed()
    elif outcome == "failed":
        if _failed_at(record) is None:  # it could not do so itself: its log's last line says why
            record.fail("Failed", (record.log_tail(1) or [f"exit code {code}"])[0], record.log_traceback())
        note = record.why_failed()
    view.status(job.cell.id, outcome, note)
    return outcome


def _failed_at(record: Record) -> int | None:
    """What tells one failure of a cell from the next: when it was recorded; None for none."""
    file = record.folder / "failure.json"
    return file.stat().st_mtime_ns if file.exists() else None


def _cell_process(
    config: Config, study: str, name: str, log: Path, pipe: Connection, given: Given, gpus: Sequence[str]
) -> None:
    """The life of a cell's process: everything it prints goes to its log, its events to the controller."""
    from vitlab.data.shared import take

    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    stream = log.open("a", buffering=1, encoding="utf-8")
    os.dup2(stream.fileno(), sys.stdout.fileno())
    os.dup2(stream.fileno(), sys.stderr.fileno())
    sys.stdout = sys.stderr = stream
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches us too; the controller decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent()  # no cell trains on without a controller
    take(given)
    pipe.send(run_cell(config, study=study, name=name, report=pipe.send))


@contextlib.contextmanager
def _saving(running: list[_Job]) -> Any:
    """Where the controller itself ends (whoever read its output has gone, or it has a bug), the cells save and end."""
    try:
        yield
    except BaseException:
        for job in running:
            job.signal(signal.SIGTERM)
        end = time.monotonic() + SAVE_SECONDS
        for job in running:
            job.process.join(max(0, end - time.monotonic()))
            job.process.kill()  # an orphan that still saves ends by itself
        raise


@contextlib.contextmanager
def _deferred_interrupt() -> Any:
    """Inside, Ctrl-C, SIGTERM and Slurm's SIGUSR2 are only counted; what is yielded tells how often one came."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def ask(number: int, _frame: Any) -> None:
        if not asked or number == signal.SIGINT:
            asked.append(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield lambda: len(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
