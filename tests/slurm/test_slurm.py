"""Studies on the real daemons: what is trained, what fails, what goes on, what is found again."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lab import SLURM
from submitit.helpers import DelayedSubmission
from trained_cells import origin, rows

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from forms import draw_tree, tar_of_each_split

pytestmark = pytest.mark.slow


def test_a_sweep_of_six_cells(lab):
    code, output = lab.run("augment=none,mixup,erase", "seed=0,1", "recipe.epochs=2", "study.name=six")
    assert code == 0, output
    assert len(lab.cells()) == 6 and output.count("top-1") >= 6 and "6 cells in 1 array:" in output, output
    assert all((cell / "result.json").exists() for cell in lab.cells())
    assert {state.split("|")[0] for state in map(lab.sacct, lab.jobs().values())} == {"COMPLETED"}
    names = lab.cluster.ask("sacct", "-X", "-n", "-P", "-o", "JobName", "-j", ",".join(lab.jobs().values())).split()
    cells = [f"six/{augment}/s{seed}" for augment in ("none", "mixup", "erase") for seed in (0, 1)]
    assert sorted(names) == sorted(cells)


@pytest.mark.parametrize(
    "gpus", [["gpus_per_node=2"], ["gres=gpu:2", "comment=two"], ["gpus_per_task=1", "tasks_per_node=2"]]
)
def test_a_cell_over_two_processes_of_a_node(lab, gpus):
    submitit = ["hydra/launcher=submitit_slurm", f"+{SLURM[1]}"] if len(gpus) > 1 else SLURM
    code, output = lab.run("recipe.epochs=2", *(f"hydra.launcher.{word}" for word in gpus), launcher=submitit)
    assert code == 0, output
    (cell,) = lab.cells()
    assert json.loads((cell / "result.json").read_text(encoding="utf-8"))["epochs"] == 2 and len(rows(cell)) == 2
    assert "devices: 2" in (cell / "config.yaml").read_text(encoding="utf-8")


def test_a_cell_over_two_nodes_saves_and_continues(lab):
    shape = ["hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=2", "hydra.launcher.cpus_per_task=2"]
    process = lab.start("recipe.epochs=60", *shape)
    cell = lab.until_epoch(2)
    job = lab.jobs()[cell.name]
    lab.cluster.ask("scancel", "--signal=USR2", job)
    code, output = lab.end(process)
    assert code == 0, output
    assert origin(cell)["slurm"] == {"job": job, "restarts": 1, "devices": 4}
    assert [row["epoch"] for row in rows(cell)] == list(range(1, 61))
    assert "devices: 4" in (cell / "config.yaml").read_text(encoding="utf-8")
    steps = lab.cluster.ask("sacct", "-n", "-P", "-o", "JobID,AllocCPUS,NTasks", "-j", job)
    assert f"{job}.0|8|4" in steps, steps


def test_each_node_of_a_cell_copies_the_data_once_to_a_disk_that_it_looks_up_itself(lab):
    root = tar_of_each_split(draw_tree(lab.folder / "birds", per_class=8), lab.folder / "tars")
    words = ["dataset=folder", "dataset.name=birds", f"dataset.root={root}", "dataset.train_per_class=null"]
    words += ["recipe.epochs=2", "recipe.batch_size=8", "hydra.launcher.nodes=2", "hydra.launcher.gpus_per_node=2"]
    stage = [f"hydra.launcher.setup=['export NODE_DISK={lab.folder}/disk']"]
    stage += ["dataset.stage='$NODE_DISK/$SLURMD_NODENAME/me'"]
    code, output = lab.run(*words, *stage)
    assert code == 0, output
    (cell,) = lab.cells()
    log, staged = (cell / "log.txt").read_text(encoding="utf-8"), rows(cell)
    assert log.count("copying 2 files, ") == 1 and f"birds is read from {lab.folder}/disk/n" in log, log
    for node in ("n1", "n2"):
        (folder,) = (lab.folder / "disk" / node / "me").iterdir()
        copies = sorted(file.read_bytes() for file in folder.glob("*.tar"))
        assert copies == sorted(file.read_bytes() for file in root.glob("*.tar"))
    code, output = lab.run(*words, f"study.rerun=[{cell.name}]")
    assert code == 0 and rows(cell) == staged, output


def test_one_raises_one_is_killed_and_the_sibling_keeps_its_result(lab):
    cells = ["recipe.lr=1e-3", "recipe.lr=1e38", "augment=mixup recipe.epochs=60"]
    process = lab.start(f"study.cells={json.dumps(cells)}", "recipe.epochs=3")
    lab.until(lambda: any(len(rows(cell)) >= 4 for cell in lab.cells()))
    (killed,) = [cell for cell in lab.cells() if len(rows(cell)) >= 4]
    os.kill(json.loads((killed / "lock").read_text(encoding="utf-8"))["pid"], signal.SIGKILL)
    code, output = lab.end(process)
    assert code == 1, output
    states = {cell: lab.sacct(job) for cell, job in lab.jobs().items()}
    assert sorted(states.values()) == ["COMPLETED|0:0", "COMPLETED|0:0", "FAILED|1:0"], states
    assert "the loss is not finite" in output and "1 of 3 cells did not finish" in output, output
    assert origin(killed)["slurm"]["restarts"] == 1 and len(rows(killed)) == 60, "it had advanced, and went on"
    assert '"killed": "exit code ' in (killed / "attempts.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", ["before it begins", "before an epoch ends"])
def test_a_cell_that_keeps_dying_stops_and_says_how(lab, where):
    """Python kills itself when it starts, or when it begins to train."""
    early = "if 'SLURM_PROCID' in os.environ: os.kill(os.getpid(), 9)"
    late = (
        "if 'SLURM_PROCID' in os.environ: threading.Thread(target=lambda: [time.sleep(0.01) for _ in iter(lambda: "
        "'vitlab.train.loop' in sys.modules, True)] + [os.kill(os.getpid(), 9)], daemon=True).start()"
    )
    folder = lab.folder / "site"
    folder.mkdir()
    text = f"import os, sys, threading, time\n{early if where == 'before it begins' else late}\n"
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    code, output = lab.run("recipe.epochs=2", f"hydra.launcher.setup=['export PYTHONPATH={folder}']")
    assert code == 1, output
    (job,) = lab.jobs().values()
    restarts = 2 if where == "before it begins" else 3  # the last start ends at once
    assert f" Restarts={restarts} " in lab.cluster.ask("scontrol", "-o", "show", "job", job)
    assert "3 attempts in a row ended without progress:" in output, output
    assert output.count(f"Slurm job {job}: exit code") == 2 * 3, "in the view and in the summary"
    assert "raise hydra.launcher.mem_gb" in output, output


def test_a_job_that_ends_before_it_begins_shows_why(lab):
    code, output = lab.run("hydra.launcher.setup=['echo there is no module cuda; exit 3']")
    assert code == 1 and "FAILED 3:0; it ended before it began" in output, output
    assert "| there is no module cuda" in output, output


def test_signals_preemption_and_node_failure_continue_to_the_same_bits(lab):
    words = ["recipe.epochs=30", "dataset.train_per_class=128"]
    process = lab.start(*words, "wandb.mode=offline")
    cell = lab.until_epoch(2)
    job = lab.jobs()[cell.name]

    def preempt() -> None:
        lab.cluster.ask(
            "sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2"
        )

    def lose_node() -> None:
        node = lab.cluster.ask("squeue", "-h", "-r", "-j", job, "-o", "%N").strip()
        lab.cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        lab.cluster.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def usr2() -> None:
        lab.cluster.ask("scancel", "--signal=USR2", job)

    for restart, disturb in enumerate((usr2, usr2, preempt, lose_node), start=1):
        disturb()
        lab.until(lambda n=restart: origin(cell).get("slurm", {}).get("restarts") == n)
        before = len(rows(cell))
        lab.until(lambda n=before: len(rows(cell)) > n)
    code, output = lab.end(process)
    assert code == 0, output
    assert rows(cell) == lab.undisturbed(*words)
    mirrors = [path.name for path in cell.glob("wandb/offline-run-*")]
    assert len(mirrors) == 5 and all(name.endswith(f"-{cell.name}") for name in mirrors), mirrors


def test_a_signal_to_one_cell_leaves_its_siblings_alone(lab):
    process = lab.start("augment=none,mixup", "recipe.epochs=50")
    lab.until(lambda: [len(rows(cell)) > 1 for cell in lab.cells()] == [True, True])
    last = max(lab.jobs().values())
    lab.cluster.ask("scancel", "--signal=USR2", last)
    code, output = lab.end(process)
    assert code == 0, output
    restarts = {job: origin(lab.runs / cell)["slurm"]["restarts"] for cell, job in lab.jobs().items()}
    assert restarts == {job: int(job == last) for job in lab.jobs().values()}


def test_a_limit_shorter_than_the_cell_takes_several_allocations(lab):
    words = ["recipe.epochs=2000", "dataset.train_per_class=128"]
    process = lab.start(*words, "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=40")
    cell = lab.until_epoch(1)
    lab.until(lambda: origin(cell).get("slurm", {}).get("restarts", 0) >= 2, 150)
    count = [row["epoch"] for row in rows(cell)]
    assert count == list(range(1, len(count) + 1))
    lab.cluster.ask("scancel", lab.jobs()[cell.name])
    code, output = lab.end(process)
    assert code == 130 and "CANCELLED" in output and "To continue: " in output, output


PRETRAINED = [
    "pretrain=fractaldb_small", "pretrain.dataset.fractal.categories=4", "pretrain.dataset.fractal.instances=32",
    "pretrain.recipe.warmup_epochs=0", "recipe.epochs=1", "augment=none,mixup",
]  # fmt: skip


def test_a_failed_pretraining_blocks_its_dependents(lab):
    words = [*PRETRAINED, "pretrain.recipe.lr=1e38", "pretrain.recipe.epochs=1"]
    code, output = lab.run(*words)
    assert code == 1 and "3 of 3 cells did not finish" in output, output
    assert output.count("blocked: its pre-training") == 2, output
    # slurmctld's own word: accounting may not know yet of jobs that never began
    known = [lab.cluster.ask("scontrol", "-o", "show", "job", job) for job in lab.jobs().values()]
    states = sorted(state for text in known for state in re.findall(r"JobState=(\w+)", text))
    assert states == ["CANCELLED", "CANCELLED", "FAILED"]
    submitted = lab.jobs()
    code, output = lab.run(*words)
    assert code == 1 and output.count("blocked: its pre-training") == 2 and lab.jobs() == submitted, output


def test_dependents_wait_for_a_pretraining_that_takes_two_allocations(lab):
    process = lab.start(*PRETRAINED, "pretrain.recipe.epochs=16")
    cell = lab.until_epoch(2)
    lab.cluster.ask("scancel", "--signal=USR2", lab.jobs()[cell.name])
    code, output = lab.end(process)
    assert code == 0 and origin(cell)["slurm"]["restarts"] == 1, output
    assert len(list(lab.runs.glob("*/result.json"))) == 3 and len(list(lab.runs.glob("slurm/*/jobs.json"))) == 2


def test_detach_then_a_fresh_command_finds_the_jobs(lab):
    code, output = lab.run("augment=none,mixup", "recipe.epochs=20", "study.detach=true")
    assert code == 0 and "left to Slurm" in output, output
    submitted = lab.jobs()
    code, output = lab.run("augment=none,mixup,erase", "recipe.epochs=20")
    assert code == 0 and "already in the queue" in output, output
    assert submitted.items() < lab.jobs().items() and len(list(lab.runs.glob("*/result.json"))) == 3


def test_two_controllers_submit_each_cell_once(lab):
    both = [lab.start("augment=none,mixup,erase", "recipe.epochs=10") for _ in range(2)]
    ended = [lab.end(process) for process in both]
    assert [code for code, _ in ended] == [0, 0], ended
    assert len(list(lab.runs.glob("slurm/*/jobs.json"))) == 1 and len(lab.cells()) == 3


def test_the_command_killed_mid_study_loses_nothing(lab):
    process = lab.start("augment=none,mixup", "recipe.epochs=20")
    lab.until(lambda: len(lab.cells()) == 2)
    process.kill()
    lab.until(lambda: len(list(lab.runs.glob("*/result.json"))) == 2)
    code, output = lab.run("augment=none,mixup", "recipe.epochs=20")
    assert code == 0 and "0 to train" in output, output


def test_two_hundred_cells_are_submitted_in_seconds(lab):
    seeds = ",".join(map(str, range(200)))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, output = lab.run(f"seed={seeds}", "study.detach=true", "+hydra.launcher.additional_parameters.hold=true")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0 and "200 cells in 19 arrays:" in output, output
    assert len(lab.queue().splitlines()) == 200, "in arrays of at most 11, this cluster's MaxArraySize"
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # whatever else the machine does
    assert took < 10


@pytest.mark.parametrize(
    ("words", "said", "launcher"),
    [
        (["hydra.launcher.gpus_per_node=2", "hydra.launcher.tasks_per_node=1"], "hydra.launcher.tasks_per_node", SLURM),
        (["hydra.launcher.partition=nowhere"], "invalid partition", SLURM),
        (["hydra.launcher.name=x"], "give study.name=NAME", ["hydra/launcher=submitit_slurm"]),
        ([], "leave it out, or give hydra/launcher=local", ["hydra/launcher=submitit_local"]),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(lab, words, said, launcher):
    code, output = lab.run(*words, launcher=launcher)
    assert code != 0 and said in output, output
    assert lab.jobs() == {} and lab.queue() == ""


def test_code_that_changed_since_submission_is_noted(lab):
    code, _ = lab.run("recipe.epochs=1", "study.detach=true", "+hydra.launcher.additional_parameters.hold=true")
    assert code == 0
    (file,) = lab.runs.glob("slurm/*/*_submitted.pkl")
    job = DelayedSubmission.load(file)
    job.function = replace(job.function, code="of another day")
    job.dump(file)
    lab.cluster.ask("scontrol", "release", next(iter(lab.jobs().values())).partition("_")[0])
    code, output = lab.run("recipe.epochs=1")
    assert code == 0 and "code changed since it was submitted" in output, output
    (cell,) = lab.cells()
    assert origin(cell)["code_changed_since_submission"] is True
