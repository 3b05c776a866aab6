"""One cell from every container: found again, continued across containers, and trained to the same bits."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from forms import draw_tree, image_net_org, kaggle, numbered, one_tar, parquet, table, webdataset

from vitlab.study.identity import identity
from vitlab.train.loop import fit

MAKE = {
    "shards": lambda t, to: webdataset(t, to, keys="file"), "image_net_org": image_net_org, "kaggle": kaggle,
    "one_tar": lambda t, to: one_tar(t, to.with_suffix(".tar")), "table": table, "parquet": parquet,
}  # fmt: skip


@pytest.fixture
def tree(tmp_path, own_cache):
    return numbered(draw_tree(tmp_path / "birds", per_class=6))


def configured(compose_config, root, workers=0):
    more = [f"dataset.table={root / 'labels.csv'}"] if (root / "labels.csv").exists() else []
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
    for name, make in MAKE.items():
        workers = {"shards": 1, "one_tar": 2}.get(name, 0)
        other = configured(compose_config, make(tree, tmp_path / f"root_of_{name}"), workers)
        assert identity(other.cell) == identity(config.cell), name
        theirs, their_weights = train(other, tmp_path / name)
        assert theirs == rows and same(their_weights, weights), name


def test_a_cell_that_was_killed_on_the_folder_is_continued_on_tars(tree, tmp_path, compose_config):
    rows, weights = train(configured(compose_config, tree), tmp_path / "whole")
    train(configured(compose_config, tree), tmp_path / "parts", steps=2)
    other = configured(compose_config, webdataset(tree, tmp_path / "shards"))
    then, their_weights = train(other, tmp_path / "parts")
    assert then == rows[1:], "the first epoch is not trained again"
    assert same(their_weights, weights)
