"""A finished cell is never taken for one on other data: the commands as a user types them, on similar trees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image

SMALL = [
    "dataset=folder", "model.image_size=16", "model.patch_size=4", "recipe.epochs=1", "recipe.warmup_epochs=0",
    "recipe.batch_size=8", "wandb.mode=disabled", "device=cpu",
]  # fmt: skip


def run(*words: str, cwd: Path, script: str = "run.py") -> tuple[int, str]:
    """The exit code and the screen."""
    done = commands.run(script, *words, cwd=cwd, VITLAB_CACHE=str(cwd / "cache"))
    return done.returncode, done.stdout + done.stderr


def write_birds(root: Path, seed: int) -> None:
    """Uncompressed pictures: every tree has the same names and sizes."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("gull", "tern"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.bmp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two seeds trained on birds_raw; birds_cropped has other pictures under the same names."""
    folder = tmp_path_factory.mktemp("birds")
    write_birds(folder / "birds_raw", 0)
    write_birds(folder / "birds_cropped", 1)
    code, screen = run("-m", *SMALL, "dataset.root=birds_raw", "seed=0,1", cwd=folder)
    assert code == 0, screen
    assert "data set 'birds_raw': named after birds_raw" in screen and "study birds_raw" in screen
    return folder


def ids(folder: Path, study: str) -> dict[str, str]:
    listed = json.loads((folder / f"runs/studies/{study}.json").read_text(encoding="utf-8"))
    return {cell["name"]: cell["id"] for cell in listed["cells"]}


def test_the_same_command_finds_its_cells_finished(folder):
    code, screen = run("-m", *SMALL, "dataset.root=birds_raw", "seed=0,1", cwd=folder)
    assert code == 0 and "nothing to train: 2 finished" in screen, screen


def test_another_folder_is_another_data_set(folder):
    code, screen = run(*SMALL, "dataset.root=birds_cropped", "study.dry_run=true", cwd=folder)
    assert code == 0 and "study birds_cropped: 1 cell, 1 to train" in screen, screen


def test_another_folder_under_the_same_name_is_refused(folder):
    code, screen = run(*SMALL, "dataset.name=birds_raw", "dataset.root=birds_cropped", cwd=folder)
    first = ids(folder, "birds_raw")["none/s0"]
    assert code == 1, screen
    assert f"the data of 'birds_raw' have changed since none/s0 ({first}, finished) was begun" in screen
    assert "16 of 16 training images differ: gull/0.bmp (other contents), gull/1.bmp" in screen
    assert "Nothing was started" in screen and "running" not in screen
    for way in ("dataset.name=birds_raw_2", f"study.rerun=[{first}]"):
        assert way.replace("[", "'[").replace("]", "]'") in screen
        words = [*SMALL, "dataset.name=birds_raw", "dataset.root=birds_cropped", way, "study.dry_run=true"]
        words = [word for word in words if not way.startswith("dataset.name") or word != "dataset.name=birds_raw"]
        code, accepted = run(*words, cwd=folder)
        assert code == 0 and "1 to train" in accepted, accepted


@pytest.fixture(scope="module")
def mixed(folder) -> Path:
    """One evaluation picture is another one now, and seed 1 was trained again, by a study of its own."""
    Image.new("RGB", (20, 20), (200, 0, 0)).save(folder / "birds_raw/val/tern/2.bmp")
    code, screen = run("-m", *SMALL, "dataset.root=birds_raw", "seed=0,1", cwd=folder)
    assert code == 1 and "1 of 8 evaluation images differ: tern/2.bmp (other contents)" in screen, screen
    alone = [*SMALL, "dataset.root=birds_raw", "seed=1", "study.name=alone"]
    code, screen = run(*alone, "study.rerun=all", cwd=folder)
    assert code == 0 and "archived" in screen and "✓" in screen, screen
    code, screen = run(*alone, cwd=folder)
    assert code == 0 and "nothing to train: 1 finished" in screen, screen
    return folder


def test_a_table_leaves_out_what_was_evaluated_on_other_images(mixed):
    code, screen = run("study=birds_raw", cwd=mixed, script="analyze.py")
    second = ids(mixed, "birds_raw")["none/s1"]
    assert code == 0 and "One seed each" in screen, screen
    assert f"than none/s0, and left out: none/s1. study.rerun='[{second}]' trains them again" in screen
    code, screen = run("study=birds_raw", "mixed_data=true", cwd=mixed, script="analyze.py")
    assert code == 0 and "were evaluated on 2 different sets of images: none/s0 | none/s1" in screen, screen
    assert "±" in screen
    code, screen = run("study=birds_raw", "strict=true", cwd=mixed, script="analyze.py")
    assert code == 1 and "left out: none/s1" in screen


def test_a_cell_is_evaluated_on_other_images_under_another_name_only(mixed):
    first = ids(mixed, "birds_raw")["none/s0"]
    words = ["task=evaluate", f"checkpoint={first}", "dataset.root=birds_raw", "wandb.mode=disabled"]
    code, screen = run(*words, cwd=mixed)
    assert code == 1 and f"other images than those that {first} was evaluated on" in screen, screen
    way = re.search(r"dataset\.name=(birds_raw_\d)$", screen, re.MULTILINE)
    assert "1 of 8 evaluation images differ: tern/2.bmp" in screen and way, screen
    code, screen = run(*words, way[0], cwd=mixed)
    assert code == 0 and f"{way[1]}: top-1" in screen, screen
