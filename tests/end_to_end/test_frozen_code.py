"""Code that is edited while a study runs, between its cells, and before it is continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trained_cells import origin, rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORDS = [
    "-m", "seed=0,1", "recipe.epochs=40", "recipe.warmup_epochs=0", "dataset.train_per_class=32",
    "study.cells_at_once=1", "wandb.mode=disabled", "device=cpu", "study.name=s",
]  # fmt: skip
STANDSTILL = "\n\ndef learning_rate(recipe, step, steps_per_epoch):\n    return 0.0\n"
"""Added to vitlab/train/optim.py: from here on nothing is learned."""


@pytest.fixture
def ours(tmp_path):
    """A copy of the code outside any checkout, that a user edits."""
    for part in ("vitlab", "hydra_plugins", "conf", "run.py"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, tmp_path / part)
    return tmp_path


def start(folder: Path, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "run.py", *WORDS, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", env=os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ended(process: subprocess.Popen, code: int = 0) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == code, output
    return output


def cells(runs: Path) -> list[Path]:
    entries = json.loads((runs / "studies/s.json").read_text(encoding="utf-8"))["cells"]
    return [runs / entry["id"] for entry in entries]


def until(true, process: subprocess.Popen, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_cells_end_on_the_code_that_they_began_with(ours):
    ended(start(ours, "output_dir=undisturbed"))
    wanted = [rows(cell) for cell in cells(ours / "undisturbed")]
    runs, process = ours / "runs", start(ours)
    until(lambda: (runs / "studies/s.json").exists() and rows(cells(runs)[0]), process)
    file = ours / "vitlab/train/optim.py"
    file.write_text(file.read_text(encoding="utf-8") + STANDSTILL, encoding="utf-8")
    until(lambda: len(rows(cells(runs)[1])) > 1, process)
    process.send_signal(signal.SIGINT)
    ended(process, code=130)
    assert len(rows(cells(runs)[1])) < 40
    output = ended(start(ours, "seed=0,1,2"))
    first, second, new = cells(runs)
    assert "the code has changed: none/s1 goes on with the code begun with, runs/code/" in output, output
    assert [rows(first), rows(second)] == wanted
    codes = [origin(cell)["code"] for cell in (first, second, new)]
    assert codes[0] == codes[1] != codes[2] and origin(second)["snapshot"] == origin(first)["snapshot"]
    assert origin(second)["earlier"][0]["code"] == codes[0] and origin(first)["commit"] is None
    assert {row["train/lr"] for row in rows(new)} == {0.0}, "what begins later runs the edited code"
    assert [entry.name for entry in (runs / "code").iterdir()] == [".lock"], "nobody needs a copy any more"


def test_live_takes_todays_code_and_the_record_says_so(ours):
    runs, process = ours / "runs", start(ours, "seed=0")
    until(lambda: (runs / "studies/s.json").exists() and rows(cells(runs)[0]), process)
    process.send_signal(signal.SIGINT)
    ended(process, code=130)
    (copy,) = [entry for entry in (runs / "code").iterdir() if entry.is_dir()]
    file = ours / "vitlab/train/optim.py"
    file.write_text(file.read_text(encoding="utf-8") + STANDSTILL, encoding="utf-8")
    damaged = copy / "vitlab/train/loop.py"
    damaged.chmod(0o644)
    damaged.write_text("", encoding="utf-8")
    done = len(rows(cells(runs)[0]))
    output = ended(start(ours, "seed=0"), code=1)
    assert "is damaged (vitlab/train/loop.py has changed); nothing was started" in output, output
    assert len(rows(cells(runs)[0])) == done and "study.code=live" in output
    output = ended(start(ours, "seed=0", "study.code=live"))
    (cell,) = cells(runs)
    assert "this study would mix 2 versions of the code" in output, output
    assert origin(cell)["snapshot"] is None and origin(cell)["earlier"][0]["snapshot"] == copy.name
    assert rows(cell)[-1]["train/lr"] == 0.0 and rows(cell)[0]["train/lr"] > 0
