"""Options of hydra/launcher=slurm, exit codes and what Slurm's words mean; the daemons themselves: tests/slurm."""

from __future__ import annotations

import dataclasses
import signal

import pytest

from vitlab.config import ConfigError
from vitlab.study.launch_slurm import run_on_slurm
from vitlab.study.slurm_job import ELSEWHERE, SAVED, SAVED_AND_CONTINUE, exit_code
from vitlab.study.slurm_options import _SET_HERE, SlurmOptions
from vitlab.study.slurm_queue import explained, was_ended


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nice": 100}, "hydra.launcher.nice: no such option; allowed: partition, account,"),
        ({"nodes": 0}, "hydra.launcher.nodes: got 0, expected an integer of at least 1"),
        ({"timeout_min": "1h"}, "hydra.launcher.timeout_min: got '1h'"),
        ({"gpus_per_node": 8, "tasks_per_node": 1}, "1 processes cannot use gpus_per_node=8"),
        ({"gpus_per_node": "a100"}, "hydra.launcher.gpus_per_node: got 'a100'; allowed: 8, or a100:8"),
        ({"timeout_min": 1, "signal_delay_s": 60}, "60 s before a limit of 1 min leaves no time to train"),
        ({"additional_parameters": {"cpus_per_task": 4}}, "use hydra.launcher.cpus_per_task"),
        ({"additional_parameters": {"array": "0-3"}}, "vitlab sets it itself"),
        ({"additional_parameters": {"gres": "gpu:2"}}, "use hydra.launcher.gres"),
        ({"gpus_per_task": 2}, "hydra.launcher.gpus_per_task: got 2; every process of a cell trains on one GPU"),
        ({"gres": "gpu:2", "gpus_per_node": 2}, "the GPUs of a node are given once"),
        ({"gres": "gpu:a100:4", "tasks_per_node": 2}, "2 processes cannot use gres=gpu:a100:4, one each"),
        ({"gres": "gpu:a100:x"}, "hydra.launcher.gpus_per_node: got 'a100:x'; allowed: 8, or a100:8"),
        ({"max_num_timeout": 3}, "hydra.launcher.max_num_timeout: got 3, and vitlab sets it: a cell goes on"),
    ],
)
def test_options_that_cannot_be_are_named(options, said):
    with pytest.raises(ConfigError) as error:
        _ = SlurmOptions.of(options).tasks
    assert said in str(error.value)


def test_processes_follow_the_gpus():
    assert [SlurmOptions(gpus_per_node=g).tasks for g in (None, 8, "a100:4")] == [1, 8, 4]
    assert SlurmOptions(tasks_per_node=3).tasks == 3


@pytest.mark.parametrize(
    ("options", "gpus", "tasks"),
    [
        ({"gres": "gpu:2"}, "2", 2),
        ({"gres": "gpu:a100:4"}, "a100:4", 4),
        ({"gres": "gpu"}, "1", 1),
        ({"gpus_per_task": 1, "tasks_per_node": 3}, 3, 3),
        ({"gpus_per_task": 1}, 1, 1),
    ],
)
def test_gpus_are_given_in_submitits_ways(options, gpus, tasks):
    told = SlurmOptions.of(options | {"name": None, "submitit_folder": None}).parameters()
    assert (told["gpus_per_node"], told["ntasks_per_node"]) == (gpus, tasks)
    assert "gres" not in told["additional_parameters"]


def test_flags_of_sbatch_have_submitits_names():
    given = {"comment": "mine", "exclude": "n[1-2]", "mem_per_gpu": "8G", "cpus_per_gpu": 4, "gres": "nvme:1"}
    told = SlurmOptions.of(given).parameters()
    assert "gpus_per_node" not in told and told["additional_parameters"] == {
        "comment": "mine", "exclude": "n[1-2]", "mem-per-gpu": "8G", "cpus-per-gpu": 4, "gres": "nvme:1",
        "requeue": True, "kill-on-invalid-dep": "yes",
    }  # fmt: skip


def test_submitit_slurm_is_the_same_launcher():
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Stock

    from hydra_plugins.vitlab_slurm_launcher import SlurmLauncher

    defaults = {f.name: f.default for f in dataclasses.fields(SlurmQueueConf) if not f.name.startswith("_")}
    defaults |= {"additional_parameters": {}}

    def options(*typed, **given):
        stock = Stock(**defaults | {"submitit_folder": "x/.submitit", "name": "run"} | given)
        return SlurmOptions.of(SlurmLauncher.in_place_of(stock, typed).params)

    assert options() == SlurmOptions(), "the stock defaults are not the user's"
    assert options(gpus_per_node=8, partition="gpu") == SlurmOptions(gpus_per_node=8, partition="gpu")
    assert options("hydra.launcher.timeout_min=60").timeout_min == 60, "typed, though it is the stock default"
    assert options("hydra/launcher=submitit_slurm").timeout_min == SlurmOptions().timeout_min
    ours = {f.name for f in dataclasses.fields(SlurmOptions)} | set(_SET_HERE)
    assert set(defaults) <= ours, "an option of Hydra's documentation that is not known here"
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.name: got 'run', and vitlab sets it"):
        options("hydra.launcher.name=run")


def test_what_submitit_is_told():
    told = SlurmOptions(partition="gpu", mem_gb=1.5, additional_parameters={"nice": 100, "hold": False}).parameters()
    assert told == {
        "partition": "gpu", "nodes": 1, "ntasks_per_node": 1, "mem": "1536M", "time": 1440, "signal_delay_s": 120,
        "additional_parameters": {"nice": 100, "requeue": True, "kill-on-invalid-dep": "yes"},
    }  # fmt: skip


def test_a_machine_without_slurm_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="Slurm's srun is not on this machine"):
        run_on_slurm(None, None, SlurmOptions())


@pytest.mark.parametrize(
    ("outcome", "signals", "code"),
    [
        ("finished", set(), 0),
        ("finished", {signal.SIGUSR2}, 0),
        ("interrupted", {signal.SIGUSR2}, SAVED_AND_CONTINUE),
        ("interrupted", {signal.SIGTERM}, SAVED),
        ("interrupted", {signal.SIGTERM, signal.SIGUSR2}, SAVED),
        ("running elsewhere", set(), ELSEWHERE),
    ],
)
def test_exit_codes(outcome, signals, code):
    assert exit_code(outcome, signals) == code


@pytest.mark.parametrize(
    ("said", "ended", "shown"),
    [
        ("CANCELLED by 0 0:0", True, "CANCELLED by 0 0:0"),
        ("TIMEOUT 0:0", True, "TIMEOUT 0:0"),
        (f"FAILED {SAVED}:0", True, f"FAILED {SAVED}:0"),
        ("FAILED 1:0", False, "FAILED 1:0"),
        ("FAILED 137:0", False, "FAILED 137:0 (SIGKILL, out of memory?)"),
        ("FAILED 9:0", False, "FAILED 9:0 (SIGKILL, out of memory?)"),
        ("FAILED 0:11", False, "FAILED 0:11 (SIGSEGV)"),
        ("OUT_OF_MEMORY 0:9", False, "OUT_OF_MEMORY 0:9 (SIGKILL, out of memory?)"),
        ("", False, ""),
    ],
)
def test_what_slurm_says_of_a_job(said, ended, shown):
    assert (was_ended(said), explained(said)) == (ended, shown)


def test_cells_of_a_job_share_one_device():
    assert SlurmOptions(cells_per_job=4, gpus_per_node=1).tasks == 1
    for wrong in ({"gpus_per_node": 2}, {"nodes": 2}, {"tasks_per_node": 3}):
        with pytest.raises(ConfigError, match=r"cells_per_job: 4 cells share one device, and each job has [23] proc"):
            SlurmOptions(cells_per_job=4, **wrong)
    with pytest.raises(ConfigError, match=r"cells_per_job: got 0"):
        SlurmOptions(cells_per_job=0)
