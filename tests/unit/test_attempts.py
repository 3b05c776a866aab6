"""Attempts at a cell: which count, when a cell is given up, and what is said of them."""

import contextlib
import json
import os
import signal
import time

import pytest
import torch

from vitlab.core.errors import UserError
from vitlab.study import attempts, cell, launch_local
from vitlab.study.attempts import Journal, NoProgressError
from vitlab.study.plan import build_plan
from vitlab.study.record import Record
from vitlab.train.events import EpochEnded, Interrupted, Progressed, Started


@pytest.fixture
def record(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_MEM_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    return Record(tmp_path / "c1")


def attempt(record, *events, error=None, most=3):
    """One attempt, which reports these events and ends so; None: killed."""
    journal = Journal(record)
    journal.begin(most)
    with contextlib.suppress(type(error) if error else KeyError), journal.running():
        for event in events:
            journal.note(event)
        if error:
            raise error


def ended(epoch):
    return EpochEnded({"epoch": epoch, "step": 10 * epoch})


def test_three_deaths_in_a_row_are_enough(record):
    attempt(record)
    attempt(record, Started(0, 0, 100), Progressed(4, 1.0))
    attempt(record, Started(0, 0, 100), ended(1))
    assert len(attempts.without_progress(record)) == 3, "an epoch counts when it is known to be saved"
    attempts.note_end(record, "SIGKILL, out of memory?")
    with pytest.raises(NoProgressError) as caught:
        attempt(record)
    first, *lines, last = str(caught.value).splitlines()
    assert first == "3 attempts in a row ended without progress:" and len(lines) == 3
    assert "ended without a word (killed) before training began" in lines[0]
    assert "SIGKILL, out of memory? before an epoch ended, peak memory " in lines[2]
    assert last.startswith("    out of memory? lower workers, study.cells_at_once or device_batch, or free")


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([Started(0, 0, 100), ended(1), Progressed(11, 1.0)], None),
        ([Started(0, 0, 100), ended(1), ended(2)], None),
        ([Started(0, 0, 100), Progressed(4, 1.0)], Interrupted("")),
    ],
)
def test_an_attempt_that_advanced_does_not_count(record, events, error):
    for _ in range(5):
        attempt(record, *events, error=error)
        attempt(record)
        attempt(record)
    assert len(attempts.without_progress(record)) == 2


def test_ctrl_c_does_not_count_and_requeues_without_a_step_do(record, monkeypatch):
    for _ in range(4):
        attempt(record, Started(0, 7, 100), error=Interrupted(""))
    assert not attempts.without_progress(record)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    for count in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
        attempt(record, Started(0, 7, 100), Progressed(7, 1.0), error=Interrupted(""))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    attempts.note_end(record, "exit code 137")
    with pytest.raises(NoProgressError) as caught:
        attempt(record)
    assert ", Slurm job 12: interrupted before an epoch ended" in str(caught.value)
    assert str(caught.value).endswith("the job may use 2.0 GB; raise hydra.launcher.mem_gb, or lower workers")


def test_what_the_user_asks_for_begins_to_count_again(record, monkeypatch):
    for _ in range(3):
        attempt(record)
    record.fail("Killed", "no luck")
    attempt(record)
    assert len(attempts.without_progress(record)) == 1
    record.remove("failure.json")
    monkeypatch.setenv("SLURM_JOB_ID", "13")  # submitted again, not requeued
    attempt(record)
    assert len(attempts.without_progress(record)) == 1


def test_what_dying_processes_left_is_no_obstacle(record):
    attempt(record)
    with (record.folder / attempts.FILE).open("a", encoding="utf-8") as file:
        file.write('{"begun": 1\n[]\n"x"\n{"epoch": null}\n{"st')
    assert len(attempts.without_progress(record)) == 1


def dies(config, study, name, log, pipe, *_):
    """In place of a cell's process: the first seed is killed each time, the second one once."""
    record = Record(log.parent)
    Journal(record).begin(9)
    marks = log.parent / "marks"
    marks.write_text((marks.read_text(encoding="utf-8") if marks.exists() else "") + "x", encoding="utf-8")
    if name == "none/s0" or marks.read_text(encoding="utf-8") == "x":
        os.kill(os.getpid(), signal.SIGKILL)
    pipe.send("finished")


class Said:
    def __init__(self):
        self.lines, self.cells = [], {}

    def status(self, *words):
        self.lines.append(words)

    def __getattr__(self, name):
        return lambda *_: None


def test_a_cell_that_keeps_dying_stops_and_the_study_goes_on(requests_for, tmp_path, monkeypatch):
    import multiprocessing

    monkeypatch.setattr(launch_local, "fork_server", lambda config: multiprocessing.get_context("fork"))
    monkeypatch.setattr(launch_local, "_cell_process", dies)
    plan = build_plan(requests_for(["seed=0"], ["seed=1"], shared=("study.cells_at_once=1",)), "s")
    view = Said()
    outcomes = launch_local.run_locally(plan, view)  # pyright: ignore[reportArgumentType]
    first, second = plan.cells
    assert outcomes == {first.id: "killed", second.id: "finished"}
    marks = {c.id: (tmp_path / c.id / "marks").read_text(encoding="utf-8") for c in plan.cells}
    assert marks == {first.id: "xxx", second.id: "xx"}
    failure = plan.record(first).read("failure.json")
    assert failure is not None and failure["message"].startswith("3 attempts in a row ended without progress:\n")
    assert failure["message"].count("SIGKILL, out of memory? before training began") == 3
    assert (second.id, "waiting", "SIGKILL, out of memory?: attempt 2 of 3 follows") in view.lines


def test_a_device_out_of_memory_gets_half_the_micro_batch(compose_config, tmp_path, monkeypatch):
    """No GPU here: `fit` raises torch's error in place of CUDA until the micro-batch is small enough."""
    used, config = [], compose_config("recipe.batch_size=96", f"output_dir={tmp_path}", "device_batch=96")

    def fit(config, cell, folder, *, start, stop):
        size = config.device_batch
        used.append(size)
        yield Started(len(used), 0, 10, derived={"device_batch": size})
        if size > 24:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return {"done": True}

    monkeypatch.setattr("vitlab.train.loop.fit", fit)
    record = Record(tmp_path / "c1")
    record.folder.mkdir()

    def run(alone=True):
        events = cell._fit(config, config.cell, record, start=None, stop=lambda: False, alone=alone)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    assert run() == {"done": True} and used == [96, 48, 24]
    assert record.log_tail(1) == [
        "out of memory on the device with device_batch=48: going on with device_batch=24; the batch of 96 stays"
    ]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(alone=False)


def test_the_micro_batch_keeps_dividing(compose_config):
    def smaller(used, *words):
        return cell.smaller_device_batch(compose_config(*words).cell, used)

    assert smaller(48, "recipe.batch_size=48") == 24 and smaller(3, "recipe.batch_size=48") == 1
    assert smaller(1) is None
    assert smaller(8, "augment=mixup", "augment.mix_group=8", "recipe.batch_size=48") is None


def test_memory_that_this_machine_refuses_is_the_users_to_know(record, monkeypatch):
    record.folder.mkdir()
    said = r"out of memory on this machine, with a peak of \d+\.\d GB; lower workers"
    with pytest.raises(UserError, match=said), cell._failure_recorded(record):
        raise MemoryError
    assert "out of memory on this machine" in record.why_failed()
    with pytest.raises(RuntimeError, match="of our own"), cell._failure_recorded(record):
        raise RuntimeError("of our own")


def test_memory_is_noted_while_it_grows(record):
    journal = Journal(record)
    journal.begin(3)
    with journal.running():
        end = time.monotonic() + 20
        while attempts.read_attempts(record)[0].peak_gb is None:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert json.loads((record.folder / attempts.FILE).read_text(encoding="utf-8").splitlines()[1])["peak_gb"] > 0.05
