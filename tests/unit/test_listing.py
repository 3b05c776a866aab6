"""A tree is walked once and known from a cache, until a folder in it changes."""

from __future__ import annotations

import os

import numpy as np
import pytest

from vitlab.data.sources import listing
from vitlab.data.sources.listing import list_tree


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
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "file"))
    assert len(list_tree(tree, ["cat", "dog"]).files) == 5
