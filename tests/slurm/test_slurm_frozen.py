"""Code that is edited while cells wait in Slurm's queue, between requeues, and between two cells of an array."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab import ROOT, SLURM, TINY, Lab
from trained_cells import origin, rows

pytestmark = pytest.mark.slow

STANDSTILL = "\n\ndef learning_rate(recipe, step, steps_per_epoch):\n    return 0.0\n"
"""Added to vitlab/train/optim.py: from here on nothing is learned."""
HELD = ["study.detach=true", "+hydra.launcher.additional_parameters.hold=true"]


class Edited(Lab):
    """Commands of a copy of the code, which the user goes on editing."""

    def __init__(self, cluster, folder: Path, train_here) -> None:
        super().__init__(cluster, folder, train_here)
        for part in ("vitlab", "hydra_plugins", "conf", "run.py"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, folder / part)

    def start(self, *words: str, launcher=SLURM) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "run.py", "-m", *launcher, *TINY, *words], cwd=self.folder,
            env=self.cluster.environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )  # fmt: skip
        self.commands.append(process)
        return process

    def edit(self) -> None:
        file = self.folder / "vitlab/train/optim.py"
        file.write_text(file.read_text(encoding="utf-8") + STANDSTILL, encoding="utf-8")

    def release(self) -> None:
        for job in {job.partition("_")[0] for job in self.jobs().values()}:
            self.cluster.ask("scontrol", "release", job)

    def copies(self) -> list[Path]:
        return [entry for entry in (self.runs / "code").iterdir() if entry.is_dir()]


@pytest.fixture
def edited(cluster, tmp_path, train_here):
    made = Edited(cluster, tmp_path, train_here)
    yield made
    made.close()


def rates(cell: Path) -> set[float]:
    return {row["train/lr"] for row in rows(cell)}


def test_queued_and_requeued_cells_run_the_code_that_was_submitted(edited):
    words = ["seed=0,1", "recipe.epochs=40"]
    process = edited.start(*words, "hydra.launcher.array_parallelism=1")
    first = edited.until_epoch(2)
    edited.edit()  # between two cells of an array, and before a requeue
    edited.cluster.ask("scancel", "--signal=USR2", edited.jobs()[first.name])
    code, output = edited.end(process)
    assert code == 0 and "code changed" not in output, output
    cells = edited.cells()
    assert len(cells) == 2 and len({origin(cell)["code"] for cell in cells}) == 1
    assert origin(first)["slurm"]["restarts"] == 1 and origin(first)["earlier"][0]["code"] == origin(first)["code"]
    assert all(0.0 not in rates(cell) and len(rows(cell)) == 40 for cell in cells)
    assert {origin(cell)["commit"] for cell in cells} == {None}, "outside a checkout"
    assert not edited.copies(), "removed with the end of the study"


def test_two_studies_of_different_code_at_once(edited):
    assert edited.run("seed=0", "recipe.epochs=2", "study.name=before", *HELD)[0] == 0
    edited.edit()
    assert edited.run("seed=1", "recipe.epochs=2", "study.name=after", *HELD)[0] == 0
    assert len(edited.copies()) == 2
    edited.release()
    edited.until(lambda: len(list(edited.runs.glob("*/result.json"))) == 2)
    found = {origin(cell)["snapshot"]: rates(cell) for cell in edited.cells()}
    assert len(found) == 2 and [rates == {0.0} for rates in found.values()].count(True) == 1
    code, output = edited.run("seed=0", "recipe.epochs=2", "study.name=before")
    assert code == 0 and "0 to train" in output and not edited.copies(), output


def test_code_that_is_gone_trains_nothing(edited):
    assert edited.run("seed=0", "recipe.epochs=2", *HELD)[0] == 0
    (copy,) = edited.copies()
    file = copy / "vitlab/train/loop.py"
    file.chmod(0o644)
    file.write_text("", encoding="utf-8")
    edited.release()
    edited.until(lambda: not edited.queue())
    (log,) = edited.runs.glob("*/log.txt")
    assert "is damaged or gone: nothing was trained on other code" in log.read_text(encoding="utf-8")
    assert [edited.sacct(job) for job in edited.jobs().values()] == ["FAILED|78:0"] and not edited.cells()
    code, output = edited.run("seed=0", "recipe.epochs=2")
    assert code == 0, "nothing was trained: it begins on a copy that is whole\n" + output
