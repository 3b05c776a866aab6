"""Jobs of several cells: which cells a job holds, and how many of them the node trains at once."""

import dataclasses
import json
import signal

import pytest

from vitlab.config import ConfigError
from vitlab.study import slurm_group
from vitlab.study.launch_slurm import _job_of, _line_of, plan_on_slurm
from vitlab.study.plan import build_plan
from vitlab.study.slurm_group import GroupJob, evenly, group_lines, in_jobs, kinds_of, suited, trial_file
from vitlab.study.slurm_job import SAVED, SAVED_AND_CONTINUE, CellJob
from vitlab.study.slurm_options import SlurmOptions
from vitlab.study.trial import Trial, keep_trial, kept_trial

AUTO = SlurmOptions(cells_per_job="auto")
GPU = Trial(True, 0.0, 1 / 17_000, 1024, 1 / 260, 9 * 10**9, 80 * 10**9, 16, 1, 16, 5.0, 3 * 10**9, 100 * 10**9)
"""Four cells that share a loader suit it, and one that does not."""
SIX = [[f"augment={a}", f"seed={s}"] for s in (0, 1) for a in ("none", "mixup", "erase")]


@pytest.fixture
def planned(requests_for, tmp_path):
    shared = (
        "dataset=folder", "dataset.name=pets", "dataset.num_classes=2", "dataset.num_train=640", "dataset.num_eval=40",
        "recipe.batch_size=32", "device=cpu", "model.image_size=32", f"output_dir={tmp_path}",
    )  # fmt: skip
    return lambda *cells: build_plan(requests_for(*cells, shared=shared), "s")


def names(jobs):
    return [[cell.name for cell in cells] for cells in jobs]


def test_jobs_of_several_cells_hold_those_that_see_the_same_crops(planned):
    plan = planned(*SIX)
    assert names(in_jobs(list(plan.todo), 2)) == [
        ["none/s0", "mixup/s0"],
        ["erase/s0", "none/s1"],
        ["mixup/s1", "erase/s1"],
    ]
    assert [len(cells) for cells in in_jobs(list(plan.todo), 1)] == [1] * 6
    options = SlurmOptions(cells_per_job=3)
    job = _job_of(list(plan.todo[:3]), plan, "code", options)
    assert isinstance(job, GroupJob) and isinstance(_job_of([plan.todo[0]], plan, "code", options), CellJob)
    assert job.trial is None and all(c.selected for c in job.cells)
    assert {c.config.study.cells_per_device for c in job.cells} == {3}
    assert [c.config.cell for c in job.cells] == [c.config.cell for c in plan.todo[:3]]
    line = _line_of(list(plan.todo[:3]), plan.output_dir / "slurm" / "s-1", 7, plan)
    assert line == "slurm/s-1/job-7 s/none/s0+2\n"


def test_a_job_of_auto_holds_cells_of_one_kind(planned):
    plan = planned(*SIX, ["seed=5", "model.depth=1"], ["seed=6", "model.depth=1"])
    assert kinds_of(plan.todo) == [list(plan.todo[at:end]) for at, end in ((0, 3), (3, 6), (6, 8))]
    assert [len(job) for job in evenly(plan.todo[:7], 4)] == [3, 4]
    assert [len(job) for job in evenly(plan.todo[:6], 5)] == [3, 3]
    assert evenly(plan.todo, 1) == [[cell] for cell in plan.todo]


def test_before_a_trial_a_job_holds_few_cells_and_says_why(planned):
    cells = planned(*SIX).todo
    assert suited(cells, AUTO, planned(*SIX).output_dir) == (
        4,
        "hydra.launcher.cells_per_job=auto: at most 4 cells of vit_micro(image_size=32) in a job (before a trial on "
        "such a node); on the node, a trial says how many at once",
    )
    number, why = suited(cells, dataclasses.replace(AUTO, cpus_per_task=2), planned(*SIX).output_dir)
    assert number == 2 and "(hydra.launcher.cpus_per_task=2, threads=1)" in why


def test_after_a_trial_a_job_holds_what_it_found(planned):
    plan = planned(*SIX)
    group, file = kinds_of(plan.todo)[0], trial_file(plan.todo[0], AUTO, plan.output_dir)
    keep_trial(file, GPU, "NVIDIA H100")
    number, why = suited(group, AUTO, plan.output_dir)
    assert number == GPU.best(3, 3) == 3
    assert "3 cells of vit_micro(image_size=32) in a job, by a trial on such a node (NVIDIA H100, 20" in why
    assert GPU.why(3, 3) in why
    for other in ({"partition": "a100"}, {"cpus_per_task": 16}, {"mem_gb": 8}, {"gpus_per_node": "a100:1"}):
        assert suited(group, dataclasses.replace(AUTO, **other), plan.output_dir)[0] == 4, other
    assert trial_file(plan.todo[1], AUTO, plan.output_dir) == file, "of another augmentation"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(content | {"trial": content["trial"] | {"cores": 99}}), encoding="utf-8")
    assert kept_trial(file) is None and suited(group, AUTO, plan.output_dir)[0] == 4, "damaged: measured again"


def test_the_node_says_how_many_cells_train_at_once(planned, monkeypatch, capsys):
    plan = planned(*SIX)
    (job,) = [_job_of(list(plan.todo[:3]), plan, "code", AUTO)]
    assert isinstance(job, GroupJob) and job.trial == trial_file(plan.todo[0], AUTO, plan.output_dir)
    monkeypatch.setattr("vitlab.study.trial.run_trial", lambda config: GPU)
    here = dataclasses.replace(plan, cells=job.cells)
    assert slurm_group._number_here(here, job.trial) == 3
    said = capsys.readouterr().out
    assert said == f"hydra.launcher.cells_per_job=auto: 3 of 3 cells at once ({GPU.why(3, 3)})\n"
    assert kept_trial(job.trial) is not None
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "7000")  # 7.3 GB for processes of 3
    assert slurm_group._number_here(dataclasses.replace(here), job.trial) == 2

    def fails(config):
        raise ConfigError("dataset.root", "there is no such folder")

    monkeypatch.setattr("vitlab.study.trial.run_trial", fails)
    assert slurm_group._number_here(dataclasses.replace(here), job.trial) == 1
    assert "one cell at a time, since the trial of hydra.launcher.cells_per_job=auto failed: data" in (
        capsys.readouterr().out
    )


def test_a_job_has_no_more_than_slurm_gives_it():
    cpu = Trial(False, 0.0, 0.003, 16, 0.0015, 10**9, 20 * 10**9, 8, 1, 1, 5.0, 10**9, 20 * 10**9)
    less = cpu.within(2, 3 * 10**9)
    assert (less.cores, less.free_bytes, less.host_bytes) == (2, 3 * 10**9, 3 * 10**9) and less.fitting == 2
    assert cpu.within(None, None) == cpu and cpu.within(99, 10**12) == cpu
    assert GPU.within(4, 8 * 10**9).free_bytes == GPU.free_bytes and GPU.within(4, 8 * 10**9).fitting == 2


def test_the_plan_prices_jobs_of_several_cells(planned):
    """11,520 images (6 cells, 3 epochs of 640), alone at 4,160 images/s; three that share a loader at 12,480."""
    plan = planned(*([*cell, "recipe.epochs=3", "recipe.warmup_epochs=0"] for cell in SIX))
    assert group_lines(plan, SlurmOptions()) == []
    three = SlurmOptions(cells_per_job=3)
    jobs, price = group_lines(plan, three)
    assert jobs == (
        "Slurm: 6 cells in 2 jobs (hydra.launcher.cells_per_job=3); one loader for none/s0, mixup/s0, erase/s0; "
        "none/s1, mixup/s1, erase/s1"
    )
    assert price.startswith("what sharing a device saves is not known: no trial of vit_micro(image_size=32) has been")
    keep_trial(trial_file(plan.todo[0], three, plan.output_dir), GPU, "H100")
    price = group_lines(plan, three)[-1]
    alone, shared = 11_520 / 4160 / 3600, 11_520 / 12_480 / 3600
    assert price.startswith(
        f"training alone: about {alone:.3g} GPU-hours, one cell at a time; shared: about {shared:.3g}, 3 at once in a "
        f"job ({GPU.why(3, 3)}; measured on H100, "
    )
    why, jobs, price = group_lines(plan, AUTO)
    assert why.startswith("hydra.launcher.cells_per_job=auto: 3 cells of vit_micro(image_size=32) in a job, by a trial")
    assert jobs.startswith("Slurm: 6 cells in 2 jobs (hydra.launcher.cells_per_job=auto); one loader for none/s0, ")
    assert f"shared: about {shared:.3g}" in price
    assert "in 3 jobs" in group_lines(plan, SlurmOptions(cells_per_job=2))[0]


def test_a_plan_of_slurm_refuses_what_its_jobs_cannot_have(requests_for):
    plan = build_plan(requests_for(["seed=0"], shared=("study.cells_per_device=2",)), "s")
    with pytest.raises(ConfigError, match=r"study.cells_per_device: got 2, .* hydra.launcher.cells_per_job=2"):
        plan_on_slurm(plan, SlurmOptions())
    plan = build_plan(requests_for(["seed=0"], shared=("devices=2",)), "s")
    with pytest.raises(ConfigError, match=r"devices: 2, but the launcher starts"):
        plan_on_slurm(plan, SlurmOptions())


@pytest.mark.parametrize(
    ("came", "code", "again"), [(signal.SIGUSR2, SAVED_AND_CONTINUE, 1), (signal.SIGTERM, SAVED, 0)]
)
def test_a_job_that_is_asked_to_end_during_its_trial_trains_nothing(planned, monkeypatch, came, code, again):
    """Before its limit it is begun again; nothing is noted of the cells, which have not begun."""
    plan, asked, requeued = planned(*SIX[:2]), set(), []
    job = _job_of(list(plan.todo), plan, "code", AUTO)

    def trial(config):
        asked.add(came)
        return GPU

    monkeypatch.setattr(slurm_group, "note_signals", lambda: lambda: asked)
    monkeypatch.setattr(slurm_group, "requeue", lambda: requeued.append(1))
    monkeypatch.setattr("vitlab.study.trial.run_trial", trial)
    monkeypatch.setattr("vitlab.study.launch_local.run_locally", lambda plan, view: pytest.fail("it trains"))
    monkeypatch.setattr("vitlab.core.terminal.prepare_output", lambda: None)
    monkeypatch.setattr(slurm_group, "this_job", lambda: "7_0")
    with pytest.raises(SystemExit) as ended:
        job()
    assert (ended.value.code, len(requeued)) == (code, again)
    assert all(plan.record(cell).state() == "missing" for cell in plan.todo)
