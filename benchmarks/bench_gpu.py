"""ViT-Ti/16 at 224 pixels on one GPU, against timm: ways to run the step, cells that share it, from JPEGs and a pack.

python -m benchmarks.bench_gpu --all [--budget 540] [--parts step,jpeg,cells,pack,augment] [--timm PATH/train.py]

Rows are printed as they are measured, and written to a file with --out. Each part is a process group of its own, which
is killed when its time is over, so that no part takes the others' time or breaks the device for them; a part that the
budget of seconds has no room for is named with the command that measures it. Without --all the parts are the step and
its augmentation, and, with --timm, timm's train.py on the same tree (from timm's repository: it is not in its wheel).

The step takes random images that are on the GPU already, by the trial of `tune=true`; timm's augments none. Figures of
commands are images per second while all cells train, their first and last epochs left out. No network, no W&B and no
git are needed. `--small` shows on any machine that all of it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import getpass
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import HEADING, ROOT, Row, about

PARTS = {"step": 200, "jpeg": 110, "cells": 95, "pack": 55, "augment": 75, "randaug": 75, "timm": 300}
"""Part of a run → seconds that it is given on an H100 with 16 cores, by estimate; the first five are those of --all.
One that needs less leaves the rest to those after it."""
NEEDED = {
    "torch": "torch", "torchvision": "torchvision", "timm": "timm", "hydra": "hydra-core", "omegaconf": "omegaconf",
    "antlr4": "antlr4-python3-runtime==4.9.3", "numpy": "numpy", "scipy": "scipy", "simplejpeg": "simplejpeg",
    "PIL": "pillow", "cv2": "opencv-python-headless", "rich": "rich", "numba": "numba", "sklearn": "scikit-learn",
}  # fmt: skip
"""Module → package, of what the parts import: less than requirements.txt, so that little has to be carried to a machine
without a network."""
Rows = Iterator[Row | str]
"""Rows, and lines that say why there is none."""


@dataclass(frozen=True)
class Size:
    """How much is measured, on what."""

    all: bool = False
    small: bool = False
    budget: int = 540
    parts: str = ""
    timm: Path | None = None
    out: Path | None = None
    tree: Path = Path(tempfile.gettempdir()) / "vitlab_bench_tree"
    images: int = 24_000
    distinct: int = 8_000
    """JPEGs of the tree that are not a further name of another one."""
    workers: int = os.cpu_count() or 1
    batch: int = 1024
    device: str = "cuda"

    def words(self) -> str:
        """As JSON, for the process of a part."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @staticmethod
    def of(words: str) -> Size:
        content = json.loads(words)
        paths = {name: Path(content[name]) for name in ("timm", "out", "tree") if content[name] is not None}
        return Size(**content | paths)


def rows(size: Size) -> Rows:
    """The rows of the parts that were asked for, each begun only where the budget has room for it."""
    asked = ["step", *["jpeg", "cells", "pack"] * size.all, "augment", *["timm"] * (size.timm is not None)]
    asked = size.parts.split(",") if size.parts else asked
    if wrong := [part for part in asked if part not in PARTS or (part == "timm" and not size.timm)]:
        raise SystemExit(f"--parts: got {', '.join(wrong)}, allowed: {', '.join(PARTS)} (timm with --timm)")
    end, factor = time.perf_counter() + size.budget, 0.2 if size.small else 1.0
    known: dict[str, Any] = {}
    for number, part in enumerate(asked):
        left, needed = end - time.perf_counter(), factor * PARTS[part]
        if left < needed:
            again = f"python -m benchmarks.bench_gpu --parts {part}"
            yield f"{part}: not measured, {left:.0f} s of {size.budget} are left; type {again}"
            continue
        later = sum(factor * PARTS[other] for other in asked[number + 1 :])
        yield from apart(part, size, known, left if size.small else max(needed, left - later))


def apart(part: str, size: Size, known: dict[str, Any], seconds: float) -> Rows:
    """The rows of a part, from a process that is killed with its descendants after so many seconds.

    `known` is what parts know of one another: the process gets it, and what it finds out is added.
    """
    size = dataclasses.replace(size, budget=int(seconds))
    command = [sys.executable, "-m", "benchmarks.gpu_parts", part, size.words(), json.dumps(known)]
    late = threading.Event()
    compiled = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"  # torch's own place: kept for later parts
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
    ):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", errors="replace",
            env={"TORCHINDUCTOR_CACHE_DIR": compiled, **os.environ, "TMPDIR": scratch}, start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(seconds, lambda: (late.set(), _kill(process)))
        timer.start()
        assert process.stdout is not None, "a pipe"
        try:
            for line in process.stdout:
                yield from _taken(part, line, known, errors)
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process)
            process.wait()
            process.stdout.close()
        if late.is_set():
            yield f"{part}: killed, it was given {seconds:.0f} s; type python -m benchmarks.bench_gpu --parts {part}"
        elif code:
            errors.seek(0)
            yield f"{part}: failed, exit code {code}: {errors.read()[-1500:]}"


def _taken(part: str, line: str, known: dict[str, Any], errors: Any) -> Generator[Row | str]:
    """What a line of a part's process says; what libraries print is kept with its errors."""
    try:
        kind, content = json.loads(line)
    except (ValueError, TypeError):
        errors.write(line)
        return
    if kind == "row":
        yield Row(**content)
    elif kind == "text":
        yield f"{part}: {content}"
    else:
        known |= content


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and all that it started
        os.killpg(process.pid, signal.SIGKILL)


def require_machine(size: Size) -> None:
    """Raise SystemExit with what is missing here, before anything is measured."""
    if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
        raise SystemExit(
            f"bench_gpu: not installed here: {', '.join(missing)}. Without a network, download their wheels elsewhere "
            "(pip wheel --no-deps) and carry them"
        )
    import torch

    if size.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_gpu: no GPU that torch can use; --small shows on a CPU that all of it runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Size):
        kind = {"timm": Path, "out": Path, "tree": Path, "device": str, "parts": str}.get(field.name, int)
        if field.type == "bool":
            parser.add_argument(f"--{field.name}", action="store_true")
        else:
            parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    size = Size(**vars(parser.parse_args()))
    if size.small:
        size = dataclasses.replace(size, device="cpu", batch=16, images=64, distinct=32, workers=1)
        size = dataclasses.replace(size, tree=size.tree.with_name(f"{size.tree.name}_small"))
    size = dataclasses.replace(
        size, timm=size.timm and size.timm.resolve(), out=size.out and size.out.resolve(), tree=size.tree.resolve()
    )
    require_machine(size)
    began, failed = time.perf_counter(), False

    def say(text: str) -> None:
        print(text, flush=True)
        if size.out:
            with size.out.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")

    plan = ", ".join(f"{part} {seconds} s" for part, seconds in PARTS.items())
    say(f"{about()}\nbudget {size.budget} s; parts, by estimate: {plan}\n\n{HEADING}")
    for row in rows(size):
        failed |= isinstance(row, str) and (": failed" in row or ": killed" in row)
        say(str(row) if isinstance(row, Row) else f"| {' '.join(row.split())} | – | – | – | – | – | – |")
    say(f"\n{time.perf_counter() - began:.0f} s")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
