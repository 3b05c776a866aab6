"""Studies on the real daemons: what is trained, what fails, what goes on, what is found again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = ["recipe.warmup_epochs=0", "dataset.train_per_class=32", "wandb.mode=disabled", "device=cpu"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5"]


class Lab:
    """Commands in a folder of their own, against the cluster."""

    def __init__(self, cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.runs = folder / "runs"

    def words(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "run.py"), "-m", *SLURM, *TINY, *words]

    def start(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.words(*words), cwd=self.folder, env=self.cluster.environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        output = process.communicate(timeout=400)[0]
        return process.returncode, output

    def cells(self) -> list[Path]:
        return sorted(p.parent for p in self.runs.glob("*/config.yaml"))

    def jobs(self) -> dict[str, str]:
        """Identity → job of everything that was submitted from this folder."""
        found: dict[str, str] = {}
        for file in sorted(self.runs.glob("slurm/*/jobs.json")):
            found |= json.loads(file.read_text())
        return found

    def queue(self) -> str:
        return self.cluster.ask("squeue", "-h", "-r", "-o", "%i %T %j")

    def sacct(self, job: str) -> str:
        """The state in accounting, which lags by seconds."""
        end = time.monotonic() + 30
        while True:
            said = self.cluster.ask("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job).strip()
            if (said and said.split("|")[0] not in ("RUNNING", "COMPLETING", "PENDING")) or time.monotonic() > end:
                return said
            time.sleep(0.3)

    def until(self, true, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.queue() + "".join(p.read_text() for p in self.runs.glob("*/log.txt"))
            time.sleep(0.1)

    def until_epoch(self, count: int) -> Path:
        """Wait until the only cell has `count` rows; returns its folder."""
        self.until(lambda: any(len(rows(cell)) >= count for cell in self.cells()))
        (cell,) = self.cells()
        return cell


@pytest.fixture
def lab(cluster, tmp_path):
    yield Lab(cluster, tmp_path)
    cluster.ask("scancel", "-u", "root")


def rows(cell: Path) -> list[dict]:
    """The metrics of a cell without clock readings."""
    file = cell / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    parsed = [json.loads(line) for line in lines if line.endswith("}")]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in parsed]


def origin(cell: Path) -> dict:
    return json.loads((cell / "provenance.json").read_text())


def undisturbed(folder: Path, *words: str) -> list[dict]:
    """The metrics of the same cell, trained on this machine without Slurm."""
    command = [sys.executable, str(ROOT / "run.py"), *TINY, *words, f"output_dir={folder}/local"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    (cell,) = [p.parent for p in (folder / "local").glob("*/config.yaml")]
    return rows(cell)


def test_a_sweep_of_six_cells(lab):
    code, output = lab.run("augment=none,mixup,erase", "seed=0,1", "recipe.epochs=2")
    assert code == 0, output
    assert len(lab.cells()) == 6 and output.count("top-1") >= 6 and "in 1 arrays" in output
    assert all((cell / "result.json").exists() for cell in lab.cells())
    assert {state.split("|")[0] for state in map(lab.sacct, lab.jobs().values())} == {"COMPLETED"}


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 2), (2, 2)])
def test_a_cell_over_several_processes(lab, nodes, gpus):
    shape = [f"hydra.launcher.nodes={nodes}", f"hydra.launcher.gpus_per_node={gpus}"]
    code, output = lab.run("recipe.epochs=2", *shape)
    assert code == 0, output
    (cell,) = lab.cells()
    result = json.loads((cell / "result.json").read_text())
    assert result["epochs"] == 2 and len(rows(cell)) == 2
    assert f"devices: {nodes * gpus}" in (cell / "config.yaml").read_text()


def test_one_raises_one_is_killed_and_the_sibling_keeps_its_result(lab):
    process = lab.start(
        "study.cells=[recipe.lr=1e-3,recipe.lr=1e38,'augment=mixup recipe.epochs=200']", "recipe.epochs=3"
    )
    lab.until(lambda: any("mixup" in line and "RUNNING" in line for line in lab.queue().splitlines()))
    job = next(line.split()[0] for line in lab.queue().splitlines() if "mixup" in line)
    lab.until(lambda: any(c.name == identity_of(lab, job) and rows(c) for c in lab.cells()))
    lab.cluster.ask("scancel", "--signal=KILL", job)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 1, output
    states = {cell: lab.sacct(job).split("|")[0] for cell, job in lab.jobs().items()}
    assert sorted(states.values()) in (["COMPLETED", "FAILED", "FAILED"], ["CANCELLED by 0", "COMPLETED", "FAILED"]), (
        states
    )
    assert "FloatingPointError" in output and "log: " in output and "Slurm job" in output, output
    assert "2 of 3 cells did not finish" in output


def identity_of(lab: Lab, job: str) -> str:
    return next(cell for cell, known in lab.jobs().items() if known == job)


def test_signals_and_preemption_continue_to_the_same_bits(lab):
    process = lab.start("recipe.epochs=40", "dataset.train_per_class=128")
    cell = lab.until_epoch(2)
    job = lab.jobs()[cell.name]
    for restart in (1, 2):
        before = len(rows(cell))
        lab.cluster.ask("scancel", "--signal=USR2", job)
        lab.until(lambda n=restart: origin(cell).get("slurm", {}).get("restarts") == n)
        lab.until(lambda n=before: len(rows(cell)) > n)
    words = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 3"]
    lab.cluster.ask(*words)
    lab.until(lambda: origin(cell).get("slurm", {}).get("restarts") == 3)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert rows(cell) == undisturbed(lab.folder, "recipe.epochs=40", "dataset.train_per_class=128")


def test_a_limit_shorter_than_the_cell_takes_several_allocations(lab):
    words = ["recipe.epochs=2000", "dataset.train_per_class=128"]
    process = lab.start(*words, "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=40")
    cell = lab.until_epoch(1)
    lab.until(lambda: origin(cell).get("slurm", {}).get("restarts", 0) >= 2, 150)
    count = [row["epoch"] for row in rows(cell)]
    assert count == list(range(1, len(count) + 1))
    lab.cluster.ask("scancel", lab.jobs()[cell.name])
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 1 and "CANCELLED" in output, output


def test_a_failed_pretraining_blocks_its_dependents(lab):
    pretraining = ["pretrain=fractaldb_small", "pretrain.recipe.lr=1e38", "pretrain.recipe.epochs=1"]
    code, output = lab.run(*pretraining, "augment=none,mixup", "recipe.epochs=1")
    assert code == 1 and output.count("blocked") >= 4, output
    states = sorted(lab.sacct(job).split("|")[0].split()[0] for job in lab.jobs().values())
    assert states == ["CANCELLED", "CANCELLED", "FAILED"]


def test_detach_then_a_fresh_command_finds_the_jobs(lab):
    code, output = lab.run("augment=none,mixup", "recipe.epochs=20", "study.detach=true")
    assert code == 0 and "left to Slurm" in output, output
    submitted = lab.jobs()
    code, output = lab.run("augment=none,mixup", "recipe.epochs=20")
    assert code == 0 and "already in the queue" in output, output
    assert lab.jobs() == submitted and len(list(lab.runs.glob("*/result.json"))) == 2


def test_two_controllers_submit_each_cell_once(lab):
    both = [lab.start("augment=none,mixup,erase", "recipe.epochs=10") for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(list(lab.runs.glob("slurm/*/jobs.json"))) == 1 and len(lab.cells()) == 3


def test_the_command_killed_mid_study_loses_nothing(lab):
    process = lab.start("augment=none,mixup", "recipe.epochs=20")
    lab.until(lambda: len(lab.cells()) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lab.until(lambda: len(list(lab.runs.glob("*/result.json"))) == 2)
    code, output = lab.run("augment=none,mixup", "recipe.epochs=20")
    assert code == 0 and "0 to train" in output, output


def test_two_hundred_cells_are_submitted_in_seconds(lab):
    seeds = ",".join(map(str, range(200)))
    began = time.monotonic()
    code, output = lab.run(f"seed={seeds}", "study.detach=true", "+hydra.launcher.additional_parameters.hold=true")
    took = time.monotonic() - began
    assert code == 0 and "200 cells in 1 arrays" in output, output
    assert len(lab.queue().splitlines()) == 200
    print(f"200 cells: {took:.1f} s")
    assert took < 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.launcher.gpus_per_node=2", "hydra.launcher.tasks_per_node=1"], "hydra.launcher.tasks_per_node"),
        (["hydra.launcher.partition=nowhere"], "nowhere|invalid partition"),
        (["hydra/launcher=submitit_slurm", "~hydra.launcher.poll_seconds"], "hydra/launcher=slurm"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(lab, words, said):
    code, output = lab.run(*words)
    assert code != 0 and any(part in output for part in said.split("|")), output
    assert lab.jobs() == {}


def test_code_that_changed_since_submission_is_noted(lab):
    code, _ = lab.run("recipe.epochs=1", "study.detach=true", "+hydra.launcher.additional_parameters.hold=true")
    assert code == 0
    import pickle

    (file,) = lab.runs.glob("slurm/*/cells.pkl")
    file.write_bytes(pickle.dumps(pickle.loads(file.read_bytes()) | {"code": "of another day"}))
    lab.cluster.ask("scontrol", "release", next(iter(lab.jobs().values())).partition("_")[0])
    code, output = lab.run("recipe.epochs=1")
    assert code == 0 and "code changed since it was submitted" in output, output
    (cell,) = lab.cells()
    assert origin(cell)["code_changed_since_submission"] is True
