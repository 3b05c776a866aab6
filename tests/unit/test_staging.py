"""A staged data set is the same data set, read from whole copies, which one process of a node makes and repairs."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
from forms import image_net_org, kaggle, parquet, table, tar_of_each_split, webdataset
from staging_lab import birds, copied, cut_small, draw_numbered, draw_shards, noted, screen, stage, total

from vitlab.cli.pack_task import run_pack
from vitlab.config import ConfigError
from vitlab.core.errors import UserError
from vitlab.data.sources import index, staged_file, staging
from vitlab.data.sources.claims import require_data
from vitlab.data.sources.on_disk import inventories
from vitlab.data.sources.registry import build_source
from vitlab.data.sources.staging import stage_folder, staged
from vitlab.study.identity import identity
from vitlab.study.preflight import check_requests
from vitlab.train.events import EpochEnded, Interrupted, Staged, Started
from vitlab.train.loop import fit

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    cut_small(monkeypatch)
    return draw_numbered(tmp_path)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    return draw_shards(tmp_path, monkeypatch)


def packed(compose, root, folder, *more):
    run_pack(compose("task=pack", *more, "dataset=folder", "dataset.name=birds", "workers=0", f"dataset.root={root}",
                     f"pack.path={folder}", f"output_dir={folder}_runs"))  # fmt: skip
    return folder


FORMS = {
    "shards": webdataset, "a tar of each split": tar_of_each_split, "image-net.org's": image_net_org,
    "parquet": parquet, "a pack of files": None, "a pack": None,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_staged_images_are_those_of_the_data_set(form, tree, tmp_path, compose_config):
    other = tmp_path / "other"
    more = ["pack.format=files"] if form == "a pack of files" else ["pack.shorter_side=16"]
    root = make(tree, other) if (make := FORMS[form]) else packed(compose_config, tree, other, *more)
    dataset = birds(root, tmp_path / "disk" / "me")
    if form == "a pack":
        dataset = dataclasses.replace(dataset, root=None, pack=str(root))
    plain = dataclasses.replace(dataset, stage=None)
    require_data(dataset)
    copies, said = stage(dataset)
    assert len(screen(said)) == 2 and screen(said)[0].startswith("copying ") and "read them back" in screen(said)[1]
    sources = [(build_source(dataset, split, copies), build_source(plain, split)) for split in ("train", "eval")]
    expected = [[np.array(plain.image(i)) for i in range(len(plain))] for _, plain in sources]
    fingerprints = [(ours.fingerprint(), plain.fingerprint()) for ours, plain in sources]
    assert {s: i.fingerprint for s, i in inventories(dataset).items()} == {
        s: i.fingerprint for s, i in inventories(plain).items()
    }
    for file in root.rglob("*"):  # nothing is read from the originals any more
        if file.suffix in (".tar", ".parquet", ".bin"):
            file.write_bytes(b"")
    for (ours, _), images, (one, two) in zip(sources, expected, fingerprints, strict=True):
        assert one == two and len(ours) == len(images) > 5
        part = ours.select(np.array([4, 1]))
        assert all(np.array_equal(ours.image(i), image) for i, image in enumerate(images))
        assert np.array_equal(part.image(1), images[1]) and np.array_equal(part.image(0), images[4])


def test_a_second_process_finds_everything_there(shards, tmp_path):
    dataset = birds(shards, tmp_path / "disk")
    first, said = stage(dataset)
    (folder,) = (tmp_path / "disk").iterdir()
    assert "copying 4 files, " in screen(said)[0] and f"of birds to {folder}" in screen(said)[0]
    again, said = stage(dataset)
    assert again == first and screen(said) == []
    assert said == [("log", f"birds is read from {folder} (4 files, {total(shards) / 1e3:,.1f} KB)")]
    for original, copy in first.items():
        assert Path(original.path).read_bytes() == Path(copy.path).read_bytes()
        assert original.modified == copy.modified
    assert not list(folder.glob("*.part"))


def test_only_the_files_of_the_splits_that_are_read_are_copied(shards, tmp_path):
    copies, _ = stage(birds(shards, tmp_path / "disk", val_fraction=0.2))
    assert sorted(Path(original.path).name for original in copies) == ["birds-train-0000.tar", "birds-train-0001.tar"]


@pytest.mark.parametrize("make", [lambda t, to: t, kaggle, table], ids=["class folders", "Kaggle's", "a table"])
def test_a_tree_of_loose_files_is_refused_with_what_to_type(make, tree, tmp_path, compose_config, requests_for):
    root = make(tree, tmp_path / "other")
    words = ["dataset=folder", "dataset.name=birds", f"dataset.root={root}", "device=cpu",
             f"dataset.stage={tmp_path / 'disk'}", f"output_dir={tmp_path / 'runs'}", "wandb.mode=disabled",
             "recipe.batch_size=4"]  # fmt: skip
    words += [f"dataset.table={root / 'labels.csv'}"] if (root / "labels.csv").exists() else []
    with pytest.raises(ConfigError, match=r"dataset\.stage: the 24 images in .* are a file each") as error:
        check_requests(requests_for(words), say=lambda line: None)  # on a login node too
    assert "task=pack pack.format=files pack.path=FOLDER" in str(error.value) and not (tmp_path / "disk").exists()
    with pytest.raises(ConfigError, match="a file each"):
        require_data(compose_config(*words).cell.dataset)
    more = [word for word in words if "table=" in word]
    pack = packed(compose_config, root, tmp_path / "pack", "pack.format=files", *more)
    assert len(stage(birds(pack, tmp_path / "disk"))[0]) == 2


BAD = {
    "disk": "got 'disk', which is no whole path",
    "": "got '', which is no whole path",
    "./disk": "got './disk', which is no whole path",
    "$NO_SUCH/x": "got '$NO_SUCH/x', and the environment has no variable NO_SUCH",
    "$SOME/x": "'$SOME/x' is 'here/x' here; give a whole path",
    "HERE/shards": "HERE/shards is the folder of the data set",
    "HERE/shards/a/b": "HERE/shards/a/b lies in the data set, HERE/shards; give a folder of a disk of the node's own",
    "HERE/link/a": "HERE/link/a lies in the data set, HERE/shards",
    "HERE/cache/../shards": "HERE/cache/../shards is the folder of the data set",
    "HERE/file": "HERE/file is no folder",
    "HERE/file/below": "HERE/file is no folder",
    "HERE/dangling/below": "HERE/dangling is no folder",
}


@pytest.mark.parametrize("given", BAD)
def test_a_folder_that_cannot_be(given, shards, tmp_path, compose_config, monkeypatch):
    monkeypatch.setenv("SOME", "here")
    monkeypatch.delenv("NO_SUCH", raising=False)
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to(shards)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    stage, wanted = (text.replace("HERE", str(tmp_path)) for text in (given, BAD[given]))
    with pytest.raises(ConfigError) as error:
        require_data(
            compose_config("dataset=folder", f"dataset.root={shards}", f"dataset.stage='{stage}'").cell.dataset
        )
    assert str(error.value).startswith(f"dataset.stage: {wanted}")


def test_a_folder_of_another_user(shards, tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    with monkeypatch.context() as other:
        other.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
        with pytest.raises(ConfigError, match=r"theirs is not this user's to write in; give a folder of your own"):
            require_data(birds(shards, tmp_path / "theirs"))
    copies, _ = stage(birds(shards, tmp_path / "theirs"))
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
    assert stage(birds(shards, tmp_path / "theirs"))[0] == copies, "whole copies of another user's are read"


def test_a_disk_that_is_too_small_is_found_before_anything_is_copied(shards, tmp_path, monkeypatch):
    dataset = birds(shards, tmp_path / "disk")
    monkeypatch.setattr(staging, "free_space", lambda folder: total(shards) - 1)
    wanted = r"dataset\.stage: 4 files, .* of which .* are not there yet, and .* are free; make room"
    with pytest.raises(ConfigError, match=wanted):
        require_data(dataset)
    assert not (tmp_path / "disk").exists()
    with pytest.raises(ConfigError, match=wanted):
        stage(dataset)
    assert not list((tmp_path / "disk").rglob("*.part"))
    monkeypatch.setattr(staging, "free_space", lambda folder: total(shards))
    stage(dataset)
    monkeypatch.setattr(staging, "free_space", lambda folder: 0)
    require_data(dataset)
    assert copied(dataset) == 0, "what is there needs no room"


def test_who_only_waits_copies_nothing(shards, tmp_path):
    dataset = birds(shards, tmp_path / "disk")
    reports = staged(dataset, ("train",), copying=False)
    assert next(reports).text.startswith("waiting for the process that copies birds")
    assert not (tmp_path / "disk").exists()
    copies, _ = stage(dataset)
    with pytest.raises(StopIteration) as end:
        while True:
            next(reports)
    assert end.value.value.keys() < copies.keys()


def test_who_waits_is_told_where_the_data_set_changes(shards, tmp_path):
    dataset = birds(shards, tmp_path / "disk")
    reports = staged(dataset, ("train",), copying=False)
    next(reports)
    os.utime(shards / "birds-train-0001.tar", (1, 1))
    with pytest.raises(UserError, match=r"birds-train-0001\.tar was replaced while it was copied"):
        next(reports)


def test_of_another_state_of_the_data_set_no_copy_is_read(shards, tmp_path):
    dataset = birds(shards, tmp_path / "disk")
    copies, _ = stage(dataset)
    file = shards / "birds-train-0000.tar"
    file.write_bytes((shards / "birds-train-0001.tar").read_bytes())  # its names are those of the other
    (shards / "birds-train-0001.tar").unlink()
    index._remembered.cache_clear()
    now, plain = build_source(dataset, "train", copies), build_source(dataset, "train")
    assert 0 < len(now) < 24
    assert all(np.array_equal(now.image(i), plain.image(i)) for i in range(len(plain)))


def configured(compose_config, root, tmp_path, *more):
    return compose_config(
        "dataset=folder", "dataset.name=birds", f"dataset.root={root}", "dataset.num_classes=3", "dataset.num_train=24",
        "dataset.num_eval=6", "model=vit_micro", "model.image_size=8", "model.patch_size=4", "model.depth=1",
        "recipe.epochs=2", "recipe.warmup_epochs=0", "recipe.batch_size=6", "workers=0", "device=cpu", *more,
    )  # fmt: skip


def test_a_training_from_copies_has_the_same_bits_and_the_same_name(shards, tmp_path, compose_config, monkeypatch):
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "login"))
    plain = configured(compose_config, shards, tmp_path)
    config = configured(compose_config, shards, tmp_path, "dataset.stage='$NODE_DISK/me'")
    assert identity(config.cell) == identity(plain.cell) and config.cell.dataset.stage == "$NODE_DISK/me"
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))  # where the cell runs it is another folder
    results = []
    for number, each in enumerate((plain, config)):
        (tmp_path / str(number)).mkdir()
        events = list(fit(each, each.cell, tmp_path / str(number)))
        rows = [
            {k: v for k, v in e.row.items() if "loss" in k or "top" in k} for e in events if isinstance(e, EpochEnded)
        ]
        results.append((rows, (tmp_path / str(number) / "predictions.npz").read_bytes()))
    assert results[0] == results[1] and len(results[0][0]) == 2
    first = [type(event) for event in events]
    assert first[0] is Staged and first.index(Started) > 1 and not (tmp_path / "login").exists()
    assert stage_folder(config.cell.dataset).parent == tmp_path / "node" / "me"


def test_a_stop_while_copying_keeps_what_was_copied(shards, tmp_path, compose_config, monkeypatch):
    copy = staged_file.StagedFile._copy
    config = configured(compose_config, shards, tmp_path, f"dataset.stage={tmp_path / 'disk'}")
    with monkeypatch.context() as slowly:
        slowly.setattr(staging, "_POLL", 0.05)
        slowly.setattr(staged_file.StagedFile, "_copy", lambda self, block: (time.sleep(0.02), copy(self, block)))
        with pytest.raises(Interrupted, match="before the first step"):
            list(fit(config, config.cell, tmp_path, stop=lambda: noted(tmp_path / "disk") > 8))
    assert 0 < copied(config.cell.dataset) < total(shards) and not (tmp_path / "last.pt").exists()
