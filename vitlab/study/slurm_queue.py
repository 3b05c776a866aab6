"""What Slurm says of this user's jobs: how many it takes, where submitted cells are, and what became of them."""

from __future__ import annotations

import getpass
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vitlab.core.integrity import DamagedError, read_mapping
from vitlab.core.processes import answer_of
from vitlab.study.attempts import describe_attempts, without_progress
from vitlab.study.cell import cell_of
from vitlab.study.plan import Plan, PlannedCell
from vitlab.study.progress import View
from vitlab.study.sharing import OWN, letters
from vitlab.study.slurm_job import SAVED, SAVED_AND_CONTINUE
from vitlab.study.slurm_options import SlurmOptions
from vitlab.study.sync import sync_unasked
from vitlab.train.events import EpochEnded, Started

MAX_ARRAY_SIZE = 1001
"""Slurm's default, for clusters that do not say."""
NO_SUCH_ARRAY = "Invalid job array specification"
REFUSED = re.compile(rf"MaxSubmit|SubmitJob|job submit limit|{NO_SUCH_ARRAY}", re.IGNORECASE)
"""In sbatch's answer where there are too many jobs, and not where something is wrong with them."""
_SHARE = 8
"""An array is not submitted for less than this part of the places, while jobs of this user still wait for nodes."""
UPLOAD_SECONDS = 60.0
"""How often the attached command uploads what cells without a network have kept."""


@dataclass(frozen=True)
class Limits:
    """What a cluster takes from this user; `at_once` is None where it does not say, or has no limit."""

    array: int = MAX_ARRAY_SIZE
    """Jobs of one array (MaxArraySize: the largest index is one less)."""
    at_once: int | None = None
    """Jobs that have not ended, each of an array counted (MaxSubmitJobs)."""

    def room(self, taken: int) -> int:
        """Jobs that may be submitted now, where this user has so many that have not ended."""
        return sys.maxsize if self.at_once is None else max(0, self.at_once - taken)

    def array_of(self, count: int) -> int:
        """Jobs of the first array of so many: arrays are as equal as can be, 6 and 6 rather than 11 and 1."""
        arrays = -(-count // self.array)
        return -(-count // arrays)

    def worth_it(self, room: int, waiting: int, wanted: int) -> bool:
        """Whether to submit into `room` places, `waiting` being jobs that are queued for nodes: one by one, thousands
        of cells would be thousands of arrays."""
        least = 1 if self.at_once is None or not waiting else max(1, self.at_once // _SHARE)
        return room >= min(least, wanted)


def ask_limits(options: SlurmOptions) -> Limits:
    """The limits of jobs with these options, by scontrol and sacctmgr."""
    shown = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer_of("scontrol", "show", "config") or "", re.MULTILINE)
    array = max(1, int(shown[1])) if shown else MAX_ARRAY_SIZE
    found, qualities = _of_associations(options)
    if options.qos is not None:
        qualities = {options.qos}
    if qualities:
        limits = _table("sacctmgr", "-n", "-P", "show", "qos", "format=Name,MaxSubmitJobsPU,MaxSubmitJobsPA,GrpSubmit")
        found += [number for name, *numbers in limits if name in qualities for number in numbers]
    return Limits(array, min((int(number) for number in found if number.isdigit()), default=None))


def _of_associations(options: SlurmOptions) -> tuple[list[str], set[str]]:
    """The limits that this user's associations set for such jobs, and the qualities of service that they begin in."""
    account = options.account
    if account is None:
        words = ("sacctmgr", "-n", "-P", "show", "user", getpass.getuser(), "format=DefaultAccount")
        account = next((row[0] for row in _table(*words) if row[0]), None)
    found, qualities = [], set()
    columns = "format=Account,Partition,MaxSubmitJobs,GrpSubmitJobs,DefaultQOS"
    for row in _table("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", columns):
        if len(row) == 5 and account in (None, row[0]) and row[1] in ("", options.partition or row[1]):
            found += row[2:4]
            qualities |= {row[4]} - {""}
    return found, qualities


def _table(*words: str) -> list[list[str]]:
    return [line.split("|") for line in (answer_of(*words) or "").splitlines() if line]


@dataclass(frozen=True)
class Queued:
    """A job that has not ended, as Slurm has it: PENDING, RUNNING, …; why it waits."""

    state: str
    reason: str


def queue() -> dict[str, Queued] | None:
    """This user's jobs that have not ended; None where Slurm does not answer just now, or is not on this machine."""
    answer = answer_of("squeue", "-h", "-r", "--me", "-o", "%i|%T|%r")
    if answer is None:
        return None
    return {job: Queued(*rest) for job, *rest in (line.split("|", 2) for line in answer.splitlines()) if rest}


def submitted_jobs(output_dir: Path) -> dict[str, str]:
    """Cell → the job that it was last submitted as, in the queue or not. Raises DamagedError."""
    known: dict[str, str] = {}
    for file in sorted((output_dir / "slurm").glob("*/jobs.json")):
        jobs = read_mapping(file, "remove it once its jobs have left the queue (squeue --me)") or {}
        known |= {cell: str(job) for cell, job in jobs.items()}
    return known


def final_state(job: str) -> str:
    """What Slurm says of a job that has ended, by sacct, else by scontrol; empty where neither knows."""
    for words in (
        ["sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job],
        ["scontrol", "-o", "show", "job", job],
    ):
        lines = (answer_of(*words) or "").splitlines()
        if lines and words[0] == "sacct":
            state, _, code = lines[-1].partition("|")
            if state.split()[0] not in ("PENDING", "RUNNING", "REQUEUED", "COMPLETING"):
                return f"{state} {code}"
        elif lines:
            said = {key: value for key, _, value in (w.partition("=") for w in lines[-1].split())}
            return f"{said.get('JobState', '')} {said.get('ExitCode', '')}".strip()
    return ""


class Submits(Protocol):
    """Gives cells to Slurm as it takes them (`launch_slurm.Queueing`): identity → job, and → outcome."""

    cells: list[PlannedCell]
    jobs: dict[str, str]
    outcomes: dict[str, str]

    def submit(self) -> None: ...


def watch_jobs(queueing: Submits, plan: Plan, view: View, seconds: float) -> dict[str, str]:
    """Show the cells' progress until none is in the queue or waits for a place in it; returns what became of each.

    What cells without a network have kept of W&B is uploaded from here.
    """
    jobs, outcomes = queueing.jobs, queueing.outcomes
    shown: dict[str, int] = {}
    absent: dict[str, int] = {}
    loaders: dict[tuple[str, str], int] = {}  # by job and the job's letter: each job begins at a
    said: set[str] = set()
    upload_at = time.monotonic() + UPLOAD_SECONDS
    while left := [cell for cell in queueing.cells if cell.id not in outcomes]:
        queueing.submit()
        jobs_now = queue()
        if jobs_now is None:
            time.sleep(seconds)
            continue
        sizes = Counter(jobs.values())
        for cell in (cell for cell in left if cell.id in jobs):
            state = found.state if (found := jobs_now.get(jobs[cell.id])) else None
            if state in ("RUNNING", "COMPLETING"):
                view.status(cell.id, "running")
            elif state is not None and cell.id in shown:
                view.status(cell.id, "waiting", "saved; waits for its next allocation")
            _show_rows(cell, plan, view, shown, running=state is None or state == "RUNNING")
            absent[cell.id] = absent.get(cell.id, 0) + 1 if state is None else 0
            shared = sizes[jobs[cell.id]] > 1  # its job may go on without it
            if absent[cell.id] >= 2 or ((absent[cell.id] or shared) and plan.record(cell).state() == "finished"):
                outcomes[cell.id] = _conclude(cell, jobs[cell.id], plan, view)
        for job in (job for job, size in sizes.items() if size > 1 and job in jobs_now):
            for identity, mark in loaders_of(plan.output_dir, job).items():
                if identity in view.cells:
                    number = loaders.setdefault((job, mark), len(loaders) + 1) if mark != OWN else 0
                    view.loader(identity, letters(number) or OWN)
        view.refresh()
        if time.monotonic() > upload_at:
            _upload(plan, view, said)
            upload_at = time.monotonic() + UPLOAD_SECONDS
        time.sleep(seconds)
    _upload(plan, view, said)
    return outcomes


def loaders_file(output_dir: Path, job: str) -> Path:
    """Where a running job of several cells tells which of them share a loader."""
    return output_dir / "slurm" / "loaders" / f"{job}.json"


def loaders_of(output_dir: Path, job: str) -> dict[str, str]:
    """Identity → loader, of the cells that train in a job; empty where it does not say."""
    try:
        return read_mapping(loaders_file(output_dir, job), "") or {}
    except DamagedError:
        return {}


def _upload(plan: Plan, view: View, said: set[str]) -> None:
    """Upload what the study's cells have kept offline; a line that was said is not repeated."""
    for line in sync_unasked(plan.output_dir, plan.study, plan.cells[0].config.wandb):
        if line not in said:
            view.say(line)
        said.add(line)


def _show_rows(cell: PlannedCell, plan: Plan, view: View, shown: dict[str, int], running: bool) -> None:
    if not running:
        return
    try:
        rows = plan.record(cell).rows()
    except DamagedError as error:
        view.status(cell.id, "running", str(error))
        return
    for row in rows:
        if row["epoch"] > shown.get(cell.id, 0):
            if cell.id not in shown:  # the clock of what is left starts here
                total = row["step"] // row["epoch"] * cell_of(cell.config).recipe.epochs
                view.event(cell.id, Started(row["epoch"], row["step"], total))
            shown[cell.id] = row["epoch"]
            view.event(cell.id, EpochEnded(row))


def _conclude(cell: PlannedCell, job: str, plan: Plan, view: View) -> str:
    """What became of a cell whose job has left the queue, by its record first and by Slurm second."""
    record = plan.record(cell)
    state = record.state()
    outcome, note = state, ""
    if state == "running":
        outcome = "running elsewhere"
    elif state == "failed":
        note = record.why_failed()
    elif why := plan.blocked_by(cell):
        outcome, note = "blocked", why
    elif state != "finished":
        said = final_state(job)
        outcome = "interrupted" if was_ended(said) else "killed"
        note = f"Slurm job {job}: {explained(said) or 'gone'}"
        if state == "missing":
            note += "; it ended before it began"
        if outcome == "killed":
            ended = without_progress(record)
            note = f"{note}\n    {describe_attempts(ended)}" if ended else note
            record.fail("Killed", note)
    view.status(cell.id, outcome, note)
    return outcome


def was_ended(said: str) -> bool:
    """Whether a job's final state ("CANCELLED by 0 0:0") means that it was ended from outside and can go on."""
    state, _, code = said.rpartition(" ")
    ended = ("CANCELLED", "PREEMPTED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "REQUEUED")
    return state.startswith(ended) or code.partition(":")[0] in (str(SAVED), str(SAVED_AND_CONTINUE))


def explained(said: str) -> str:
    """A job's final state with the signal that its exit code stands for: "FAILED 137:0 (SIGKILL, out of memory?)".

    A signal that ended a task comes as `:signal`, as 128 + signal, or, from srun, as the bare number.
    """
    code, number = (int(part) if part.isdigit() else 0 for part in said.rpartition(" ")[2].partition(":")[::2])
    bare = code if code in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT) else 0
    value = number or bare or code - 128
    if value not in set(signal.Signals):
        return said
    name = signal.Signals(value).name
    return f"{said} ({name}{', out of memory?' if name == 'SIGKILL' else ''})"
