"""A cell that the kernel kills for its memory, again and again, next to one that fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HOLDS = 1500 * 10**6
LARGE = "model.embed_dim=1280 model.depth=32 model.num_heads=16"
"""630 million parameters: their weights alone are more than the limit."""


@pytest.fixture
def limited():
    """The file that a process writes its number to, so that it and its children get `HOLDS` bytes between them."""
    for place, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / place / f"vitlab-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(HOLDS), encoding="utf-8")
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group / "cgroup.procs"
        end = time.monotonic() + 60
        while (group / "cgroup.procs").read_text(encoding="utf-8") and time.monotonic() < end:
            time.sleep(0.05)  # servers of the command's own end a moment after it
        group.rmdir()
        return
    pytest.skip("needs a control group of memory that this user may make")


def test_a_cell_that_is_killed_for_its_memory_stops_and_the_study_goes_on(limited, tmp_path):
    words = [
        "-m", f"study.cells=[{json.dumps(LARGE)},'seed=1']", "recipe.epochs=2", "recipe.warmup_epochs=0", "device=cpu",
        "dataset.train_per_class=32", "wandb.mode=disabled", "study.cells_at_once=1", "study.name=s",
    ]  # fmt: skip
    inside = ["sh", "-c", f'echo $$ >{limited}; exec "$@"', "sh", sys.executable, str(ROOT / "run.py"), *words]
    done = subprocess.run(inside, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    runs = tmp_path / "runs"
    large, small = [e["id"] for e in json.loads((runs / "studies/s.json").read_text(encoding="utf-8"))["cells"]]
    assert (runs / small / "result.json").exists() and not (runs / large / "result.json").exists()
    assert "SIGKILL, out of memory?: attempt 2 of 3 follows" in done.stdout
    assert "SIGKILL, out of memory?: attempt 3 of 3 follows" in done.stdout, done.stdout
    message = json.loads((runs / large / "failure.json").read_text(encoding="utf-8"))["message"]
    first, *lines, last = message.splitlines()
    assert first == "3 attempts in a row ended without progress:" and len(lines) == 3 and first in done.stdout
    assert all("SIGKILL, out of memory? before training began, peak memory " in line for line in lines), message
    assert last.startswith("    out of memory? lower workers")
