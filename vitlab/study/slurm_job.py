"""One cell inside a Slurm job: submitit unpickles a `CellJob` and calls it, once per rank.

Exit codes: 0 finished; SAVED_AND_CONTINUE saved, and to be requeued by the batch script; SAVED saved because Slurm ends
the job (preempted jobs are requeued by Slurm itself); ELSEWHERE another process trains the cell, or its record is
damaged; 1 failed. Ranks other than 0 end with 0 unless they fail, and linger when they do: srun ends a step at the
first rank that ends badly, and rank 0 has to write what happened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from vitlab.config import Config
    from vitlab.study.record import Record
    from vitlab.train.events import Event

SAVED_AND_CONTINUE = 75
SAVED = 76
ELSEWHERE = 77
"""Not 0: what depends on this cell must not start."""
NO_CODE = 78
"""The batch script found the code of the study damaged or gone."""
WAIT_FOR_PREDECESSOR = 120
"""Seconds that a requeued cell waits for its own earlier process to let go of the record."""
LINGER = 10
"""Seconds that a failed rank leaves to rank 0."""
REQUEUE_SECONDS = 60
"""How long Slurm may take to end a job that it begins again."""


@dataclass(frozen=True)
class CellJob:
    """A cell, its name and study, and the fingerprint of the code that was submitted."""

    config: Config
    name: str
    study: str
    code: str

    def __call__(self) -> str:
        """Train the cell or continue it, as one rank; returns the outcome, or raises SystemExit with the exit code."""
        from vitlab.core.terminal import prepare_output

        prepare_output()
        signals = note_signals()
        is_main = _join_ranks() == 0
        from vitlab.study.cell import cell_of, identity, run_cell
        from vitlab.study.provenance import code_fingerprint
        from vitlab.study.record import Record
        from vitlab.train.events import Started

        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        record = Record(Path(self.config.output_dir) / identity(cell_of(self.config)))
        changed = code_fingerprint() != self.code
        if is_main:
            if changed:
                print("vitlab: the code has changed since this cell was submitted", flush=True)
            if restarts:
                wait_for_predecessor(record, signals)

        def report(event: Event) -> None:
            about_job(record, event, restarts, changed)
            if isinstance(event, Started) and (early := signals()):  # came before the cell could listen
                signal.raise_signal(max(early))

        try:
            outcome = run_cell(self.config, study=self.study, name=self.name, report=report)
        except Exception:
            if not is_main:
                time.sleep(LINGER)
            raise
        if is_main:
            print(f"{self.name}: {outcome}", flush=True)
            if code := exit_code(outcome, signals()):
                if code == SAVED_AND_CONTINUE:
                    requeue()
                raise SystemExit(code)
        return outcome

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again for a signal that comes before `__call__` listens: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def about_job(record: Record, event: Event, restarts: int, changed: bool) -> None:
    """Note in a cell's record, once it has started, in which job and allocation it runs, and on which code."""
    from vitlab.train.events import Started

    if isinstance(event, Started):
        origin = record.read("provenance.json") or {}
        about = {"job": this_job(), "restarts": restarts, "devices": int(os.environ.get("WORLD_SIZE", "1"))}
        record.write("provenance.json", origin | {"slurm": about, "code_changed_since_submission": changed})


def exit_code(outcome: str, signals: set[int]) -> int:
    """What rank 0 ends with after `outcome`, where `signals` asked for an end."""
    if outcome == "interrupted":
        return SAVED_AND_CONTINUE if signals == {signal.SIGUSR2} else SAVED
    return ELSEWHERE if outcome in ("running elsewhere", "damaged") else 0


def requeue() -> None:
    """Have Slurm end every rank of this job and begin it again.

    Asked from here, since srun's exit code is another one where it has to end ranks that are slower than rank 0. Where
    Slurm does not answer, the batch script asks again.
    """
    from vitlab.core.processes import answer_of

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if answer_of("scontrol", "requeue", this_job(), seconds=30) is not None:
        time.sleep(REQUEUE_SECONDS)


def wait_for_predecessor(record: Record, signals: Callable[[], set[int]]) -> None:
    deadline = time.monotonic() + WAIT_FOR_PREDECESSOR
    while record.is_locked() and not signals() and time.monotonic() < deadline:
        time.sleep(1)


def _join_ranks() -> int:
    """Tell torch.distributed of the ranks that submitit sees; returns this process's."""
    from submitit.helpers import TorchDistributedEnvironment

    world = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["MASTER_ADDR"] = address = _address(world.master_addr)
    if address.startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    return world.rank


def _address(host: str) -> str:
    """A name or address that can be reached: the node's name, else the address that Slurm has for it."""
    from vitlab.core.processes import answer_of

    words = (answer_of("scontrol", "-o", "show", "node", host, seconds=30) or "").split()
    described = {key: value for key, _, value in (word.partition("=") for word in words)}
    for name in (host, described.get("NodeAddr", "")):
        try:
            return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0]) if name else "127.0.0.1"
        except OSError:
            continue
    return "127.0.0.1"


def this_job() -> str:
    """The job that this process runs in, as Slurm writes it: 123, or 123_4 of an array."""
    from submitit import JobEnvironment

    return JobEnvironment().job_id


def note_signals() -> Callable[[], set[int]]:
    """Remember every signal that asks for an end, whoever handles it; returns a function that tells which came."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: None)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it along; submitit would write a warning
    seen: set[int] = set()

    def asked() -> set[int]:
        with contextlib.suppress(BlockingIOError):
            seen.update(os.read(reader, 4096))
        return seen & {signal.SIGTERM, signal.SIGUSR2}

    return asked
