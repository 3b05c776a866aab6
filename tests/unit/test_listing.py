"""A tree is walked once and known from a cache, until a folder in it changes."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from vitlab.config import ConfigError
from vitlab.data.sources import listing
from vitlab.data.sources.listing import find_images, glance, is_image, list_tree


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "CACHE_FROM", 1)
    for name, count in (("cat", 2), ("dog", 3)):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{i}.JPG").write_bytes(b"x" * (10 + i))
        (folder / ".hidden.jpg").write_bytes(b"x")
        (folder / "notes.txt").write_bytes(b"x")
        age(folder)
    return tmp_path / "train"


def age(folder):
    """Set the folder's modification time far enough back that it is trusted."""
    os.utime(folder, ns=(10**18, 10**18 + folder.stat().st_mtime_ns % 10**9))


def no_walk(folder):
    raise AssertionError(f"{folder} was walked")


def test_images_are_listed_by_class_with_their_sizes(tree):
    found = list_tree(tree, ["cat", "dog"])
    assert found.files == ["cat/0.JPG", "cat/1.JPG", "dog/0.JPG", "dog/1.JPG", "dog/2.JPG"]
    assert found.labels.tolist() == [0, 0, 1, 1, 1] and found.sizes.tolist() == [10, 11, 10, 11, 12]


def test_a_second_walk_is_not_made(tree, monkeypatch):
    first = list_tree(tree, ["cat", "dog"])
    monkeypatch.setattr(listing, "_walk", no_walk)
    again = list_tree(tree, ["cat", "dog"])
    assert again.files == first.files
    np.testing.assert_array_equal(again.labels, first.labels)
    np.testing.assert_array_equal(again.sizes, first.sizes)


def test_a_changed_folder_is_walked_again(tree):
    list_tree(tree, ["cat", "dog"])
    (tree / "cat" / "9.png").write_bytes(b"x")
    assert "cat/9.png" in list_tree(tree, ["cat", "dog"]).files


def test_other_classes_are_another_listing(tree):
    list_tree(tree, ["cat", "dog"])
    assert list_tree(tree, ["dog"]).files == ["dog/0.JPG", "dog/1.JPG", "dog/2.JPG"]


def test_a_folder_that_has_just_changed_is_not_trusted(tree, monkeypatch):
    (tree / "cat" / "9.png").write_bytes(b"x")
    list_tree(tree, ["cat", "dog"])
    monkeypatch.setattr(listing, "_walk", no_walk)
    with pytest.raises(AssertionError, match="was walked"):
        list_tree(tree, ["cat", "dog"])


def test_a_damaged_cache_is_made_anew(tree, tmp_path):
    list_tree(tree, ["cat", "dog"])
    (file,) = (tmp_path / "cache" / "listings").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    assert len(list_tree(tree, ["cat", "dog"]).files) == 5
    file.write_bytes(b"")
    assert len(list_tree(tree, ["cat", "dog"]).files) == 5


def test_a_cache_that_cannot_be_written_is_done_without(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "file"))
    assert len(list_tree(tree, ["cat", "dog"]).files) == 5


def test_a_cache_on_a_full_disk_is_done_without(tree, monkeypatch):
    for name in ("cat", "dog"):
        age(tree / name)
    refused = []

    def full(_):
        refused.append(True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert len(list_tree(tree, ["cat", "dog"]).files) == 5 and refused


def test_what_is_left_out_is_counted_by_its_extension(tree, monkeypatch):
    for name in ("a.HEIC", "b.heic", "c.npy", "noextension", "two.tar.gz", ".DS_Store"):
        (tree / "cat" / name).write_bytes(b"x")
    (tree / "dog" / "more").mkdir()
    (tree / "dog" / "more" / "d.heic").write_bytes(b"x")
    for name in ("cat", "dog", "dog/more"):
        age(tree / name)
    counted = {"": 1, ".gz": 1, ".heic": 3, ".npy": 1, ".txt": 2}
    assert list_tree(tree, ["cat", "dog"]).left_out == counted
    monkeypatch.setattr(listing, "_walk", no_walk)
    assert list_tree(tree, ["cat", "dog"]).left_out == counted, "also from the cache"


def test_avif_is_taken_where_pillow_reads_it(tree, monkeypatch):
    (tree / "cat" / "x.AVIF").write_bytes(b"x")
    (tree / "cat" / "y.jfif").write_bytes(b"x")
    age(tree / "cat")
    monkeypatch.setattr(listing, "reads_avif", lambda: True)
    assert is_image("y.jfif") and list_tree(tree, ["cat"]).files == [
        "cat/0.JPG",
        "cat/1.JPG",
        "cat/x.AVIF",
        "cat/y.jfif",
    ]
    monkeypatch.setattr(listing, "reads_avif", lambda: False)
    assert list_tree(tree, ["cat"]).files == ["cat/0.JPG", "cat/1.JPG", "cat/y.jfif"], "a walk of another Pillow's"
    assert list_tree(tree, ["cat"]).left_out == {".avif": 1, ".txt": 1}


def test_a_glance_at_a_large_tree_is_content_with_some_classes(tree, monkeypatch):
    for i in range(50):
        (tree / f"class{i:02}").mkdir()
        (tree / f"class{i:02}" / "a.png").write_bytes(b"x")
    classes = sorted(p.name for p in tree.iterdir())
    monkeypatch.setattr(listing, "CACHE_FROM", 10**9)
    assert glance(tree, classes)[1] == 52 and glance(tree, classes)[0].files == list_tree(tree, classes).files
    monkeypatch.setattr(listing, "GLANCE", 10)
    some, looked_at = glance(tree, classes)
    assert looked_at < 12 and 10 <= len(some.files) < 15 and some.files[0] < "class10" < "class40" < some.files[-1]
    monkeypatch.setattr(listing, "CACHE_FROM", 1)
    for name in classes:
        age(tree / name)
    list_tree(tree, classes)
    assert glance(tree, classes)[1] == 52, "the walk is in the cache"


def test_pictures_by_file_folder_and_pattern(tree):
    assert [f.name for f in find_images(str(tree / "cat"), "preview.images")] == ["0.JPG", "1.JPG"]
    assert len(find_images(str(tree / "*" / "*.JPG"), "preview.images")) == 5
    with pytest.raises(ConfigError, match=r"preview\.images: no image at 'nowhere/\*'"):
        find_images("nowhere/*", "preview.images")
