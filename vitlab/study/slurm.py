"""Cells as Slurm job arrays: submitted once, watched while attached, found again by the next command."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import pickle
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitlab.config import ConfigError, check_run
from vitlab.study.plan import Plan, PlannedCell
from vitlab.study.provenance import code_fingerprint
from vitlab.study.run import cell_of
from vitlab.study.slurm_job import SAVED_AND_CONTINUE
from vitlab.study.view import View

ARRAY_LENGTH = 1000
"""Slurm's default MaxArraySize is 1001."""
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class SlurmOptions:
    """conf/hydra/launcher/slurm.yaml."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    gpus_per_node: int | str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    timeout_min: int = 1440
    signal_delay_s: int = 120
    array_parallelism: int | None = None
    setup: Sequence[str] = ()
    additional_parameters: Mapping[str, Any] = field(default_factory=dict)
    poll_seconds: float = 5

    def __post_init__(self) -> None:
        for key in ("nodes", "timeout_min", "signal_delay_s", "tasks_per_node", "array_parallelism", "cpus_per_task"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"hydra.launcher.{key}: got {value!r}, expected an integer of at least 1")
        if self.tasks_per_node is not None and self.num_gpus and self.tasks_per_node != self.num_gpus:
            raise ConfigError(
                f"hydra.launcher.tasks_per_node: {self.tasks_per_node} processes cannot use gpus_per_node="
                f"{self.gpus_per_node}, one each; leave tasks_per_node out, or make the two equal"
            )

    @property
    def num_gpus(self) -> int:
        """GPUs of a node, without their type."""
        count = str(self.gpus_per_node or 0).rpartition(":")[2]
        if not count.isdigit():
            raise ConfigError(f"hydra.launcher.gpus_per_node: got {self.gpus_per_node!r}; allowed: 8, or a100:8")
        return int(count)

    @property
    def tasks(self) -> int:
        """Processes of one cell on one node."""
        return self.tasks_per_node or self.num_gpus or 1

    def flags(self) -> list[str]:
        """The flags of sbatch that every array has."""
        flags = {
            "partition": self.partition, "account": self.account, "qos": self.qos, "constraint": self.constraint,
            "nodes": self.nodes, "gpus-per-node": self.gpus_per_node, "ntasks-per-node": self.tasks,
            "cpus-per-task": self.cpus_per_task, "mem": self.mem_gb and f"{round(self.mem_gb * 1024)}M",
            "time": self.timeout_min, "signal": f"USR2@{self.signal_delay_s}", "open-mode": "append",
        } | {str(k).replace("_", "-"): v for k, v in self.additional_parameters.items()}  # fmt: skip
        shown = [f"--{k}" if v is True else f"--{k}={v}" for k, v in flags.items() if v is not None and v is not False]
        return [*shown, "--requeue", "--kill-on-invalid-dep=yes", "--parsable"]


def run_on_slurm(plan: Plan, view: View, options: SlurmOptions) -> dict[str, str]:
    """Submit what is not in the queue yet, then watch it to its end; returns identity → outcome.

    With `study.detach` it returns at once. Raises ConfigError where the options cannot be, or Slurm refuses them.
    """
    cells = [replace(cell, config=_on_devices(cell, options)) for cell in plan.todo]
    with _submitting(plan.output_dir):
        jobs = {cell: job for cell, job in _queued(plan.output_dir).items() if cell in {c.id for c in cells}}
        for cell in cells:
            if cell.id in jobs:
                view.status(cell.id, "waiting", f"already in the queue as {jobs[cell.id]}")
        for wanted in (0, 1):
            jobs |= _submit([c for c in cells if c.stage == wanted and c.id not in jobs], jobs, plan, options)
    known = {job.partition("_")[0] for job in jobs.values()}
    view.say(f"Slurm has {len(jobs)} cells in {len(known)} arrays: {' '.join(sorted(known))}")
    if plan.cells[0].config.study.detach:
        return dict.fromkeys(jobs, "submitted")
    try:
        return _watch(cells, jobs, plan, view, options.poll_seconds)
    except KeyboardInterrupt:
        view.say(f"left to Slurm; the same command looks again; to end the jobs: scancel {' '.join(sorted(known))}")
        return {cell: "submitted" for cell in jobs if plan.record_of(cell).state() != "finished"}


def _on_devices(cell: PlannedCell, options: SlurmOptions) -> Any:
    world = options.tasks * options.nodes
    if cell.config.devices not in (1, world):
        raise ConfigError(
            f"devices: {cell.config.devices}, but the launcher starts tasks_per_node × nodes = {world} processes; "
            "leave devices out"
        )
    config = replace(cell.config, devices=world)
    check_run(config)
    return config


def _submit(cells: list[PlannedCell], jobs: dict[str, str], plan: Plan, options: SlurmOptions) -> dict[str, str]:
    """One array for the cells of a stage that wait for the same job; returns identity → job."""
    groups: dict[str, list[PlannedCell]] = {}
    for cell in cells:
        groups.setdefault(jobs.get(cell.needs or "", ""), []).append(cell)
    submitted = {}
    for before, group in groups.items():
        for start in range(0, len(group), ARRAY_LENGTH):
            submitted |= _submit_array(group[start : start + ARRAY_LENGTH], before, plan, options)
    return submitted


def _submit_array(cells: list[PlannedCell], before: str, plan: Plan, options: SlurmOptions) -> dict[str, str]:
    folder = plan.output_dir.absolute() / "slurm"
    number = 1
    while (batch := folder / f"{plan.study}-{time.strftime('%Y%m%d-%H%M%S')}-{number}").exists():
        number += 1
    batch.mkdir(parents=True)
    content = {"study": plan.study, "code": code_fingerprint(), "cells": [(c.config, c.name) for c in cells]}
    (batch / "cells.pkl").write_bytes(pickle.dumps(content))
    (batch / "names.txt").write_text("".join(f"{c.id} {plan.study}/{c.name}\n" for c in cells))
    (batch / "job.sh").write_text(_script(batch, plan.output_dir.absolute(), options))
    name = f"{plan.study}/{cells[0].name}" if len(cells) == 1 else plan.study
    at_once = f"%{options.array_parallelism}" if options.array_parallelism else ""
    words = ["sbatch", *options.flags(), f"--job-name={name}", f"--array=0-{len(cells) - 1}{at_once}"]
    words += [f"--output={batch}/%a.out", *([f"--dependency=afterok:{before}"] if before else [])]
    # a job of a job must not inherit the outer job's shape
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"}
    try:
        done = subprocess.run([*words, str(batch / "job.sh")], capture_output=True, text=True, env=keep)
    except FileNotFoundError:
        raise ConfigError("hydra/launcher: sbatch is not on this machine; submit from a login node of Slurm") from None
    if done.returncode:
        raise ConfigError(f"hydra.launcher: {done.stderr.strip().replace('sbatch: error: ', '')}")
    array = done.stdout.strip().split(";")[0]
    jobs = {cell.id: f"{array}_{index}" for index, cell in enumerate(cells)}
    (batch / "jobs.json").write_text(json.dumps(jobs))
    return jobs


def _script(batch: Path, output_dir: Path, options: SlurmOptions) -> str:
    root, python, folder, records = (shlex.quote(str(p)) for p in (_ROOT, sys.executable, batch, output_dir))
    setup = "\n".join(options.setup)
    return f"""#!/bin/bash
read -r cell name < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {folder}/names.txt)
mkdir -p {records}/"$cell"
scontrol update JobId="$SLURM_JOB_ID" JobName="$name" >/dev/null 2>&1
{setup}
export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONUNBUFFERED=1
trap : TERM
srun --kill-on-bad-exit=1 {python} -m vitlab.study.slurm_job {folder} "$SLURM_ARRAY_TASK_ID" \\
    >>{records}/"$cell"/log.txt 2>&1
code=$?
if [ "$code" = {SAVED_AND_CONTINUE} ]; then # saved before its limit: the same job goes on in another allocation
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
"""


@contextlib.contextmanager
def _submitting(output_dir: Path) -> Iterator[None]:
    """Held while looking at the queue and submitting, so that two commands do not submit a cell twice."""
    (output_dir / "slurm").mkdir(parents=True, exist_ok=True)
    with (output_dir / "slurm" / "lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _queued(output_dir: Path) -> dict[str, str]:
    """The cells that earlier commands have submitted and that are still in the queue: identity → job."""
    known: dict[str, str] = {}
    for file in sorted((output_dir / "slurm").glob("*/jobs.json")):
        known |= json.loads(file.read_text())
    queue = queue_states() if known else {}
    return {cell: job for cell, job in known.items() if job in (queue or {})}


def queue_states() -> dict[str, str] | None:
    """Job → state of this user's jobs that have not ended; None where Slurm does not answer just now."""
    words = ["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i|%T"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise ConfigError("hydra/launcher: squeue is not on this machine; submit from a login node of Slurm") from None
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        return None
    return dict(line.split("|", 1) for line in done.stdout.splitlines() if "|" in line)


def final_state(job: str) -> str:
    """What Slurm says of a job that has ended, by sacct, else by scontrol; empty where neither knows."""
    for words in (
        ["sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job],
        ["scontrol", "-o", "show", "job", job],
    ):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            lines = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.splitlines()
            if lines and words[0] == "sacct":
                state, _, code = lines[-1].partition("|")
                if state.split()[0] not in ("PENDING", "RUNNING", "REQUEUED", "COMPLETING"):
                    return f"{state} {code}"
            elif lines:
                said = {key: value for key, _, value in (w.partition("=") for w in lines[-1].split())}
                return f"{said.get('JobState', '')} {said.get('ExitCode', '')}".strip()
    return ""


def _watch(cells: list[PlannedCell], jobs: dict[str, str], plan: Plan, view: View, seconds: float) -> dict[str, str]:
    """Show the cells' progress until none is in the queue; returns what became of each."""
    outcomes: dict[str, str] = {}
    shown: dict[str, int] = {}
    absent: dict[str, int] = {}
    while left := [cell for cell in cells if cell.id not in outcomes]:
        queue = queue_states()
        if queue is None:
            time.sleep(seconds)
            continue
        for cell in left:
            state = queue.get(jobs[cell.id])
            if state in ("RUNNING", "COMPLETING"):
                view.status(cell.id, "running")
            elif state is not None and cell.id in shown:
                view.status(cell.id, "waiting", "saved; waits for its next allocation")
            _show_rows(cell, plan, view, shown, running=state is None or state == "RUNNING")
            absent[cell.id] = absent.get(cell.id, 0) + 1 if state is None else 0
            if absent[cell.id] >= 2 or (absent[cell.id] and plan.record(cell).state() == "finished"):
                outcomes[cell.id] = _conclude(cell, jobs[cell.id], plan, view)
        view.refresh()
        time.sleep(seconds)
    return outcomes


def _show_rows(cell: PlannedCell, plan: Plan, view: View, shown: dict[str, int], running: bool) -> None:
    if not running:
        return
    for row in plan.record(cell).rows():
        if row["epoch"] > shown.get(cell.id, 0):
            if cell.id not in shown:  # the clock of what is left starts here
                total = row["step"] // row["epoch"] * cell_of(cell.config).recipe.epochs
                here = {"epoch": row["epoch"], "step": row["step"], "derived": {"total_steps": total}}
                view.event(cell.id, {"start": here})
            shown[cell.id] = row["epoch"]
            view.event(cell.id, row)


def _conclude(cell: PlannedCell, job: str, plan: Plan, view: View) -> str:
    """What became of a cell whose job has left the queue, by its record first and by Slurm second."""
    record = plan.record(cell)
    state = record.state()
    outcome, note = state, ""
    if state == "running":
        outcome = "running elsewhere"
    elif state == "failed":
        failure = record.read("failure.json") or {}
        note = f"{failure.get('type', 'error')}: {failure.get('message', '')}"
    elif cell.needs is not None and plan.record_of(cell.needs).state() != "finished":
        outcome, note = "blocked", f"its pre-training {cell.needs} is {plan.record_of(cell.needs).state()}"
    elif state != "finished":
        outcome, note = "killed", f"Slurm job {job}: {final_state(job) or 'gone'}"
        if state == "missing":
            note += "; it ended before it began"
        record.write(
            "failure.json", {"type": "Killed", "message": note, "traceback": "", "at": time.strftime("%FT%T%z")}
        )
    view.status(cell.id, outcome, note)
    return outcome
