"""Cells on one machine: which devices each of them sees, and what is known of one that could say nothing."""

import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from planned import begin

from vitlab.config import ConfigError
from vitlab.data.ring import Given
from vitlab.study import launch_local
from vitlab.study.plan import build_plan
from vitlab.study.preflight import require_present
from vitlab.study.record import Record


def fake_context(begun):
    """A start method whose processes note what they are given and are at their end at once."""

    class Process:
        exitcode = 0

        def __init__(self, target, args, name):
            self.reader, self.writer = mp.Pipe(duplex=False)
            self.sentinel = self.reader.fileno()
            begun.append((name, args[-1]))

        def start(self):
            self.writer.close()

        def join(self):
            pass

    return SimpleNamespace(Process=Process, Pipe=mp.Pipe)


def test_cells_side_by_side_have_devices_of_their_own(requests_for, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,GPU-8f1e")
    begun = []
    monkeypatch.setattr(launch_local, "fork_server", lambda config: fake_context(begun))
    shared = ("study.cells_at_once=2", "devices=2")
    plan = build_plan(requests_for(*[[f"seed={s}"] for s in range(4)], shared=shared), "s")
    outcomes = launch_local.run_locally(plan, SimpleNamespace(status=lambda *a: None, refresh=lambda: None, cells={}))  # pyright: ignore
    assert list(outcomes) == [c.id for c in plan.cells]
    assert begun[0] == ("none/s0", ("7", "5")) and begun[1] == ("none/s1", ("3", "GPU-8f1e"))
    assert all(devices in (("7", "5"), ("3", "GPU-8f1e")) for _, devices in begun)


def test_more_devices_than_there_are_is_refused(requests_for, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    plan = build_plan(requests_for(["seed=0"], shared=("study.cells_at_once=2", "devices=2")), "s")
    with pytest.raises(ConfigError, match=r"2 cells on 2 devices each need 4 GPUs, and 2 are visible"):
        require_present(plan)


def test_a_cells_process_sees_its_devices_only(compose_config, monkeypatch, tmp_path):
    seen = tmp_path / "seen"
    monkeypatch.setattr(
        launch_local,
        "run_cell",
        lambda *a, **_: seen.write_text(os.environ["CUDA_VISIBLE_DEVICES"], encoding="utf-8") and "finished",
    )
    reader, writer = mp.Pipe(duplex=False)
    arguments = (compose_config(), "s", "none/s0", tmp_path / "log.txt", writer, Given(), ["3", "GPU-8f1e"])
    process = mp.get_context("fork").Process(target=launch_local._cell_process, args=arguments)
    process.start()
    assert reader.recv() == "finished"
    process.join()
    assert seen.read_text(encoding="utf-8") == "3,GPU-8f1e"


def test_a_cell_that_failed_before_its_record_began_is_told_of(requests_for, tmp_path):
    plan = build_plan(requests_for(["seed=0"]), "s")
    record = Record(tmp_path / plan.cells[0].id)
    record.folder.mkdir()
    (record.folder / "log.txt").write_text("Traceback\nOSError: no such luck\n", encoding="utf-8")
    process, said = SimpleNamespace(exitcode=1), []
    job = launch_local._Job(plan.cells[0], process, None, 0, time.monotonic())  # pyright: ignore[reportArgumentType]
    view = SimpleNamespace(status=lambda *a: said.append(a))
    assert launch_local._conclude(job, plan, view) == "failed"  # pyright: ignore[reportArgumentType]
    assert said == [(plan.cells[0].id, "failed", "OSError: no such luck")]
    assert (
        json.loads((record.folder / "failure.json").read_text(encoding="utf-8"))["message"] == "OSError: no such luck"
    )


def test_cells_whose_fork_server_was_killed_train_on(requests_for, tmp_path):
    """multiprocessing takes them for dead and no longer signals them; their pipe tells when they end."""
    plan = build_plan(requests_for(["seed=0"]), "s")
    reader, writer = mp.Pipe(duplex=False)
    gone, dead = mp.Pipe(duplex=False)
    dead.close()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as cell:
        process = SimpleNamespace(exitcode=255, sentinel=gone.fileno(), pid=cell.pid, join=lambda *_: None)
        job = launch_local._Job(plan.cells[0], process, reader, 0, None)
        view: Any = SimpleNamespace(event=lambda *_: None, refresh=lambda: None)
        assert launch_local._ended([job], view) == [] and job.orphaned
        assert launch_local._ended([job], view) == []
        job.signal(signal.SIGTERM)
        assert cell.wait(60) == -signal.SIGTERM
    writer.send("interrupted")
    writer.close()
    assert launch_local._ended([job], view) == [job] and job.outcome == "interrupted"
    job.signal(signal.SIGTERM)  # no such process


@pytest.mark.parametrize(("state", "outcome"), [("interrupted", "again"), ("finished", "finished")])
def test_what_became_of_an_orphan_is_read_from_its_record(state, outcome, requests_for, tmp_path):
    plan, said = build_plan(requests_for(["seed=0"]), "s"), []
    record = begin(tmp_path, plan.cells[0].config)
    if state == "finished":
        record.write("result.json", {})
    job: Any = launch_local._Job(plan.cells[0], SimpleNamespace(exitcode=255), Any, 0, None)
    view: Any = SimpleNamespace(status=lambda *a: said.append(a))
    assert launch_local._conclude(job, plan, view) == outcome
    if outcome == "again":
        text = "it ended, and so had the process that starts cells (SIGKILL, out of memory?): attempt 2 of 3 follows"
        assert said == [(plan.cells[0].id, "waiting", text)]


def test_what_another_process_has_seen_fail_is_not_run_again(requests_for, monkeypatch, tmp_path):
    """Two controllers at once: a failure since the plan counts; one before it, which is to be retried, does not."""
    begun, said = [], []
    requests = requests_for(["seed=0"], ["seed=1"], shared=("study.retry_failed=true",))
    failed = build_plan(requests, "s").cells[1].id
    Record(tmp_path / failed).write("failure.json", {"type": "E", "message": "before"})
    plan = build_plan(requests, "s")
    plan.record(plan.cells[0]).write("config.yaml", {})
    plan.record(plan.cells[0]).write("failure.json", {"type": "E", "message": "meanwhile"})
    monkeypatch.setattr(launch_local, "fork_server", lambda config: fake_context(begun))
    view = SimpleNamespace(status=lambda *a: said.append(a), refresh=lambda: None, cells={})
    outcomes = launch_local.run_locally(plan, view)  # pyright: ignore[reportArgumentType]
    assert [name for name, _ in begun] == ["none/s1"]
    assert outcomes[plan.cells[0].id] == "failed" and said[0][2] == "by another process: meanwhile"


def test_the_fork_server_survives_a_signal_while_it_imports():
    """A job's limit may come while it starts; on a busy node that takes as long as the warning before the limit."""
    code = """
import signal, sys
class Stop:
    def find_spec(self, name, *_):
        if name == "vitlab.study.cell":
            print({signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)} == {signal.SIG_IGN})
            sys.exit()
sys.meta_path.insert(0, Stop())
import vitlab.study.preload
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, encoding="utf-8")
    assert done.stdout == "True\n", done.stderr
