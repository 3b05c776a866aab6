"""The attempts at a cell, how each began and ended, so that a cell that keeps dying without progress stops.

`attempts.jsonl` in the cell's folder gets a line when an attempt begins, starts to train, ends an epoch, needs more
memory, and ends; whoever notices the end of a process that could not say so itself adds that.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.core.errors import UserError
from vitlab.core.files import append_line, make_folder
from vitlab.study.record import Record
from vitlab.train.events import EpochEnded, Event, Progressed, Started

FILE = "attempts.jsonl"
_INTERRUPTED = "interrupted"
_KILLED = ("SIGKILL", "exit code 137", "exit code 9")
"""In the end of an attempt that the system may have killed for its memory."""


class NoProgressError(UserError):
    """As many attempts in a row as `study.attempts` allows have ended without progress."""


@dataclass
class Attempt:
    """One attempt, as far as its lines tell."""

    begun: str
    host: str
    job: str | None = None
    step: int | None = None
    """Optimizer steps that it began with; None where it died before it could train."""
    epoch: int | None = None
    """Epochs that were finished when it ended its last one."""
    last_step: int | None = None
    """Where it was when it saved and ended."""
    peak_gb: float | None = None
    end: str | None = None

    @property
    def advanced(self) -> bool:
        """Whether what it trained is saved."""
        return self.epoch is not None or (None not in (self.step, self.last_step) and self.last_step != self.step)

    def describe(self) -> str:
        where = f" on {self.host}" + (f", Slurm job {self.job}" if self.job else "")
        when = "before training began" if self.step is None else "before an epoch ended"
        peak = f", peak memory {self.peak_gb:.1f} GB" if self.peak_gb else ""
        return f"{self.begun}{where}: {self.end or 'ended without a word (killed)'} {when}{peak}"


def read_attempts(record: Record) -> list[Attempt]:
    """The attempts since the user last asked for the cell, the first one first."""
    found: list[Attempt] = []
    with contextlib.suppress(OSError):
        for line in (record.folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):  # what a dying process left of a line
                _take(found, json.loads(line))
    return found


def _take(found: list[Attempt], line: dict[str, Any]) -> None:
    if "reset" in line:
        found.clear()
    elif "begun" in line:
        found.append(Attempt(str(line["begun"]), str(line.get("host")), line.get("job")))
    elif "killed" in line:  # whoever notices it does not know whether the attempt began
        if not found or found[-1].end is not None:
            found.append(Attempt(str(line.get("at")), str(line.get("host")), line.get("job")))
        found[-1].end = str(line["killed"])
    elif found:
        for key in ("step", "epoch", "last_step", "peak_gb", "end"):
            if key in line:
                setattr(found[-1], key, line[key])


def without_progress(record: Record) -> list[Attempt]:
    """The last attempts in a row that brought the cell no further; one that the user ended on this machine is none."""
    trailing: list[Attempt] = []
    for attempt in reversed(read_attempts(record)):
        if attempt.advanced:
            break
        if attempt.job or attempt.end != _INTERRUPTED:
            trailing.insert(0, attempt)
    return trailing


def note_end(record: Record, end: str) -> None:
    """Add how the process of an attempt ended that could not say so itself, be it before it began."""
    about = _beginning()
    _append(record, {"killed": end, "at": about.pop("begun"), **about})


def forget(record: Record) -> None:
    """Leave out of the count what was before: the user asks for the cell."""
    if (record.folder / FILE).exists():
        _append(record, {"reset": True})


def what_follows(record: Record, most: int) -> str:
    """What is done about an attempt that was killed: empty where `most` have ended without progress."""
    ended = len(without_progress(record))
    if not ended:
        return "it had advanced, and goes on"
    return f"attempt {ended + 1} of {most} follows" if ended < most else ""


def describe_attempts(ended: Sequence[Attempt]) -> str:
    """A line for each attempt, and where memory may have been short, what to give more of."""
    noun = "attempts in a row" if len(ended) > 1 else "attempt"
    lines = [f"{len(ended)} {noun} ended without progress:", *(f"    {attempt.describe()}" for attempt in ended)]
    if any(attempt.end is None or any(sign in attempt.end for sign in _KILLED) for attempt in ended):
        lines.append(f"    out of memory? {memory_advice(any(attempt.job for attempt in ended))}")
    return "\n".join(lines)


def memory_advice(on_slurm: bool) -> str:
    """What to change where a cell needs more memory than it may use."""
    given = os.environ.get("SLURM_MEM_PER_NODE", "")
    if on_slurm:
        limit = f"the job may use {int(given) / 1024:.1f} GB; " if given.isdigit() and int(given) else ""
        return f"{limit}raise hydra.launcher.mem_gb, or lower workers"
    return "lower workers, study.cells_at_once or device_batch, or free memory of this machine"


def peak_memory() -> float:
    """The most memory that this process has had, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Journal:
    """Writes the lines of one attempt; used as a context manager around it."""

    def __init__(self, record: Record) -> None:
        self.record, self._step, self._peak = record, 0, 0.0
        self._ended: int | None = None
        self._over = threading.Event()

    def begin(self, most: int) -> None:
        """Note that an attempt begins. Raises NoProgressError where `most` have ended without progress.

        Those count that were begun again by Slurm, or by the command that trains the cell, and not by the user.
        """
        submitted = "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
        if submitted or (self.record.folder / "failure.json").exists():
            forget(self.record)
        elif len(ended := without_progress(self.record)) >= most:
            raise NoProgressError(describe_attempts(ended))
        self._add(**_beginning())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inside, memory is watched; how the attempt ends is noted."""
        from vitlab.train.events import Interrupted

        threading.Thread(target=self._watch_memory, daemon=True).start()
        try:
            yield
        except Interrupted:
            self._add(end=_INTERRUPTED, last_step=self._step, peak_gb=peak_memory())
            raise
        except Exception as error:
            self._add(end=type(error).__name__, peak_gb=peak_memory())
            raise
        finally:
            self._over.set()

    def note(self, event: Event) -> None:
        """Take up what the training reports. An epoch counts once the next report shows that it is saved."""
        if self._ended is not None:
            self._add(epoch=self._ended, peak_gb=peak_memory())
            self._ended = None
        match event:
            case Started(step=step):
                self._step = step
                self._add(step=step, peak_gb=peak_memory())
            case Progressed(step=step):
                self._step = step
            case EpochEnded(row):
                self._step, self._ended = row["step"], row["epoch"]

    def _watch_memory(self, seconds: float = 0.2) -> None:
        while not self._over.wait(seconds):
            if (peak := peak_memory()) > 1.1 * self._peak + 0.05:
                self._peak = peak
                self._add(peak_gb=peak)

    def _add(self, **content: Any) -> None:
        with contextlib.suppress(UserError):  # a full disk is said where a row cannot be written
            _append(self.record, content)


def _append(record: Record, content: Mapping[str, Any]) -> None:
    append_line(make_folder(record.folder) / FILE, json.dumps(content))


def _beginning() -> dict[str, Any]:
    array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = "_".join(filter(None, array)) or os.environ.get("SLURM_JOB_ID")
    return {"begun": time.strftime("%Y-%m-%d %H:%M:%S"), "host": socket.gethostname(), "job": job}
