"""One cell inside a Slurm job: `python -m vitlab.study.slurm_job BATCH INDEX`, started by srun once per rank.

Exit codes: 0 finished; SAVED_AND_CONTINUE saved, and to be requeued by the batch script; SAVED saved because Slurm ends
the job (preempted jobs are requeued by Slurm itself); ELSEWHERE another process trains the cell; 1 failed. Ranks other
than 0 end with 0 unless they fail, and linger when they do: srun ends a step at the first rank that ends badly, and
rank 0 has to write what happened.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlab.study.record import Record

SAVED_AND_CONTINUE = 75
SAVED = 76
ELSEWHERE = 77
"""Not 0: what depends on this cell must not start."""
WAIT_FOR_PREDECESSOR = 120
"""Seconds that a requeued cell waits for its own earlier process to let go of the record."""
LINGER = 10
"""Seconds that a failed rank leaves to rank 0."""


def main(batch: str, index: int) -> int:
    signals = _note_signals()
    with (Path(batch) / "cells.pkl").open("rb") as stream:
        content = pickle.load(stream)
    config, name = content["cells"][index]
    os.environ |= rank_environment(os.environ)
    is_main, restarts = os.environ["RANK"] == "0", int(os.environ.get("SLURM_RESTART_COUNT", 0))
    from vitlab.study.provenance import code_fingerprint
    from vitlab.study.record import Record
    from vitlab.study.run import cell_of, identity, run_cell

    record = Record(Path(config.output_dir) / identity(cell_of(config)))
    changed = code_fingerprint() != content["code"]
    if is_main:
        if changed:
            print("vitlab: the code has changed since this cell was submitted", flush=True)
        if restarts:
            _wait_for_predecessor(record, signals)

    def report(event: dict[str, Any]) -> None:
        if "start" in event:
            origin = record.read("provenance.json") or {}
            about = {"job": _job_name(), "restarts": restarts, "devices": int(os.environ["WORLD_SIZE"])}
            record.write("provenance.json", origin | {"slurm": about, "code_changed_since_submission": changed})
            if early := signals():  # came before the cell could listen
                signal.raise_signal(max(early))
        elif "epoch" in event:
            print(f"{name}: epoch {event['epoch']} loss {event['train/loss']:.4f}", flush=True)

    try:
        outcome = run_cell(config, study=content["study"], name=name, report=report)
    except Exception:
        traceback.print_exc()
        if not is_main:
            time.sleep(LINGER)
        return 1
    if not is_main:
        return 0
    print(f"{name}: {outcome}", flush=True)
    return exit_code(outcome, signals())


def exit_code(outcome: str, signals: set[int]) -> int:
    """What rank 0 ends with after `outcome`, where `signals` asked for an end."""
    if outcome == "interrupted":
        return SAVED_AND_CONTINUE if signals == {signal.SIGUSR2} else SAVED
    return ELSEWHERE if outcome == "running elsewhere" else 0


def _wait_for_predecessor(record: Record, signals: Callable[[], set[int]]) -> None:
    deadline = time.monotonic() + WAIT_FOR_PREDECESSOR
    while record.is_locked() and not signals() and time.monotonic() < deadline:
        time.sleep(1)


def rank_environment(known: Mapping[str, str]) -> dict[str, str]:
    """What torch.distributed needs (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), from Slurm's variables."""
    first = _first_host(known.get("SLURM_STEP_NODELIST") or known.get("SLURM_JOB_NODELIST") or "localhost")
    address = _address(first)
    values = {
        "RANK": known.get("SLURM_PROCID", "0"), "WORLD_SIZE": known.get("SLURM_STEP_NUM_TASKS", "1"),
        "LOCAL_RANK": known.get("SLURM_LOCALID", "0"), "MASTER_ADDR": address,
        "MASTER_PORT": str(20000 + int(known.get("SLURM_JOB_ID", "0")) % 12000),
    }  # fmt: skip
    return values | ({"GLOO_SOCKET_IFNAME": "lo"} if address.startswith("127.") else {})


def _first_host(nodes: str) -> str:
    if "[" not in nodes and "," not in nodes:
        return nodes
    return _ask("scontrol", "show", "hostnames", nodes).split("\n")[0] or nodes


def _address(host: str) -> str:
    """A name or address that can be reached: the node's name, else the address that Slurm has for it."""
    words = _ask("scontrol", "-o", "show", "node", host).split()
    described = {key: value for key, _, value in (word.partition("=") for word in words)}
    for name in (host, described.get("NodeAddr", "")):
        try:
            return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0]) if name else "127.0.0.1"
        except OSError:
            continue
    return "127.0.0.1"


def _ask(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _job_name() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def _note_signals() -> Callable[[], set[int]]:
    """Remember every signal that asks for an end, whoever handles it; returns a function that tells which came."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: None)
    seen: set[int] = set()

    def asked() -> set[int]:
        with contextlib.suppress(BlockingIOError):
            seen.update(os.read(reader, 4096))
        return seen & {signal.SIGTERM, signal.SIGUSR2}

    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
