"""Studies under fire: killed controllers and cells, failures, hangs, two controllers at once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STUDY = [
    "-m", "augment=none,mixup,deit", "augment.mix_group=8", "recipe.epochs=20", "recipe.warmup_epochs=1",
    "recipe.drop_path=0.1", "recipe.ema_decay=0.9", "dataset.train_per_class=64", "wandb.mode=disabled",
]  # fmt: skip


def command(*words):
    return [sys.executable, str(ROOT / "run.py"), *words]


def run(*words, cwd):
    return subprocess.run(command(*words), cwd=cwd, capture_output=True, text=True, timeout=1800, encoding="utf-8")


def outcomes(folder):
    """Every finished cell's rows and figures, without clock readings, by identity."""
    timings = ("images_per_second", "seconds", "wall_seconds", "device_seconds", "finished_at", "files", "digest")
    found = {}
    for file in folder.glob("c*/result.json"):
        rows = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        result = json.loads(file.read_text(encoding="utf-8"))
        found[file.parent.name] = [{k: v for k, v in d.items() if k not in timings} for d in (*rows, result)]
    return found


def training(folder):
    """The processes that train a cell at this moment."""
    from vitlab.study.record import Record

    found = []
    for lock in folder.glob("c*/lock"):
        if Record(lock.parent).is_locked():
            with contextlib.suppress(ValueError):  # the holder is just writing its name
                found.append(json.loads(lock.read_text(encoding="utf-8"))["pid"])
    return found


def test_ten_kills_change_nothing(tmp_path):
    """Four controllers and six cells are killed at random points while cells train, until the study is finished.

    No finished cell is trained again, no record is corrupt, no more is lost than the epoch after the last checkpoint,
    and every metric is that of an undisturbed study.
    """
    calm = run(*STUDY, "output_dir=calm", "study.cells_at_once=2", cwd=tmp_path)
    assert calm.returncode == 0, calm.stdout + calm.stderr
    rng, finished = random.Random(0), {}
    kills, most = {"controller": 0, "cell": 0}, {"controller": 4, "cell": 6}
    folder = tmp_path / "fire"
    for _ in range(30):
        # until ten kills have hit, each attempt is cut short
        words = [*STUDY, "output_dir=fire", "study.cells_at_once=2", "study.retry_failed=true"]
        process = subprocess.Popen(command(*words), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
        while kills != most and process.poll() is None:
            while process.poll() is None and not training(folder):
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.5))
            victim = rng.choice([v for v, count in kills.items() if count < most[v]])
            pids = [process.pid] if victim == "controller" else training(folder)
            if pids and process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    kills[victim] += 1
            if victim == "controller":
                break
        process.wait(timeout=1800)
        wait_until_quiet(folder)
        assert_little_is_lost(folder)
        for name, mtime in finished.items():
            assert (folder / name / "result.json").stat().st_mtime_ns == mtime, f"{name} was trained again"
        finished = {f.parent.name: f.stat().st_mtime_ns for f in folder.glob("c*/result.json")}
        if len(finished) == 3 and process.returncode == 0:
            break
    assert kills == most and len(finished) == 3
    assert outcomes(folder) == outcomes(tmp_path / "calm")


def wait_until_quiet(folder):
    """Until orphaned cells have noticed that their controller is gone, saved and ended."""
    from vitlab.study.record import Record

    deadline = time.monotonic() + 300
    while any(Record(p.parent).is_locked() for p in folder.glob("c*/lock")) and time.monotonic() < deadline:
        time.sleep(0.05)


def assert_little_is_lost(folder):
    """Every checkpoint can be read, and at most one recorded epoch is newer than it."""
    from vitlab.study.record import Record
    from vitlab.train.checkpoint import load_checkpoint

    for place in folder.glob("c[0-9a-f]*"):
        state = load_checkpoint(place / "last.pt")
        epochs = state["epoch"] if state else 0
        assert [row["epoch"] for row in Record(place).rows()] in (
            list(range(1, epochs + 1)), list(range(1, epochs + 2)),
        )  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A study in which one cell diverges, one hangs, one pre-training fails and the rest is well."""
    folder = tmp_path_factory.mktemp("mixed")
    cells = [
        "recipe.epochs=2",
        "recipe.optimizer=sgd recipe.lr=1e18 recipe.epochs=2",
        "pretrain=fractaldb_small pretrain.dataset.fractal.instances=10 pretrain.recipe.optimizer=sgd "
        "pretrain.recipe.lr=1e18 pretrain.recipe.epochs=2 recipe.epochs=2",
        "recipe.epochs=2 augment=erase",
    ]
    listed = ",".join(f'"{c}"' for c in cells)
    words = ["-m", f"study.cells=[{listed}]", "recipe.warmup_epochs=0", "wandb.mode=disabled", "study.name=mixed"]
    return folder, words, run(*words, cwd=folder)


def test_a_failure_takes_nothing_else_down(mixed):
    folder, _, done = mixed
    assert done.returncode == 1, done.stdout + done.stderr
    study = json.loads((folder / "runs/studies/mixed.json").read_text(encoding="utf-8"))
    states = {}
    for cell in study["cells"]:
        record = folder / "runs" / cell["id"]
        states[cell["name"]] = (
            "finished" if (record / "result.json").exists() else "failed" if (record / "failure.json").exists() else "—"
        )
    assert sorted(states.values()) == ["failed", "failed", "finished", "finished", "—"]
    assert "not finite since step" in done.stdout and "blocked" in done.stdout and "log.txt" in done.stdout
    assert "did not finish" in done.stdout and "study.retry_failed=true" in done.stdout


def test_failed_cells_wait_to_be_retried_and_rerun_archives(mixed):
    folder, words, _ = mixed
    again = run(*words, cwd=folder)
    assert again.returncode == 1 and "not finite" in again.stdout
    assert re.search(r"blocked: its pre-training c\w+ failed", again.stdout), again.stdout
    study = json.loads((folder / "runs/studies/mixed.json").read_text(encoding="utf-8"))
    good = next(
        c["id"]
        for c in study["cells"]
        if c["name"].startswith("none/") and (folder / "runs" / c["id"] / "result.json").exists()
    )
    before = outcomes(folder / "runs")
    redone = run(*words, f"study.rerun=[{good}]", cwd=folder)
    assert f"archived runs/{good}/archive/" in redone.stdout
    assert len(list((folder / "runs" / good / "archive").glob("*/result.json"))) == 1
    assert outcomes(folder / "runs")[good] == before[good], "trained again to the same numbers"


def test_a_hung_cell_is_ended(tmp_path):
    done = run("recipe.epochs=400", "wandb.mode=disabled", "study.cell_minutes=0.1", cwd=tmp_path)
    assert done.returncode == 1 and "hung: over study.cell_minutes=0.1" in done.stdout


def test_two_controllers_never_train_a_cell_twice(tmp_path):
    words = [*STUDY[:2], "recipe.epochs=2", "recipe.warmup_epochs=0", "augment.mix_group=8", "wandb.mode=disabled"]
    both = [
        subprocess.Popen(command(*words), cwd=tmp_path, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    trained = [line.split(":")[0] for text in texts for line in text.splitlines() if ": epoch 2/2" in line]
    assert sorted(trained) == ["deit/mix_group=8/s0", "mixup/mix_group=8/s0", "none/s0"], texts


def test_a_read_only_folder_is_said(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be", encoding="utf-8")
    done = run("recipe.epochs=1", "recipe.warmup_epochs=0", "wandb.mode=disabled", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "runs" in done.stderr
