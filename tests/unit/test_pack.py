"""Packs: the same images at a smaller size, resumable, and refused where they are not what they should be."""

import dataclasses
import errno
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.cli import pack_task
from vitlab.config import ConfigError, choice, named_after_folder
from vitlab.core import files
from vitlab.core.errors import UserError
from vitlab.data.decode import BadImageError
from vitlab.data.loader import EvalLoader, TrainLoader
from vitlab.data.sources import pack
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.registry import build_source


@pytest.fixture()
def small_shards(monkeypatch):
    for module in (pack, pack_task):
        monkeypatch.setattr(module, "SHARD", 4)


@pytest.fixture()
def tree(tmp_path, small_shards):
    """Two classes, five training and two validation images each, wide and high, larger and smaller than the pack's."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for c in "ab":
            folder = tmp_path / "data" / split / c
            folder.mkdir(parents=True)
            for i in range(count):
                size = (int(rng.integers(24, 90)), int(rng.integers(24, 90)), 3)
                Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture()
def packed(tree, compose_config):
    """`packed("key=value", …)` → the lines that task=pack prints, for the tree into the folder `pack` next to it."""

    def run(*more):
        return pack_task.run_pack(
            compose_config(
                "task=pack", "dataset=folder", f"dataset.root={tree}", f"pack.path={tree.parent / 'pack'}",
                "pack.shorter_side=32", f"output_dir={tree.parent / 'runs'}", "workers=0", *more,
            )
        )  # fmt: skip

    return run


def dataset_of(tree, **changes):
    dataset = dataclasses.replace(choice("dataset", "folder"), pack=str(tree.parent / "pack"), **changes)
    return resolve_class_list(named_after_folder(dataset), str(tree.parent / "other"))


def from_files(tree):
    dataset = dataclasses.replace(choice("dataset", "folder"), root=str(tree))
    return resolve_class_list(named_after_folder(dataset), str(tree.parent / "r"))


def test_a_pack_holds_the_images_at_its_size(tree, packed):
    assert "10 + 4 images" in packed()[0]
    dataset = dataset_of(tree)
    assert (dataset.num_classes, dataset.num_train, dataset.num_eval) == (2, 10, 4), "known without the images"
    for split in ("train", "eval"):
        ours, files = build_source(dataset, split), build_source(from_files(tree), split)
        assert np.array_equal(ours.labels, files.labels) and ours.classes == files.classes
        for i in range(len(files)):
            image, original = ours.image(i), files.image(i)
            assert min(image.shape[:2]) == min(32, *original.shape[:2])
            height, width = image.shape[:2]
            by_pillow = Image.fromarray(original).resize((width, height), Image.Resampling.BICUBIC)
            assert np.abs(image.astype(int) - np.asarray(by_pillow)).max() <= 2


def test_a_pack_is_trained_and_evaluated_from(tree, packed):
    packed("pack.shorter_side=256")
    recipe = dataclasses.replace(choice("recipe", "quick"), batch_size=5)
    batches = []
    for dataset in (dataset_of(tree), from_files(tree)):
        loader = TrainLoader(
            build_source(dataset, "train"), dataset, choice("augment", "none"), recipe, image_size=24, seed=0, rank=0,
            world=1, workers=2, micro_batch=5, device=torch.device("cpu"),
        )  # fmt: skip
        held = EvalLoader(
            build_source(dataset, "eval"), dataset, image_size=24, rank=0, world=1, workers=0, batch=4,
            device=torch.device("cpu"),
        )  # fmt: skip
        batches.append([batch.images for step in loader.epoch(0) for batch in step] + [b.images for b in held])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True)), "nothing shrunk: the very same crops"


def test_parts_of_a_packed_data_set_are_those_of_the_files(tree, packed):
    packed("pack.shorter_side=256")
    for changes in ({"val_fraction": 0.2}, {"train_per_class": 2}):
        ours = build_source(dataset_of(tree, **changes), "train")
        files = build_source(dataclasses.replace(from_files(tree), **changes), "train")
        assert len(ours) == len(files) < 10
        assert all(np.array_equal(ours.image(i), files.image(i)) for i in range(len(files)))


def test_a_killed_pack_goes_on_and_a_second_run_verifies(tree, packed, monkeypatch):
    whole = tree.parent / "pack"
    packed()
    contents = {f.name: f.read_bytes() for f in whole.iterdir()}
    shutil.rmtree(whole)
    write, written = pack_task._write_shard, []

    def killed(job):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(job.number)
        return write(job)

    monkeypatch.setattr(pack_task, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        packed()
    assert not (whole / "manifest.json").exists()
    before = (whole / "train-00001.bin").stat().st_mtime_ns
    monkeypatch.setattr(pack_task, "_write_shard", write)
    packed()
    assert (whole / "train-00001.bin").stat().st_mtime_ns == before, "a whole shard is kept"
    flipped = bytearray(contents["train-00000.bin"])
    flipped[5] ^= 1
    (whole / "train-00000.bin").write_bytes(flipped)
    packed()
    assert {f.name: f.read_bytes() for f in whole.iterdir() if f.suffix != ".npz"} == {
        name: content for name, content in contents.items() if not name.endswith(".npz")
    }, "a flipped bit is found by the digest and repaired"


def test_processes_write_the_same_pack(tree, packed):
    packed()
    alone = json.loads((tree.parent / "pack" / "manifest.json").read_text(encoding="utf-8"))
    shutil.rmtree(tree.parent / "pack")
    packed("workers=2")
    assert json.loads((tree.parent / "pack" / "manifest.json").read_text(encoding="utf-8")) == alone


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "train-00001.bin").write_bytes(b"short"), r"train-00001\.bin is 5 bytes long, it was \d+"),
        (lambda p: (p / "eval-00000.bin").unlink(), r"eval-00000\.bin is missing"),
        (
            lambda p: (p / "manifest.json").write_text('{"format": 1', encoding="utf-8"),
            r"manifest\.json is no manifest of a pack",
        ),
        (lambda p: (p / "manifest.json").unlink(), r"no manifest\.json .*task=pack"),
        (lambda p: (p / "train.npz").write_bytes(b"PK"), r"train\.npz cannot be read"),
    ],
    ids=["truncated", "missing file", "broken manifest", "no manifest", "broken index"],
)
def test_a_damaged_pack_is_described(tree, packed, damage, message):
    packed()
    dataset = dataset_of(tree)
    damage(tree.parent / "pack")
    with pytest.raises(ConfigError, match=message):
        build_source(dataset, "train")
        build_source(dataset, "eval")


def test_a_pack_of_other_data_is_refused(tree, packed, compose_config):
    packed()
    with pytest.raises(ConfigError, match=r"made of 'data', not of 'imagenet100'"):
        build_source(dataset_of(tree, name="imagenet100"), "train")
    with pytest.raises(ConfigError, match=r"pack has 10 training images, not 11"):
        build_source(dataclasses.replace(dataset_of(tree), num_train=11), "train")
    with pytest.raises(ConfigError, match=r"planned with 0123"):
        build_source(dataclasses.replace(dataset_of(tree), pack_id="0123"), "train")
    with pytest.raises(ConfigError, match=r"other images, sizes or pixels"):
        packed("pack.shorter_side=28")
    (tree.parent / "pack" / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"dataset\.pack: .*no manifest of a pack"):
        compose_config("dataset=folder", f"dataset.pack={tree.parent / 'pack'}")


def test_a_full_disk_is_said(tree, packed, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    packed()
    (tree.parent / "pack" / "train-00000.json").unlink()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"pack\.path: .*No space left.*make room and run the same command"):
        packed()
    monkeypatch.undo()


def test_bad_images_are_named_or_left_out(tree, packed):
    file = tree / "train" / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadImageError, match=r"a/1\.png.*dataset\.bad_images=skip"):
        packed()
    assert "1 bad ones left out" in packed("dataset.bad_images=skip")[-2]
    source = build_source(dataset_of(tree), "train")
    with pytest.raises(BadImageError, match=r"a/1\.png"):
        source.image(1)
    assert source.image(2).shape[2] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=digits"], r"pack\.path: give a folder"),
        (["dataset=fractaldb60", "pack.path=x"], "needs no pack"),
        (["dataset=digits", "pack.path=x", "pack.shorter_side=0"], r"pack\.shorter_side: got 0"),
        (["dataset=digits", "pack.path=x", "+pack.size=3"], r"pack\.size: no such key"),
    ],
)
def test_options_that_cannot_be_carried_out(compose_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        pack_task.run_pack(compose_config("task=pack", *overrides))


def test_the_packs_fingerprint_is_part_of_the_cell(tree, packed, compose_config):
    packed()
    manifest = json.loads((tree.parent / "pack" / "manifest.json").read_text(encoding="utf-8"))
    config = compose_config("dataset=folder", f"dataset.pack={tree.parent / 'pack'}")
    assert config.cell.dataset.pack_id == manifest["fingerprint"]


def test_a_pack_holds_the_pixels_that_the_data_set_asks_for(tree, packed):
    """Upright photos and grey of 16 bits; a pack made otherwise is refused, in its reading and its making."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in (tree / "train" / "a").iterdir():
        Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(file, exif=exif)
    Image.fromarray(np.full((20, 30), 51 * 257, np.uint16)).save(tree / "train" / "a" / "0.png")
    lines = packed("dataset.exif=apply")
    assert "note: 4 of 14 images carry an EXIF rotation, which is applied" in lines
    source = build_source(dataset_of(tree, exif="apply"), "train")
    assert [source.image(i).shape for i in (0, 1)] == [(20, 30, 3), (30, 20, 3)]
    assert source.image(0).min() == source.image(0).max() == 51
    with pytest.raises(ConfigError, match=r"dataset\.exif: .* was packed with apply, not with ignore; give"):
        build_source(dataset_of(tree), "train")
    with pytest.raises(ConfigError, match=r"dataset\.grey16: .* was packed with range, not with minmax"):
        build_source(dataset_of(tree, exif="apply", grey16="minmax"), "train")
    with pytest.raises(ConfigError, match="other images, sizes or pixels"):
        packed()


def test_a_pack_of_plain_pixels_says_nothing_of_them(tree, packed):
    """Its fingerprint, and so the identity of every cell trained from it, is that of packs made before."""
    packed()
    manifest = json.loads((tree.parent / "pack" / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest) == {"format", "dataset", "shorter_side", "classes", "splits", "fingerprint"}
    origin = json.loads((tree.parent / "pack" / "train-00000.json").read_text(encoding="utf-8"))["origin"]
    assert origin.endswith(" at 32")
