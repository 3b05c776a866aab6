"""What is on the disk: fingerprints that change with the data, and only with them; differences that are named."""

import dataclasses
import errno
import hashlib
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vitlab.config import ConfigError, DatasetConfig, choice
from vitlab.core.integrity import Fingerprint, fingerprint_from
from vitlab.data.sources import listing, on_disk
from vitlab.data.sources.inventory import item_differences, load_items, save_items
from vitlab.data.sources.on_disk import inventories, take_inventory

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture()
def tree(tmp_path):
    """Two classes with names as people have them; bytes, not pictures, which nothing here decodes."""
    for split, count in (("train", 5), ("val", 2)):
        for name in ("gull été", "tern"):
            folder = tmp_path / "birds" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.JPG").write_bytes(bytes([i]) * (1000 + i))
    return tmp_path / "birds"


def birds(tree, **changes):
    return DatasetConfig("birds", "folder", root=str(tree), **changes)


def settle(folder):
    """Give everything below `folder` a time that has passed, so that caches take it."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("kind", ["contents", "fingerprints"])
def test_a_cache_on_a_full_disk_is_done_without(kind, tree, tmp_path, monkeypatch):
    settle(tree)
    data = birds(tree, verify="contents") if kind == "contents" else choice("dataset", "digits")
    expected = {split: found.fingerprint for split, found in inventories(data).items()}
    shutil.rmtree(tmp_path / "cache")
    refused = []

    def full(_):
        refused.append(True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert {split: found.fingerprint for split, found in inventories(data).items()} == expected and refused
    assert not list(tmp_path.glob("cache/*/*"))


def test_a_copy_elsewhere_is_the_same_and_splits_are_apart(tree, tmp_path):
    found = inventories(birds(tree))
    copied = inventories(birds(shutil.copytree(tree, tmp_path / "other")))
    assert {s: i.fingerprint for s, i in found.items()} == {s: i.fingerprint for s, i in copied.items()}
    assert [found[s].fingerprint.images for s in ("train", "eval")] == [10, 4]
    assert found["train"].fingerprint != found["eval"].fingerprint
    assert found["train"].items().names[0] == "gull été/0.JPG"


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda t: (t / "train/tern/0.JPG").write_bytes(b"x" * 1377), "tern/0.JPG (1,000 bytes then, 1,377 now)"),
        (lambda t: (t / "train/tern/0.JPG").write_bytes(b"x" * 1000), "tern/0.JPG (other contents)"),
        (lambda t: (t / "train/tern/0.JPG").unlink(), "tern/0.JPG (gone)"),
        (lambda t: (t / "train/tern/9.png").write_bytes(b"x"), "tern/9.png (added)"),
    ],
    ids=["size", "contents", "gone", "added"],
)
def test_one_changed_file_changes_one_split_and_is_named(tree, change, phrase):
    before = inventories(birds(tree))
    change(tree)
    after = inventories(birds(tree))
    assert not before["train"].fingerprint.agrees(after["train"].fingerprint)
    assert before["eval"].fingerprint == after["eval"].fingerprint
    assert item_differences(before["train"].items(), after["train"].items()) == [phrase]


def test_what_is_no_image_does_not_count(tree):
    before = inventories(birds(tree))
    (tree / "train/tern/notes.txt").write_text("hello", encoding="utf-8")
    (tree / "train/tern/.DS_Store").write_text("", encoding="utf-8")
    settle(tree)
    assert inventories(birds(tree))["train"].fingerprint == before["train"].fingerprint


def test_bytes_outside_the_sample_are_seen_by_contents_alone(tree, monkeypatch):
    monkeypatch.setattr("vitlab.data.sources.inventory.SAMPLE", 2)
    sizes, contents = birds(tree), birds(tree, verify="contents")
    before = take_inventory(sizes, "train").fingerprint, take_inventory(contents, "train")
    (tree / "train/gull été/3.JPG").write_bytes(b"y" * 1003)
    after = take_inventory(sizes, "train").fingerprint, take_inventory(contents, "train")
    assert before[0] == after[0], "names, sizes and the sample's ends are the same"
    assert not before[1].fingerprint.agrees(after[1].fingerprint) and before[0].agrees(after[1].fingerprint)
    assert item_differences(before[1].items(), after[1].items()) == ["gull été/3.JPG (other contents)"]


def test_contents_are_read_once_while_size_and_time_stay(tree, monkeypatch):
    settle(tree)
    data = birds(tree, verify="contents")
    before = take_inventory(data, "train").fingerprint
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, kind: read.append(stream.name) or digest(stream, kind))
    assert take_inventory(data, "train").fingerprint == before and not read
    (tree / "train/tern/1.JPG").write_bytes(b"z" * 1001)
    assert take_inventory(data, "train").fingerprint != before
    assert [os.path.basename(name) for name in read] == ["1.JPG"]
    for file in (tree.parent / "cache" / "contents").iterdir():
        file.write_bytes(b"damaged")
    read.clear()
    take_inventory(data, "train")
    assert len(read) == 10, "a damaged cache is read as none"


def test_a_cached_listing_is_checked_against_the_disk(tree, monkeypatch):
    """A file overwritten in place changes no folder's time: the sizes of files drawn at random are looked at."""
    monkeypatch.setattr(listing, "CACHE_FROM", 1)
    settle(tree)
    before = take_inventory(birds(tree), "train").fingerprint
    with (tree / "train/tern/2.JPG").open("r+b") as stream:
        stream.truncate(5)
    assert take_inventory(birds(tree), "train").fingerprint != before
    settle(tree)
    assert take_inventory(birds(tree), "train").fingerprint != before, "the listing in the cache is a new one"
    monkeypatch.setattr(on_disk, "LOOKS", 0)
    known = take_inventory(birds(tree), "train").fingerprint
    with (tree / "train/tern/2.JPG").open("r+b") as stream:
        stream.truncate(4)
    assert take_inventory(birds(tree), "train").fingerprint.names == known.names, "what the looks are for"
    assert take_inventory(birds(tree, verify="contents"), "train").fingerprint.names != known.names


def test_images_set_aside_are_those_of_the_training_split(tree):
    found = inventories(birds(tree, val_fraction=0.2))
    assert found["eval"].fingerprint == found["train"].fingerprint
    assert set(inventories(birds(tree, num_eval=0))) == {"train"}


def test_images_in_memory_are_read_once(monkeypatch, tmp_path):
    digits = choice("dataset", "digits")
    first = inventories(digits)
    assert first["train"].fingerprint.contents and first["train"].fingerprint != first["eval"].fingerprint
    monkeypatch.setattr("vitlab.data.sources.registry.load_split", None)
    again = inventories(dataclasses.replace(digits, hflip=0.5))
    assert {s: i.fingerprint for s, i in again.items()} == {s: i.fingerprint for s, i in first.items()}


def test_other_files_of_the_same_names_are_other_images(tmp_path):
    """Fashion-MNIST's files replaced by another set in its format, such as KMNIST."""
    rng = np.random.default_rng(0)
    known = choice("dataset", "fashion_mnist")
    data = dataclasses.replace(known, root=str(tmp_path), num_train=20, num_eval=10)
    found = []
    for value in (3, 4):
        for name, count in (("train", 20), ("t10k", 10)):
            images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
            images[0], labels = value, np.arange(count, dtype=np.uint8) % 10
            for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
                (tmp_path / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())
        settle(tmp_path)
        os.utime(tmp_path / "train-images-idx3-ubyte", (1e9 + value, 1e9 + value))
        inventory = inventories(data)["train"]
        found.append((inventory.fingerprint, inventory.items()))
    (before, old), (after, new) = found
    assert before.names == after.names and not before.agrees(after)
    phrases = item_differences(old, new)
    assert len(phrases) == 20 and phrases[3] == "image 3 (other contents)"


def test_a_rendered_data_set_is_its_options():
    fractal = dataclasses.replace(choice("dataset", "fractaldb60"), num_eval=0)
    other = dataclasses.replace(fractal, fractal=dataclasses.replace(fractal.fractal, mask_seed=7))
    prints = [inventories(d)["train"].fingerprint for d in (fractal, fractal, other)]
    assert prints[0] == prints[1] != prints[2]


def test_a_packs_bytes_are_compared_with_its_manifest(tree, tmp_path, compose_config):
    from vitlab.cli.pack_task import run_pack

    for file in tree.rglob("*.JPG"):
        Image.new("RGB", (20, 20), (len(file.name), 0, 0)).save(file)
    pack = tmp_path / "pack"
    run_pack(compose_config("task=pack", "dataset=folder", f"dataset.root={tree}", f"pack.path={pack}", "workers=0",
                            f"output_dir={tmp_path / 'runs'}"))  # fmt: skip
    data = DatasetConfig("birds", "folder", pack=str(pack), verify="contents")
    before = inventories(data)["train"].fingerprint
    shard = next(pack.glob("train-*.bin"))
    with shard.open("r+b") as stream:
        stream.write(b"\xff\xfe\xfd")
    assert inventories(dataclasses.replace(data, verify="sizes"))["train"].fingerprint == before
    with pytest.raises(ConfigError, match=r"dataset\.pack: the bytes of .*train-00000\.bin are not those"):
        inventories(data)


def test_lists_of_images_survive_the_disk(tree, tmp_path):
    inventory = take_inventory(birds(tree, verify="contents"), "train")
    save_items(tmp_path / "files", inventory)
    loaded = load_items(tmp_path / "files", inventory.fingerprint)
    assert loaded and loaded.names == inventory.items().names and not item_differences(loaded, inventory.items())
    plain = inventory.fingerprint.plain()
    assert fingerprint_from(plain) == inventory.fingerprint
    next((tmp_path / "files").iterdir()).write_bytes(b"no archive")
    assert load_items(tmp_path / "files", inventory.fingerprint) is None
    for wrong in ({}, {"images": "x", "names": 1}, None, [1]):
        with pytest.raises(ValueError, match="no fingerprint"):
            fingerprint_from(wrong)


def test_a_name_that_is_no_text_is_listed(tree):
    (tree / "train/tern" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    found = take_inventory(birds(tree), "train")
    assert found.fingerprint.images == 11


def test_agreement_needs_what_both_know():
    known = Fingerprint(2, "a", "b", "c")
    assert known.agrees(Fingerprint(2, "a", None, None)) and known.agrees(Fingerprint(2, "a", "b", "c"))
    assert not known.agrees(Fingerprint(2, "a", "b", "d")) and not known.agrees(Fingerprint(2, "b", "b", "c"))
