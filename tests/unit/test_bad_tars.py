"""Tars that are not what they should be are named, with what is wrong; the index notices every change."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import json
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
from forms import CLASSES, add, draw_tree, one_tar, samples, webdataset
from PIL import Image

from vitlab.config import ConfigError, DatasetConfig
from vitlab.config.parse import named_after_folder
from vitlab.core.errors import UserError
from vitlab.data.crop import Cropping
from vitlab.data.readers import ImageChunks
from vitlab.data.sources import index, tar_files
from vitlab.data.sources.registry import build_source
from vitlab.data.sources.survey import describe_survey
from vitlab.data.sources.tar_files import Tar, scan_tar

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def shards(tmp_path):
    return webdataset(draw_tree(tmp_path / "birds"), tmp_path / "shards", shards=3)


def birds(root, name="birds", **changes):
    return DatasetConfig(name, "folder", root=str(root), **changes)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def rewrite(file, *members, mode="w"):
    """The tar with other members: (name, bytes)."""
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            add(archive, name, content)


def refused(root, **changes) -> str:
    with pytest.raises(ConfigError) as error:
        build_source(birds(root, **changes), "train")
        build_source(birds(root, **changes), "eval")
    return str(error.value)


@pytest.mark.parametrize("end", ["in an image", "after an image"])
def test_a_truncated_tar_is_named_with_the_member(shards, end):
    file = shards / "birds-train-0001.tar"
    with tarfile.open(file) as archive:
        member = archive.getmembers()[3]
    os.truncate(file, member.offset_data + (member.size // 2 if end == "in an image" else -(-member.size // 512) * 512))
    assert f"{file} is cut short or damaged at {member.name} (" in refused(shards)


def test_a_damaged_header_is_no_end(shards):
    file = shards / "birds-train-0001.tar"
    with tarfile.open(file) as archive:
        offset = archive.getmembers()[4].offset
    with file.open("r+b") as stream:
        stream.seek(offset + 10)
        stream.write(b"damage")
    assert "what follows is no header" in refused(shards)


def test_a_compressed_tar_cannot_be_read_by_offset(shards):
    file = shards / "birds-train-0001.tar"
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert f"{file} is compressed" in refused(shards)


def test_a_missing_shard_is_noticed_by_its_number_or_by_the_info(shards, tmp_path):
    (shards / "birds-train-0001.tar").unlink()
    assert "1 of the numbered files is missing: number 1, next to birds-train-0000.tar" in refused(shards)
    timms = webdataset(tmp_path / "birds", tmp_path / "timm", keys="file")
    (timms / "birds-train-0001.tar").unlink()
    assert "birds-train-0001.tar is missing, which" in refused(timms)


def test_a_shard_of_another_length_than_the_info_says(tmp_path):
    timms = webdataset(draw_tree(tmp_path / "birds"), tmp_path / "timm", keys="file")
    rewrite(timms / "birds-train-0001.tar", ("x.png", picture()), ("x.cls", b"0"))
    assert "birds-train-0001.tar holds 1 images, and _info.json says 7" in refused(timms)


def test_a_shard_that_is_replaced_is_indexed_again(shards):
    assert len(build_source(birds(shards), "train")) == 15
    for split in ("train", "validation"):
        os.utime(shards / f"birds-{split}-0000.tar", (1e9, 1e9))
    index._remembered.cache_clear()
    rewrite(shards / "birds-train-0002.tar", ("n01440764/new.png", picture()), ("n01440764/new.cls", b"0"))
    source = build_source(birds(shards), "train")
    assert "n01440764/new.png" in list(source.files) and len(source) == 11


def test_a_shard_that_is_replaced_while_it_is_read_is_an_error(shards):
    source = build_source(birds(shards, bad_images="skip"), "train")
    for file in shards.glob("*train*"):
        file.write_bytes(file.read_bytes() + bytes(512))
    with pytest.raises(UserError, match=r"birds-train-000\d\.tar was replaced while it was in use") as error:
        source.image(0)
    assert type(error.value) is UserError, "no bad image, which could be skipped"
    chunk = ImageChunks(source, Cropping(birds(shards, bad_images="skip"), 8, "bicubic", 0))[
        0, np.arange(2), np.zeros(2)
    ]
    assert "was replaced while it was in use" in str(chunk.images) and not chunk.bad


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("n01440764/a.png", b"x"), ("n01440764/a.cls", b"0")] * 2, r"a\.png is there twice, in \S+0002\.tar;"),
        ([("n01440764/a.png", b"x")], r"0002\.tar: n01440764/a\.png has no label"),
        ([("n01440764/a.png", b"x"), ("n01440764/a.cls", b"70000")], "label .70000. of .* is out of range"),
        ([("n01440764/a.png", b"x"), ("n01440764/a.cls", b"-1")], "the label '-1' of .*out of range"),
        ([("n01440764/a.png", b"x"), ("n01440764/a.cls", b"\xff")], r"0002\.tar: n01440764/a\.cls is no label"),
        ([("n01440764/a.png", b"x"), ("n01440764/a.json", b"{")], r"a\.json is no label"),
    ],
    ids=["twice", "no label", "high", "negative", "no text", "no JSON"],
)  # fmt: skip
def test_labels_that_are_wrong(shards, members, message):
    rewrite(shards / "birds-train-0002.tar", *members)
    assert re.search(message, refused(shards))


def test_what_is_no_image_is_left_out_and_counted(shards):
    more = [("n01440764/notes.txt", b"x"), ("n01440764/z.cls", b"0"), ("__MACOSX/._a.png", b"x"), (".DS_Store", b"x")]
    rewrite(shards / "birds-train-0002.tar", *more, mode="a")
    assert describe_survey(birds(shards))[0].endswith("3 + 3 files; left out: 1 .cls, 1 .txt")
    assert len(build_source(birds(shards), "train")) == 15


def test_a_mask_beside_an_image_is_no_second_image(tmp_path):
    (tmp_path / "s").mkdir()
    rewrite(tmp_path / "s" / "train.tar", *[(f"{i}.{e}", picture()) for i in range(4) for e in ("png", "seg.png")],
            *[(f"{i}.cls", str(i % 2).encode()) for i in range(4)])  # fmt: skip
    source = build_source(birds(tmp_path / "s", num_eval=0), "train")
    assert list(source.files) == ["0/0.png", "0/2.png", "1/1.png", "1/3.png"]


def test_a_file_that_is_no_image_is_bad_where_it_lies(shards):
    rewrite(shards / "birds-train-0002.tar", ("n01440764/a.png", b"no image"), ("n01440764/a.cls", b"0"))
    source = build_source(birds(shards), "train")
    with pytest.raises(UserError, match=r"birds-train-0002\.tar: n01440764/a\.png: not an image"):
        source.image(list(source.files).index("n01440764/a.png"))


def test_classes_without_images_and_classes_of_one_split(tmp_path):
    (tmp_path / "s").mkdir()
    rewrite(tmp_path / "s" / "train.tar", ("a.png", picture()), ("a.cls", b"0"), ("b.png", picture()), ("b.cls", b"2"),
            ("c.png", picture()), ("c.cls", b"2"))  # fmt: skip
    rewrite(tmp_path / "s" / "val.tar", ("a.png", picture()), ("a.cls", b"0"))
    assert "class '1' has no image" in refused(tmp_path / "s")
    rewrite(tmp_path / "s" / "val.tar", ("a.png", picture()), ("a.cls", b"3"))
    assert "the label '3' of" in refused(tmp_path / "s") and "(val) is out of range" in refused(tmp_path / "s")


def test_two_splits_that_disagree_on_classes(tmp_path):
    root = one_tar(draw_tree(tmp_path / "birds"), tmp_path / "birds.tar")
    rewrite(root, ("birds/val/owl/1.png", picture()), mode="a")
    assert "birds.tar: owl/1.png is of class 'owl' in val, which train lacks" in refused(root)


def test_a_test_split_without_labels_is_said_and_no_trouble(shards):
    rewrite(shards / "birds-test-0000.tar", ("1.png", picture()), ("1.cls", b"-1"))
    assert len(build_source(birds(shards), "train")) == 15
    assert "test without labels" in describe_survey(birds(shards))[0]


def test_names_as_people_have_them(tmp_path):
    classes = ("50% $x & y", "gull été", "カモメ")
    tree = draw_tree(tmp_path / "my birds", classes=classes)
    (tmp_path / "s p").mkdir()
    root = one_tar(tree, tmp_path / "s p" / "%d$HOME & 鳥.tar")
    assert build_source(birds(root), "train").fingerprint() == build_source(birds(tree), "train").fingerprint()


def test_there_is_no_split_to_evaluate_on(tmp_path):
    tree = draw_tree(tmp_path / "birds")
    shutil.rmtree(tree / "val")
    root = one_tar(tree, tmp_path / "birds.tar")
    assert re.search(r"no val split in .*birds\.tar' \(it has train\); .*dataset\.val_fraction=0\.1", refused(root))
    assert len(build_source(birds(root, val_fraction=0.2), "eval")) == 3


def test_a_tar_has_the_name_of_its_folder(tmp_path):
    names = [
        named_after_folder(birds(tmp_path / name, name="from_root")).name for name in ("birds", "birds.tar", "v1.2")
    ]
    assert names == ["birds", "birds", "v1.2"]


def test_one_tree_of_classes_in_a_tar(tmp_path):
    tree = draw_tree(tmp_path / "birds")
    root = one_tar(tree / "train", tmp_path / "all.tar")
    folder = birds(tree, val_fraction=0.2)
    assert (
        build_source(birds(root, val_fraction=0.2), "train").fingerprint()
        == build_source(folder, "train").fingerprint()
    )


def test_several_processes_find_the_same(shards, monkeypatch):
    files = sorted(map(str, shards.glob("*.tar")))
    expected = [scan_tar(Tar(file)) for file in files]
    monkeypatch.setattr(tar_files, "LARGE", 0)
    monkeypatch.setattr(tar_files, "usable_cores", lambda: 2)
    assert tar_files.scan_tars([Tar(file) for file in files], "indexing") == expected
    os.truncate(files[0], 700)
    with pytest.raises(ConfigError, match="is cut short or damaged"):
        tar_files.scan_tars([Tar(file) for file in files], "indexing")


def test_the_index_is_kept_and_read_again(shards, tmp_path, monkeypatch):
    for file in shards.iterdir():
        os.utime(file, (1e9, 1e9))
    first = build_source(birds(shards), "train")
    assert len(list((tmp_path / "cache" / "indices").iterdir())) == 1
    index._remembered.cache_clear()
    monkeypatch.setattr(tar_files, "scan_tar", None)
    again = build_source(birds(shards), "train")
    assert again.fingerprint() == first.fingerprint() and again.classes == first.classes == CLASSES
    assert (again.image(7) == first.image(7)).all() and again.content.where(7) == first.content.where(7)


def test_a_cache_that_cannot_be_written_is_said_and_done_without(shards, tmp_path, monkeypatch, capsys):
    for file in shards.iterdir():
        os.utime(file, (1e9, 1e9))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert len(build_source(birds(shards), "train")) == 15
    said = capsys.readouterr().err
    assert f"note: the index of {shards} is not kept" in said and "No space left on device" in said
    assert "VITLAB_CACHE" in said and not list(tmp_path.glob("cache/indices/*"))


def test_a_damaged_index_is_built_again(shards, tmp_path):
    for file in shards.iterdir():
        os.utime(file, (1e9, 1e9))
    first = build_source(birds(shards), "train")
    (kept,) = (tmp_path / "cache" / "indices").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    index._remembered.cache_clear()
    assert build_source(birds(shards), "train").fingerprint() == first.fingerprint()


def test_a_json_alone_labels_too(tmp_path):
    tree = draw_tree(tmp_path / "birds")
    (tmp_path / "s").mkdir()
    for split in ("train", "val"):
        members = []
        for i, (path, _, content) in enumerate(samples(tree, split)):
            about = {"class": path.partition("/")[0], "file_name": path}
            members += [(f"{i:04}.jpg", content), (f"{i:04}.json", json.dumps(about).encode())]
        rewrite(tmp_path / "s" / f"{split}.tar", *members)
    for split in ("train", "eval"):
        one, other = build_source(birds(tmp_path / "s"), split), build_source(birds(tree), split)
        assert one.fingerprint() == other.fingerprint() and one.classes == other.classes


def test_evaluating_needs_no_training_shards(shards, tmp_path):
    whole = build_source(birds(shards), "eval")
    for file in shards.glob("*train*"):
        file.unlink()
    alone = build_source(dataclasses.replace(birds(shards), num_train=None), "eval")
    assert alone.fingerprint() == whole.fingerprint() and alone.classes == whole.classes
