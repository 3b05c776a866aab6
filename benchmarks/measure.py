"""What the benchmarks share: sides that take turns, commands timed with all their descendants, rows against targets."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SUBREAPER = 36
"""prctl's PR_SET_CHILD_SUBREAPER: orphans among the descendants become this process's children, and are counted."""


@dataclass(frozen=True)
class Row:
    """A line of the table of targets: `ours` and `peer` in `unit`, `ratio` of the two, larger than `target` if met."""

    what: str
    ours: float
    peer: float
    unit: str
    ratio: float
    target: float

    def __str__(self) -> str:
        met = "yes" if self.ratio >= self.target else "**no**"
        figures = " | ".join(f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in (self.ours, self.peer))
        return f"| {self.what} | {figures} | {self.unit} | {self.ratio:,.2f} | {self.target:,g} | {met} |"


HEADING = "| what | vitlab | peer | unit | ratio | target | met |\n| --- | ---: | ---: | --- | ---: | ---: | --- |"


def seconds_in_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Seconds of each side, the best of `rounds` in turns, after one round that does not count.

    Processor time by default: neighbours on the machine disturb it less than the clock.
    """
    best = dict.fromkeys(sides, float("inf"))
    for number in range(rounds + 1):
        for side, work in sides.items():
            began = clock()
            work()
            if number:
                best[side] = min(best[side], clock() - began)
    return best


@dataclass(frozen=True)
class Seconds:
    """Of a command: by the clock, and of processors, its descendants' included."""

    clock: float
    processor: float

    def __str__(self) -> str:
        return f"{self.clock:.1f} s by the clock, {self.processor:.1f} s of processors"


def run_command(
    words: list[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Seconds, str]:
    """Run Python with these words, in `folder` or a temporary one; its seconds, and what it printed.

    Raises RuntimeError with the end of its output when it fails.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        began, used = time.perf_counter(), _children()
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=folder or scratch,
            env=os.environ | (environment or {}), encoding="utf-8"
        )  # fmt: skip
        clock = time.perf_counter() - began
        _reap()
    output = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(output[-4000:])
    return Seconds(clock, _children() - used), output


def processor_seconds() -> float:
    """Of this process and of those of its descendants that have ended and been waited for."""
    return time.process_time() + _children()


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap() -> None:
    """Wait for what the command left behind: its seconds are counted once it has ended."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


def about() -> str:
    """The machine and the versions, for the line above a table."""
    import PIL
    import timm
    import torch

    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {load}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}"
    )
