"""One cell from every container: found again, continued across containers, and trained to the same bits."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from forms import draw_tree, image_net_org, kaggle, numbered, one_tar, parquet, table, webdataset

from vitlab.cli.pack_task import run_pack
from vitlab.study.identity import identity
from vitlab.train.loop import fit

ROOT = Path(__file__).parents[2]
MAKE = {
    "shards": lambda t, to: webdataset(t, to, keys="file"), "image_net_org": image_net_org, "kaggle": kaggle,
    "one_tar": lambda t, to: one_tar(t, to.with_suffix(".tar")), "table": table, "parquet": parquet,
}  # fmt: skip
STAGED = ("image_net_org", "parquet", "a pack of files")
"""Those that are also read from copies."""


@pytest.fixture
def tree(tmp_path, own_cache):
    return numbered(draw_tree(tmp_path / "birds", per_class=6))


def pack_of_files(compose_config, tree, folder):
    run_pack(compose_config("task=pack", "pack.format=files", f"pack.path={folder}", "dataset=folder", "workers=0",
                            f"dataset.root={tree}", f"output_dir={folder}_runs"))  # fmt: skip
    return folder


def configured(compose_config, root, workers=0, *more):
    more = [*more, f"dataset.table={root / 'labels.csv'}"] if (root / "labels.csv").exists() else more
    config = compose_config(
        "dataset=folder", "dataset.name=birds", f"dataset.root={root}", "dataset.num_classes=3", "dataset.num_train=18",
        "dataset.num_eval=6", "model=vit_micro", "model.image_size=8", "model.patch_size=4", "model.depth=1",
        "recipe.epochs=3", "recipe.warmup_epochs=0", "recipe.batch_size=6", *more,
    )  # fmt: skip
    return dataclasses.replace(config, workers=workers)


def train(config, folder, steps=None):
    """The figures of each event with a row, and the weights; `steps`: stop after so many events, as if killed."""
    folder.mkdir(exist_ok=True)
    rows = []
    for event in fit(config, config.cell, folder):
        row = getattr(event, "row", None)
        if row is not None:
            rows.append({k: v for k, v in row.items() if "loss" in k or "top" in k})
            if len(rows) == steps:
                return rows, None
    state = torch.load(folder / "last.pt", weights_only=True, map_location="cpu")
    return rows, state["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_cell_has_the_same_bits_from_any_container_and_with_any_workers(tree, tmp_path, compose_config):
    config = configured(compose_config, tree)
    rows, weights = train(config, tmp_path / "folder")
    assert len(rows) == 3
    roots = {name: make(tree, tmp_path / f"root_of_{name}") for name, make in MAKE.items()}
    roots["a pack of files"] = pack_of_files(compose_config, tree, tmp_path / "pack")
    stage = f"dataset.stage={tmp_path / 'disk'}"
    for name, more in [*((name, ()) for name in roots), *((name, (stage,)) for name in STAGED)]:
        workers = {"shards": 1, "one_tar": 2}.get(name, 0) or len(more)
        other = configured(compose_config, roots[name], workers, *more)
        assert identity(other.cell) == identity(config.cell), name
        theirs, their_weights = train(other, tmp_path / f"{name} {len(more)}")
        assert theirs == rows and same(their_weights, weights), name
    assert len(list((tmp_path / "disk").iterdir())) == len(STAGED)


def test_a_cell_that_was_killed_on_the_folder_is_continued_on_tars(tree, tmp_path, compose_config):
    rows, weights = train(configured(compose_config, tree), tmp_path / "whole")
    train(configured(compose_config, tree), tmp_path / "parts", steps=2)
    other = configured(compose_config, webdataset(tree, tmp_path / "shards"))
    then, their_weights = train(other, tmp_path / "parts")
    assert then == rows[1:], "the first epoch is not trained again"
    assert same(their_weights, weights)


@pytest.mark.slow
def test_cells_that_share_a_loader_read_one_copy_and_have_the_same_figures(tree, tmp_path):
    words = ["dataset=folder", "dataset.name=birds", f"dataset.root={webdataset(tree, tmp_path / 'shards')}",
             "augment=none,erase", "recipe.batch_size=6", "recipe.epochs=2", "recipe.warmup_epochs=0", "device=cpu",
             "model.depth=1", "wandb.mode=disabled"]  # fmt: skip
    outputs = {}
    for name, more in (("plain", ["study.cells_at_once=1"]), ("staged", ["study.cells_per_device=2"])):
        more += ["dataset.stage='$NODE_DISK/me'"] if name == "staged" else []
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), "-m", *words, *more, f"output_dir={tmp_path / name}"], text=True,
            env=os.environ | {"NODE_DISK": str(tmp_path / "disk"), "OMP_NUM_THREADS": "1"}, capture_output=True,
            cwd=tmp_path, timeout=300, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        outputs[name] = done.stdout
    assert "one loader, a window of" in outputs["staged"] and outputs["staged"].count(": copying 4 files, ") == 1
    cells = sorted(file.parent.name for file in (tmp_path / "plain").glob("*/result.json"))
    assert len(cells) == 2 and cells == sorted(file.parent.name for file in (tmp_path / "staged").glob("*/result.json"))
    for cell in cells:
        one, other = (tmp_path / name / cell for name in outputs)
        assert (one / "predictions.npz").read_bytes() == (other / "predictions.npz").read_bytes()
        weights = [torch.load(folder / "last.pt", weights_only=True, map_location="cpu") for folder in (one, other)]
        assert same(weights[0]["model"], weights[1]["model"])
        assert f"birds is read from {tmp_path}/disk/me/" in (other / "log.txt").read_text(encoding="utf-8")
