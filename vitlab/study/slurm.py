"""Cells as Slurm job arrays: submitted once, watched while attached, found again by the next command."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import shlex
import signal
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
from vitlab.study.slurm_job import SAVED_AND_CONTINUE
from vitlab.study.slurm_watch import queue_states, watch
from vitlab.study.view import View

ARRAY_LENGTH = 1000
"""Slurm's default MaxArraySize is 1001."""
_OPTIONS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "nodes": "nodes",
    "gpus-per-node": "gpus_per_node", "gpus": "gpus_per_node", "gres": "gpus_per_node",
    "gpus-per-task": "gpus_per_node", "ntasks-per-node": "tasks_per_node", "ntasks": "tasks_per_node",
    "cpus-per-task": "cpus_per_task", "mem": "mem_gb", "time": "timeout_min", "signal": "signal_delay_s",
}  # fmt: skip
"""A flag of sbatch → the option that sets it."""
_OURS = ("array", "job-name", "output", "error", "open-mode", "dependency", "requeue", "no-requeue", "parsable", "wrap")
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
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise ConfigError(
                f"hydra.launcher.signal_delay_s: {self.signal_delay_s} s before a limit of {self.timeout_min} min "
                "leaves no time to train; raise timeout_min"
            )
        for key in self.additional_parameters:
            flag = str(key).replace("_", "-")
            if flag in _OPTIONS or flag in _OURS:
                instead = f"use hydra.launcher.{_OPTIONS[flag]}" if flag in _OPTIONS else "vitlab sets it itself"
                raise ConfigError(f"hydra.launcher.additional_parameters.{key}: {instead}")

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
    outcomes: dict[str, str] = {}
    with _submitting(plan.output_dir):
        queued = _queued(plan.output_dir)
        jobs = {cell.id: queued[cell.id] for cell in cells if cell.id in queued}
        for cell in cells:
            if cell.id in jobs:
                view.status(cell.id, "waiting", f"already in the queue as {jobs[cell.id]}")
            elif plan.record(cell).state() == "finished":  # by another command, since this one has planned
                outcomes[cell.id] = "finished"
            elif cell.needs and cell.needs not in {c.id for c in cells}:
                before = plan.record_of(cell.needs).state()
                if before != "finished":
                    outcomes[cell.id] = "blocked"
                    view.status(cell.id, "blocked", f"its pre-training {cell.needs} is {before}")
        for stage in (0, 1):
            missing = [c for c in cells if c.stage == stage and c.id not in jobs and c.id not in outcomes]
            for cell in missing:
                plan.record(cell).remove("failure.json")  # of an attempt that this one follows
            jobs |= _submit(missing, jobs, plan, options)
    arrays = sorted({job.partition("_")[0] for job in jobs.values()}, key=int)
    if jobs:
        noun = "array" if len(arrays) == 1 else "arrays"
        view.say(f"Slurm has {len(jobs)} cells in {len(arrays)} {noun}: {' '.join(arrays)}")
    watched = [cell for cell in cells if cell.id in jobs]
    if plan.cells[0].config.study.detach:
        return outcomes | dict.fromkeys(jobs, "submitted")
    try:
        return outcomes | watch(watched, jobs, plan, view, options.poll_seconds)
    except KeyboardInterrupt:
        view.say(f"left to Slurm; the same command looks again; to end the jobs: scancel {' '.join(arrays)}")
        return outcomes | {cell: "submitted" for cell in jobs if plan.record_of(cell).state() != "finished"}


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
exec >>{records}/"$cell"/log.txt 2>&1
scontrol update JobId="$SLURM_JOB_ID" JobName="$name"
trap : TERM
{setup}
export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONUNBUFFERED=1
if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi # srun no longer inherits it
srun --kill-on-bad-exit=1 {python} -m vitlab.study.slurm_job {folder} "$SLURM_ARRAY_TASK_ID"
code=$?
# saved before its limit, or asked to before Python could listen: the same job goes on in another allocation
if [ "$code" = {SAVED_AND_CONTINUE} ] || [ "$code" = {128 + signal.SIGUSR2} ]; then
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
