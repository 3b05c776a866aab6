"""Jobs of several cells on the real daemons: what fails, goes on or is chosen inside one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from trained_cells import origin, rows

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from forms import draw_photographs

from vitlab.study.slurm_queue import loaders_of

pytestmark = pytest.mark.slow

SMALL = ["model.image_size=32", "recipe.batch_size=16"]


@pytest.fixture
def pictures(tmp_path):
    root = draw_photographs(tmp_path / "pictures", {"train": 60, "val": 20}, (20, 60))
    return ["dataset=folder", f"dataset.root={root}", *SMALL]


def preempt(lab):
    lab.cluster.ask("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")


def test_a_job_of_three_cells_one_fails_and_the_others_go_on_after_two_limits_and_a_preemption(lab, pictures):
    """The job saves and is begun again with what is left, until all is done; the figures are those of cells alone."""
    cells = ["augment=none", "augment=erase", "augment=none recipe.lr=1e38"]
    words = ["recipe.epochs=300", *pictures]
    one_job = ["hydra.launcher.cells_per_job=3", "hydra.launcher.cpus_per_task=2"]
    process = lab.start(f"study.cells={json.dumps(cells)}", *words, *one_job)
    lab.until(lambda: len([c for c in lab.cells() if len(rows(c)) >= 2]) == 2)
    (job,) = set(lab.jobs().values())
    lab.until(lambda: [m for m in loaders_of(lab.runs, job).values() if m != "own"][:2] == ["a", "a"], 60)
    for disturb in (lambda: lab.cluster.ask("scancel", "--signal=USR2", job),) * 2 + (lambda: preempt(lab),):
        begun = {cell: len(rows(cell)) for cell in lab.cells() if rows(cell)}
        disturb()
        lab.until(lambda begun=begun: all(len(rows(c)) > n + 1 for c, n in begun.items()), 240)
    code, output = lab.end(process)
    assert code == 1 and "Slurm has 3 cells in 1 array of 1 jobs" in output, output
    assert "the loss is not finite" in output and "1 of 3 cells did not finish" in output, output
    assert not any((lab.runs / "slurm" / "loaders").iterdir())
    done = [cell for cell in lab.cells() if (cell / "result.json").exists()]
    assert len(done) == 2 and lab.sacct(job) == "FAILED|1:0"
    for cell in done:
        assert [row["epoch"] for row in rows(cell)] == list(range(1, 301))
        assert origin(cell)["slurm"]["restarts"] == 3 and origin(cell)["slurm"]["job"] == job
    (failed,) = [cell for cell in lab.cells() if cell not in done]
    assert (failed / "failure.json").exists() and origin(failed)["slurm"]["restarts"] == 0, "not tried again"
    (log,) = lab.runs.glob("slurm/*/job-0/log.txt")
    assert log.read_text(encoding="utf-8").count("one loader, a window of") > 1, "in further allocations, too"
    for augment in ("none", "erase"):
        (cell,) = [c for c in done if f"augment: {augment}" in (c / "config.yaml").read_text(encoding="utf-8")]
        assert lab.undisturbed(f"augment={augment}", *words) == rows(cell)


def test_a_limit_shorter_than_the_cells_of_a_job_takes_several_allocations(lab):
    words = ["augment=none,erase", "recipe.epochs=2000", "dataset.train_per_class=128"]
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=35"]
    process = lab.start(*words, *limit, "hydra.launcher.cells_per_job=2", "hydra.launcher.cpus_per_task=2")
    lab.until(lambda: len([cell for cell in lab.cells() if rows(cell)]) == 2)
    lab.until(lambda: all(origin(c).get("slurm", {}).get("restarts", 0) >= 2 for c in lab.cells()), 300)
    for cell in lab.cells():
        count = [row["epoch"] for row in rows(cell)]
        assert len(count) > 1 and count == list(range(1, len(count) + 1))
    lab.cluster.ask("scancel", lab.jobs()[lab.cells()[0].name])
    code, output = lab.end(process)
    assert code == 130 and "To continue: " in output, output


def test_a_preempted_job_of_several_cells_goes_on(lab):
    words = ["augment=none,erase", "seed=0,1", "recipe.epochs=16", "hydra.launcher.cells_per_job=2"]
    process = lab.start(*words, "hydra.launcher.cpus_per_task=4")
    lab.until(lambda: any(len(rows(c)) >= 3 for c in lab.cells()))
    preempt(lab)
    code, output = lab.end(process)
    assert code == 0 and "Slurm has 4 cells in 1 array of 2 jobs" in output, output
    assert len(lab.cells()) == 4 and all([r["epoch"] for r in rows(c)] == list(range(1, 17)) for c in lab.cells())
    assert max(origin(c)["slurm"]["restarts"] for c in lab.cells()) >= 1


def test_auto_measures_on_the_node_and_the_next_command_knows(lab, pictures):
    auto = ["hydra.launcher.cells_per_job=auto", "hydra.launcher.cpus_per_task=3", "recipe.epochs=2", *pictures]
    code, output = lab.run("augment=none,erase,jitter", *auto)
    assert code == 0, output
    first = "hydra.launcher.cells_per_job=auto: at most 3 cells of vit_micro(image_size=32) in a job"
    assert f"{first} (hydra.launcher.cpus_per_task=3, threads=1); on the node, a trial says how many at" in output
    assert "Slurm has 3 cells in 1 array of 1 jobs" in output and len(lab.cells()) == 3, output
    (log,) = lab.runs.glob("slurm/*/job-0/log.txt")
    said = log.read_text(encoding="utf-8")
    (line,) = [line for line in said.splitlines() if "cells_per_job=auto: " in line]
    assert " of 3 cells at once (one cell trains " in line and " ms of a core; " in line
    assert len(list(lab.runs.glob("slurm/trials/*.json"))) == 1
    code, output = lab.run("augment=none,erase,jitter", "seed=1", *auto)
    assert code == 0 and " in a job, by a trial on such a node (" in output, output
    assert len([cell for cell in lab.cells() if (cell / "result.json").exists()]) == 6


def test_what_cannot_share_a_device_is_refused(lab):
    code, output = lab.run("recipe.epochs=1", "hydra.launcher.cells_per_job=2", "hydra.launcher.gpus_per_node=2")
    said = "hydra.launcher.cells_per_job: 2 cells share one device, and each job has 2 processes"
    assert code != 0 and said in output, output
    code, output = lab.run("recipe.epochs=1", "study.cells_per_device=auto")
    assert code != 0 and "give hydra.launcher.cells_per_job=auto" in output and lab.jobs() == {}, output
