"""The same images in any container are the same data: order, labels, pixels, fingerprints."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from forms import draw_tree, image_net_org, kaggle, numbered, one_tar, parquet, table, tar_of_each_split, webdataset

from vitlab.cli.pack_task import run_pack
from vitlab.config import DatasetConfig
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.on_disk import inventories
from vitlab.data.sources.registry import build_source
from vitlab.data.sources.survey import describe_survey

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def tree(tmp_path):
    return numbered(draw_tree(tmp_path / "birds"))


def birds(root, **changes):
    return DatasetConfig("birds", "folder", root=str(root), **changes)


FORMS = {
    "shards by folder": (lambda t, to: webdataset(t, to), "tar shards (WebDataset), 2 + 2 files"),
    "shards of timm": (lambda t, to: webdataset(t, to, keys="file"), "tar shards (WebDataset), 2 + 2 files"),
    "one tar": (lambda t, to: one_tar(t, to.with_suffix(".tar")), "tars of class folders, 1 + 1 file"),
    "a tar of each split": (tar_of_each_split, "tars of class folders, 1 + 1 files"),
    "image-net.org's": (image_net_org, "image-net.org's archives, 1 + 1 files"),
    "Kaggle's": (kaggle, "Kaggle's folders"),
    "a table": (table, "files labelled by labels.csv, 15 + 6 files"),
    "parquet": (parquet, "parquet, 2 + 2 files"),
    "a pack of files": (None, "a pack of files, 1 + 1 tars"),
}
"""What it is → what makes it, and how it is recognised."""


def packed(compose, root, folder, *more):
    run_pack(compose("task=pack", "pack.format=files", "dataset=folder", "dataset.name=birds", "workers=0",
                        f"dataset.root={root}", f"pack.path={folder}", f"output_dir={folder}_runs", *more))  # fmt: skip
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_container_holds_the_data_of_its_folder(form, tree, tmp_path, compose_config):
    make, recognised = FORMS[form]
    other = tmp_path / "other"
    root = make(tree, other) if make else packed(compose_config, tree, other)
    folder, other = birds(tree, verify="contents"), birds(root, verify="contents")
    if form == "a table":
        other = dataclasses.replace(other, table=str(root / "labels.csv"))
    for split in ("train", "eval"):
        ours, theirs = build_source(other, split), build_source(folder, split)
        assert ours.classes == theirs.classes and ours.labels.tolist() == theirs.labels.tolist()
        assert list(ours.files) == list(theirs.files) and ours.sizes.tolist() == theirs.sizes.tolist()
        assert ours.fingerprint() == theirs.fingerprint()
        assert all(np.array_equal(ours.image(i), theirs.image(i)) for i in range(len(theirs)))
        part = pickle.loads(pickle.dumps(ours.select(np.array([3, 1]))))
        assert np.array_equal(part.image(1), theirs.image(1)) and part.files == [theirs.files[3], theirs.files[1]]
    assert {s: i.fingerprint for s, i in inventories(other).items()} == {
        s: i.fingerprint for s, i in inventories(folder).items()
    }
    counts = [
        dataclasses.replace(resolve_class_list(d, str(tmp_path / form)), root="", table="") for d in (folder, other)
    ]
    assert counts[0] == counts[1] and counts[0].num_train == 15 and counts[0].num_eval == 6
    assert describe_survey(other) == [f"data: birds: 3 classes, 15 + 6 images in {root}: {recognised}"]
