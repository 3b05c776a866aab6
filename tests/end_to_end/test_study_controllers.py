"""Who trains what: two controllers and one pre-training, Ctrl-C twice, rerun, Hydra's basic launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import commands
import pytest

from vitlab.study.cell import run_cell
from vitlab.study.record import Record
from vitlab.train.events import EpochEnded

SHORT = ["recipe.epochs=2", "recipe.warmup_epochs=0", "dataset.train_per_class=32", "wandb.mode=disabled"]
FED = [
    "pretrain=fractaldb_small", "pretrain.recipe.epochs=3", "pretrain.recipe.warmup_epochs=0",
    "pretrain.dataset.fractal.instances=10", "study.name=fed",
]  # fmt: skip


def start(*words, cwd):
    return commands.start("run.py", *words, cwd=cwd, merged=True, own_session=True)


def finish(process):
    output, _ = process.communicate(timeout=400)
    return process.returncode, output


def cells(folder, study):
    return json.loads((folder / f"runs/studies/{study}.json").read_text(encoding="utf-8"))["cells"]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found, "waited in vain"
    return found


@pytest.mark.slow()
def test_two_controllers_share_one_pretraining(tmp_path):
    """Neither trains it twice, and neither calls the cells blocked that wait for the other's."""
    both = [start("-m", "seed=0,1", *FED, *SHORT, cwd=tmp_path) for _ in range(2)]
    (code, one), (other_code, other) = map(finish, both)
    assert code == other_code == 0, one + other
    trained = [line.split(":")[0] for line in (one + other).splitlines() if ": epoch 2" in line]
    assert len(trained) == len(set(trained)) == 3, one + other
    assert "blocked" not in one + other
    assert all(Record(tmp_path / "runs" / c["id"]).state() == "finished" for c in cells(tmp_path, "fed"))


@pytest.mark.slow()
def test_the_pretraining_of_a_killed_controller_is_taken_over(tmp_path):
    """A controller waits for another's pre-training; when that one dies half way, it trains the rest itself."""
    words = ["-m", "seed=0", *FED, *SHORT, "pretrain.recipe.epochs=40"]
    first = start(*words, cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("runs/c*/metrics.jsonl")))
    second = start(*words, cwd=tmp_path)
    assert second.stdout is not None
    seen = ""
    for line in second.stdout:
        seen += line
        if "another process trains its pre-training" in line:
            break
    os.kill(first.pid, signal.SIGKILL)
    finish(first)
    code, rest = finish(second)
    assert code == 0, seen + rest
    (pretraining,) = [c["id"] for c in cells(tmp_path, "fed") if c["part"] == "pretraining"]
    assert [r["epoch"] for r in Record(tmp_path / "runs" / pretraining).rows()] == list(range(1, 41))


def test_a_second_interrupt_ends_at_once_and_the_next_command_goes_on(tmp_path):
    words = ["-m", "seed=0,1", "recipe.epochs=400", "wandb.mode=disabled", "study.cells_at_once=1"]
    process = start(*words, cwd=tmp_path)
    (rows,) = wait_for(lambda: list(tmp_path.glob("runs/c*/metrics.jsonl")))
    record = Record(rows.parent)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    code, output = finish(process)
    assert code == 130 and "To continue" in output
    assert record.state() == "interrupted", "an interrupted cell has not failed"
    assert re.search(r"^‖ none/s0  c\w+  interrupted$", output, re.MULTILINE), output
    assert re.search(r"^· none/s1  c\w+  not started$", output, re.MULTILINE), output


def test_rerun_of_a_cell_cut_short_begins_anew(tmp_path, compose_config):
    config = compose_config("recipe.epochs=30", "wandb.mode=disabled", f"output_dir={tmp_path}/runs")

    def interrupt(event):
        if isinstance(event, EpochEnded):
            signal.raise_signal(signal.SIGINT)

    assert run_cell(config, study="s", name="none/s0", report=interrupt) == "interrupted"
    (rows,) = tmp_path.glob("runs/c*/metrics.jsonl")
    again = start("recipe.epochs=30", "wandb.mode=disabled", "study.rerun=all", cwd=tmp_path)
    wait_for(lambda: rows.exists() and list(rows.parent.glob("archive/*/last.pt")))
    assert json.loads(rows.read_text(encoding="utf-8").splitlines()[0])["epoch"] == 1
    again.send_signal(signal.SIGINT)
    code, output = finish(again)
    assert code == 130 and "archived" in output
    assert "study.rerun" not in output.split("To continue:")[1], "continuing must not archive what has been trained"


def test_hydras_basic_launcher_trains_too(tmp_path):
    code, output = finish(start("-m", "augment=none,mixup", "hydra/launcher=basic", *SHORT, cwd=tmp_path))
    assert code == 0, output
    assert len(list(tmp_path.glob("runs/c*/result.json"))) == 2 and "next: python analyze.py" in output
    code, output = finish(start("-m", "augment=none,mixup", *SHORT, cwd=tmp_path))
    assert code == 0 and "nothing to train" in output
