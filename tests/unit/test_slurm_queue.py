"""Limits of a cluster: what Slurm says of them, and that no submission exceeds them. Real daemons: tests/slurm."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest

from vitlab.config import ConfigError
from vitlab.core.integrity import sealed
from vitlab.study import launch_slurm, slurm_queue
from vitlab.study.identity import Request
from vitlab.study.launch_slurm import TooManyError, run_on_slurm
from vitlab.study.plan import build_plan
from vitlab.study.slurm_options import SlurmOptions
from vitlab.study.slurm_queue import Limits, Queued, ask_limits, loaders_file, loaders_of, watch_jobs

CONFIG = "MaxArraySize            = 11\nMaxJobCount             = 10000\n"
ASSOCIATIONS = "lab||40||normal\nlab|gpu|15|30|normal\nother||2||\n"
QUALITIES = "normal|20||\nlong|3||\n"


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 15),
        ({"partition": "cpu"}, 20),
        ({"account": "other"}, 2),
        ({"qos": "long"}, 3),
        ({"account": "none"}, None),
    ],
)
def test_limits_are_those_of_the_account_the_partition_and_the_quality_of_service(options, most, monkeypatch):
    def answer(*words):
        kind = words[4] if words[0] == "sacctmgr" else "config"
        return {"config": CONFIG, "user": "lab\n", "assoc": ASSOCIATIONS, "qos": QUALITIES}[kind]

    monkeypatch.setattr(slurm_queue, "answer_of", answer)
    assert ask_limits(SlurmOptions(**options)) == Limits(11, most)


def test_a_cluster_that_does_not_answer_has_the_default_limits(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert ask_limits(SlurmOptions()) == Limits(1001, None)
    assert [Limits(1001).array_of(n) for n in (1, 1001, 1002, 5000)] == [1, 1001, 501, 1000]


class Cluster:
    """Takes jobs as sbatch does, or refuses them, and finishes some of them whenever it is asked for its queue."""

    def __init__(self, monkeypatch, most, array, known=True):
        self.most, self.array, self.numbers = most, array, itertools.count(1)
        self.waiting: dict[str, list] = {}
        self.arrays: list[int] = []
        self.trained: list[str] = []
        self.per_poll = 7
        monkeypatch.setattr("submitit.SlurmExecutor.affinity", lambda: 1)
        monkeypatch.setattr(launch_slurm, "_submit_array", self.submit)
        monkeypatch.setattr(launch_slurm, "queue", self.queue)
        monkeypatch.setattr(slurm_queue, "queue", self.queue)
        monkeypatch.setattr(launch_slurm, "submitted_jobs", lambda folder: self.known)
        monkeypatch.setattr(launch_slurm, "ask_limits", lambda o: Limits(array, most) if known else Limits())
        monkeypatch.setattr(slurm_queue, "sync_unasked", lambda *words: [])
        self.known: dict[str, str] = {}

    def submit(self, groups, before, plan, options):
        if len(groups) > self.array:
            raise TooManyError("Batch job submission failed: Invalid job array specification")
        if len(self.waiting) + len(groups) > self.most:
            raise TooManyError("AssocMaxSubmitJobLimit")
        assert not before or before in self.waiting or before in self.ended
        number = next(self.numbers)
        jobs = {}
        for task, cells in enumerate(groups):
            self.waiting[f"{number}_{task}"] = [(plan.record(cell), before) for cell in cells]
            jobs |= {cell.id: f"{number}_{task}" for cell in cells}
        self.arrays.append(len(groups))
        self.known |= jobs
        return jobs

    ended: tuple[str, ...] = ()

    def queue(self):
        ready = [job for job, cells in self.waiting.items() if cells[0][1] not in self.waiting][: self.per_poll]
        for job in ready:
            for record, _ in self.waiting.pop(job):
                record.folder.mkdir(parents=True)  # a second training would fail here
                (record.folder / "result.json").touch()
                self.trained.append(record.id)
            self.ended += (job,)
        return {job: Queued("PENDING", "") for job in self.waiting}


class _Screen:
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def status(self, identity, status, note=""):
        pass

    def refresh(self):
        pass


Screen: Any = _Screen  # in place of a View


def plan_of(config, folder, count):
    config = dataclasses.replace(config, output_dir=str(folder))
    cells = [dataclasses.replace(config.cell, seed=seed) for seed in range(count)]
    requests = [Request((f"seed={c.seed}",), dataclasses.replace(config, cell=c)) for c in cells]
    return build_plan(requests, "large", trains_here=False)


OPTIONS = SlurmOptions(poll_seconds=1e-6)


def test_2000_cells_under_a_limit_of_100_are_each_trained_once(compose_config, tmp_path, monkeypatch):
    plan, cluster, screen = plan_of(compose_config(), tmp_path, 2000), Cluster(monkeypatch, 100, 31), Screen()
    cluster.per_poll = 40
    outcomes = run_on_slurm(plan, screen, OPTIONS)
    assert sorted(cluster.trained) == sorted(cell.id for cell in plan.cells)
    assert set(outcomes.values()) == {"finished"} and len(outcomes) == 2000
    assert cluster.arrays[:4] == [25, 25, 25, 25] and max(cluster.arrays) <= 31
    assert len(cluster.arrays) < 250  # not one array for each place that becomes free
    assert screen.lines == [
        "Slurm has 100 cells in 4 arrays: 1 2 3 4",
        "1900 cells more than Slurm takes from you now (100 jobs at once, MaxSubmitJobs); they are submitted as places "
        "become free",
    ]


def test_limits_that_slurm_does_not_tell_are_found_by_its_refusals(compose_config, tmp_path, monkeypatch):
    plan, cluster = plan_of(compose_config(), tmp_path, 60), Cluster(monkeypatch, 15, 11, known=False)
    cluster.per_poll = 3
    run_on_slurm(plan, Screen(), OPTIONS)
    assert sorted(cluster.trained) == sorted(cell.id for cell in plan.cells)
    assert max(cluster.arrays) <= 11


def test_where_not_one_job_is_taken_that_is_an_error(compose_config, tmp_path, monkeypatch):
    Cluster(monkeypatch, 0, 11, known=False)
    with pytest.raises(ConfigError, match="AssocMaxSubmitJobLimit"):
        run_on_slurm(plan_of(compose_config(), tmp_path, 3), Screen(), OPTIONS)


def test_a_detached_study_is_submitted_by_typing_it_again(compose_config, tmp_path, monkeypatch):
    cluster, config = Cluster(monkeypatch, 15, 11), compose_config("study.detach=true")
    for _ in range(9):
        screen = Screen()
        outcomes = run_on_slurm(plan_of(config, tmp_path, 40), screen, OPTIONS)
        cluster.queue()
    assert sorted(cluster.trained) == sorted(cell.id for cell in plan_of(config, tmp_path, 40).cells)
    assert outcomes == {} and screen.lines == []


def test_cells_wait_for_a_pretraining_that_waits_for_a_place(compose_config, tmp_path, monkeypatch):
    config = dataclasses.replace(
        compose_config("pretrain=fractaldb_small", "pretrain.seed=paired"), output_dir=str(tmp_path)
    )
    requests = []
    for seed in range(9):
        start = dataclasses.replace(config.cell.pretrain, seed=seed)
        cell = dataclasses.replace(config.cell, seed=seed, pretrain=start)
        requests.append(Request((f"seed={seed}",), dataclasses.replace(config, cell=cell)))
    plan, cluster = build_plan(requests, "large", trains_here=False), Cluster(monkeypatch, 4, 3)
    cluster.per_poll = 2
    outcomes = run_on_slurm(plan, Screen(), OPTIONS)
    order = {identity: place for place, identity in enumerate(cluster.trained)}
    assert len(order) == 18 and set(outcomes.values()) == {"finished"}
    assert all(order[cell.needs] < order[cell.id] for cell in plan.cells if cell.needs)


def test_the_attached_view_shows_which_cells_of_a_job_share_a_loader(compose_config, tmp_path, monkeypatch):
    """Each job begins its letters at a; the view has one letter for each loader of the study."""
    plan = plan_of(compose_config(), tmp_path, 5)
    ids = [cell.id for cell in plan.cells]
    jobs = dict(zip(ids, ["7_0", "7_0", "7_1", "7_1", "7_2"], strict=True))
    for job, marks in {"7_0": ["a", "a"], "7_1": ["own", "a"]}.items():
        file = loaders_file(tmp_path, job)
        file.parent.mkdir(parents=True, exist_ok=True)
        found = dict(zip([key for key in ids if jobs[key] == job], marks, strict=True))
        file.write_text(json.dumps(sealed(found | {"of another command": "a"})), encoding="utf-8")
    shown = {}

    class Shows(_Screen):
        cells = dict.fromkeys(ids)

        def loader(self, identity, mark):
            shown[identity] = mark

        def refresh(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(slurm_queue, "queue", lambda: {job: Queued("RUNNING", "") for job in set(jobs.values())})
    queueing: Any = SimpleNamespace(jobs=jobs, outcomes={}, cells=plan.cells, submit=lambda: None)
    view: Any = Shows()
    with pytest.raises(KeyboardInterrupt):
        watch_jobs(queueing, plan, view, 1e-6)
    assert [shown.get(key) for key in ids] == ["a", "a", "own", "b", None]
    loaders_file(tmp_path, "7_1").write_text("{", encoding="utf-8")
    assert loaders_of(tmp_path, "7_1") == loaders_of(tmp_path, "7_9") == {}
