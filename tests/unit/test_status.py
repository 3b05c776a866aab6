"""Where studies stand: what is said of each cell, and how soon."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planned import begin, finish

from vitlab.cli.status_task import run_status
from vitlab.config import ConfigError
from vitlab.study.plan import build_plan, study_content
from vitlab.study.record import Record
from vitlab.study.status import status
from vitlab.study.studies import write_study

ROOT = Path(__file__).parents[2]
SEEDS = [[f"seed={seed}"] for seed in range(6)]


def row(epoch, **more):
    return {"epoch": epoch, "step": 22 * epoch, "seconds": 30.0 * epoch, "images_per_second": 1234.0} | more


@pytest.fixture
def study(requests_for, tmp_path):
    """A study of six cells, none of which has begun: its plan."""
    requests = requests_for(*SEEDS, shared=("recipe.epochs=10", "study.name=s"))
    plan = build_plan(requests, "s")
    write_study(tmp_path, "s", study_content(plan, requests[0].config))
    return plan


def slurm_says(folder, monkeypatch, *lines):
    """Put a `squeue` on the path that prints these lines, and a `scancel` that notes its arguments."""
    tools = folder / "tools"
    tools.mkdir()
    for name, text in (("squeue", "\n".join(f"echo '{line}'" for line in lines)), ("scancel", 'echo "$@" >> said')):
        (tools / name).write_text(f"#!/bin/sh\ncd {tools}\n{text}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tools / "said"


def submit(folder, jobs):
    (folder / "slurm/s-1").mkdir(parents=True)
    (folder / "slurm/s-1/jobs.json").write_text(json.dumps(jobs), encoding="utf-8")


def lines(folder):
    (found,) = status(folder)
    return found.lines()


def test_every_state_is_told(study, tmp_path, monkeypatch):
    done, alive, failed, cut, queued, _ = study.cells
    finish(tmp_path, done.config)
    for cell in (alive, failed, cut):
        begin(tmp_path, cell.config).append_row(row(3))
    study.record(failed).fail("ConfigError", "device: no such luck")
    submit(tmp_path, {queued.id: "12_4"})
    slurm_says(tmp_path, monkeypatch, "12_4|PENDING|Priority", "99|RUNNING|None")
    with study.record(alive).locked() as held:
        assert held
        first, *rest = lines(tmp_path)
    assert first == "study s: 1 finished, 1 running, 1 queued, 1 failed, 1 interrupted, 1 not begun of 6"
    running, why, stopped, waits = rest
    assert "running on " in running and "epoch 3 of 10, 1,234 img/s, about 3 min 30 s left (until " in running
    assert why.endswith("failed: device: no such luck")
    assert "interrupted after epoch 3 of 10, 0 s ago; no process trains it" in stopped
    assert waits.endswith("queued as 12_4 (Priority)")


def test_a_cell_that_writes_nothing_is_stale(study, tmp_path):
    record = begin(tmp_path, study.cells[0].config)
    record.append_row(row(2))
    hour_ago = time.time() - 3600
    os.utime(record.folder / "metrics.jsonl", (hour_ago, hour_ago))
    with record.locked():
        assert "1 stale" in lines(tmp_path)[0]
        assert "holds its lock and has written nothing for 1 h" in lines(tmp_path)[1]


def test_what_a_dying_process_left_is_no_obstacle(study, tmp_path):
    for cell, text in zip(study.cells, ("", '{"epoch": 1', "[]\n", "\x00\n"), strict=False):
        (begin(tmp_path, cell.config).folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert lines(tmp_path)[0].startswith("study s: 4 interrupted, 2 not begun of 6")
    (tmp_path / "studies/broken.json").write_text("{", encoding="utf-8")
    assert len(status(tmp_path)) == 1


def test_a_study_is_chosen_by_its_name(study, tmp_path, compose_config, capsys):
    def command(*words):
        return run_status(compose_config(f"output_dir={tmp_path}", *words))

    assert command("study.status=true") == 0 and "study s: 6 not begun of 6" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"study\.name: no study 'x' in .*; its studies: s"):
        command("study.status=true", "study.name=x")
    with pytest.raises(ConfigError, match="output_dir: no study in /nowhere/"):
        run_status(compose_config("output_dir=/nowhere", "study.status=true"))
    assert command("study.follow=true") == 1, "none of its cells is finished, and nobody trains them"
    assert command("study.cancel=true") == 0 and "none of its cells is running or queued" in capsys.readouterr().out


def test_cancel_leaves_cells_of_other_commands_and_ends_waiting_jobs(
    study, tmp_path, compose_config, capsys, monkeypatch
):
    alive, queued = study.cells[:2]
    submit(tmp_path, {queued.id: "12_4"})
    said = slurm_says(tmp_path, monkeypatch, "12_4|PENDING|Priority")
    begin(tmp_path, alive.config)
    with Record(tmp_path / alive.id).locked():
        assert run_status(compose_config(f"output_dir={tmp_path}", "study.cancel=true")) == 0
    out = capsys.readouterr().out
    assert said.read_text(encoding="utf-8") == "12_4\n" and "s: 1 of its jobs cancelled" in out
    assert f"none/s0 is left to the command that trains it (process {os.getpid()} on " in out


def test_torch_is_not_loaded(study, tmp_path):
    program = (
        "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules));"
        f"sys.argv = ['run.py', 'study.status=true', 'output_dir={tmp_path}'];"
        f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=120)
    assert done.stdout == "study s: 6 not begun of 6\nFalse\n", done.stdout + done.stderr
