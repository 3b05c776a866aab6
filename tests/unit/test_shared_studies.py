"""Studies whose cells share loaders, killed at random moments, and two at once, against the same cells alone."""

import contextlib
import json
import os
import re
import signal
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_processes import left_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "tree"
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 12)):
        for c in "ab":
            (root / split / c).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / c / f"{i}.jpg")
    return root


def figures(folder):
    """Every row of every cell, without clock readings."""
    found = {}
    for file in sorted(folder.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[file.parent.name] = [
            {k: v for k, v in row.items() if k not in ("seconds", "device_seconds", "images_per_second")}
            for row in rows
        ]
    return found


@pytest.mark.slow
def test_studies_shared_alone_and_under_fire_have_the_same_figures(pictures, tmp_path):
    """Cells, reading processes and the controller are killed at random moments; nothing is left in memory."""
    import random
    import subprocess
    from pathlib import Path

    root = Path(__file__).parents[2]
    words = [
        sys.executable, str(root / "run.py"), "-m", "augment=none,mixup,erase", "dataset=folder",
        f"dataset.root={pictures}", "model=vit_micro", "model.image_size=32", "recipe.epochs=40",
        "recipe.warmup_epochs=0", "recipe.batch_size=16", "recipe.repeated_augmentation=2", "wandb.mode=disabled",
        "workers=2", "study.keep_evaluation=true", "augment.mix_group=4",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VITLAB_MARKER": (marker := uuid.uuid4().hex)}
    before = {*os.listdir("/dev/shm")}

    def start(*more):
        with (tmp_path / "log").open("a", encoding="utf-8") as log:
            return subprocess.Popen([*words, *more], cwd=tmp_path, env=environment, stdout=log, stderr=log)

    assert start("output_dir=alone", "study.cells_at_once=1", "study.share_loader=false").wait(600) == 0
    two = ("devices=2", "recipe.epochs=3")
    assert start("output_dir=alone2", *two, "study.cells_at_once=1", "study.share_loader=false").wait(600) == 0
    assert start("output_dir=shared2", *two, "study.cells_per_device=3").wait(600) == 0
    assert "one loader" in (tmp_path / "log").read_text(encoding="utf-8")
    rng = random.Random(0)
    fire = ("output_dir=fire", "study.cells_per_device=3", "study.retry_failed=true")
    for victim in ("reader", "helper", "controller", "cell"):  # the first: all cells are then at one epoch and share
        process, before_round, end = start(*fire), rows_in(tmp_path / "fire"), time.monotonic() + 120
        while rows_in(tmp_path / "fire") == before_round and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "the study was over before anything was killed"
        os.kill(victim_of(process.pid, victim, tmp_path / "fire"), signal.SIGKILL)
        if victim in ("helper", "reader"):  # nobody notices but the log
            time.sleep(3)
            process.send_signal(signal.SIGINT)
            assert process.wait(600) == 130
        else:
            assert process.wait(600) == (0 if victim == "cell" else -signal.SIGKILL)  # a killed cell is tried again
            time.sleep(5 if victim == "controller" else 0)  # cells whose controller was killed save
    assert start(*fire).wait(600) == 0
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert said.count("(SIGKILL, fire/loader.log); another takes its place") >= 1
    alone = figures(tmp_path / "alone")
    assert len(alone) == 3 and figures(tmp_path / "fire") == alone
    assert len(alone) == len(figures(tmp_path / "alone2")) == 3
    assert figures(tmp_path / "shared2") == figures(tmp_path / "alone2")
    assert left_of(marker) == []
    assert left_in_memory(before) == set() and processes_in(tmp_path) == []


@pytest.mark.slow
def test_two_studies_at_once_train_each_cell_once(pictures, tmp_path):
    """They overlap in a cell, and have a loader each; the figures are those of cells alone."""
    import subprocess

    words = [
        sys.executable, str(Path(__file__).parents[2] / "run.py"), "-m", "dataset=folder", f"dataset.root={pictures}",
        "model=vit_micro", "model.image_size=32", "recipe.epochs=20", "recipe.warmup_epochs=0", "recipe.batch_size=16",
        "wandb.mode=disabled", "workers=2", "study.keep_evaluation=true", "augment.mix_group=4",
    ]  # fmt: skip
    before = {*os.listdir("/dev/shm")}

    def start(*more):
        return subprocess.Popen(
            [*words, *more], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip

    two = ("output_dir=together", "study.cells_per_device=2")
    studies = [
        start("augment=none,mixup", "study.name=one", *two),
        start("augment=mixup,erase,jitter", "study.name=two", *two),
    ]
    said = [study.communicate(timeout=600)[0] for study in studies]
    alone = start(
        "augment=none,mixup,erase,jitter", "output_dir=alone", "study.cells_at_once=1", "study.share_loader=false"
    )
    assert alone.communicate(timeout=600)[0] and alone.returncode == 0
    assert [study.returncode for study in studies] == [0, 0], said
    assert any("one loader" in text for text in said), said
    assert len(figures(tmp_path / "alone")) == 4 and figures(tmp_path / "together") == figures(tmp_path / "alone")
    for file in (tmp_path / "together").glob("c*/attempts.jsonl"):
        assert file.read_text(encoding="utf-8").count('"begun"') == 1
    assert left_in_memory(before) == set() and processes_in(tmp_path) == []


def processes_in(folder, seconds=30):
    """The commands of the processes that still work in a folder, some time after all have been asked to end."""
    end = time.monotonic() + seconds
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == folder:
                    found.append((process / "cmdline").read_text(encoding="utf-8", errors="replace"))
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.5)


def victim_of(controller, kind, folder):
    """A process of a study that runs: the controller, a cell, the reading process or a helper of that."""
    from pathlib import Path

    def children(pid):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text(encoding="utf-8").split()]

    cells = [json.loads(file.read_text(encoding="utf-8"))["pid"] for file in folder.glob("c*/lock")]
    started = [child for server in children(controller) for child in children(server)]
    readers = [child for child in started if child not in cells]  # none where cells go on from different epochs
    helpers = [helper for reader in readers for helper in children(reader)]
    found = {"controller": [controller], "cell": cells, "reader": readers, "helper": helpers}[kind]
    return (found or cells)[0]


def rows_in(folder):
    return sum(len(file.read_bytes().splitlines()) for file in folder.glob("*/metrics.jsonl"))


def left_in_memory(before, seconds=60):
    """What is in /dev/shm, was not before, stays there and is of no use to any process (other tests run too)."""
    left = {*os.listdir("/dev/shm")} - before
    end = time.monotonic() + seconds
    while left and time.monotonic() < end:
        time.sleep(0.5)
        left &= {*os.listdir("/dev/shm")} - mapped_names()
    return left


def mapped_names():
    """The files of /dev/shm that a living process has mapped."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended
            found |= set(re.findall(r"/dev/shm/(\S+)", file.read_text(encoding="utf-8", errors="replace")))
    return found
