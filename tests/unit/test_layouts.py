"""What `dataset.root` may be: folders of class folders in their usual variants. Containers: test_forms.py."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from vitlab.config import ConfigError, DatasetConfig
from vitlab.data.sources import listing
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.listing import list_tree
from vitlab.data.sources.on_disk import inventories
from vitlab.data.sources.registry import build_source
from vitlab.data.sources.survey import describe_survey

pytestmark = pytest.mark.usefixtures("own_cache")


def draw(folder, *names, first=0):
    """Small images of one grey each, so that every one differs in its bytes."""
    for i, name in enumerate(names, first):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(file)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "birds"
    draw(root / "train" / "gull", "a.png", "session 2/a.png", "session 2/deep/c.png", "session 10/b.png", "z.png")
    draw(root / "train" / "tern été", "50% $x & y.png", "1.png", first=10)
    draw(root / "val" / "gull", "s/v.png", first=20)
    draw(root / "val" / "tern été", "w.png", first=21)
    for hidden in (".ipynb_checkpoints", "__MACOSX", "gull/.ipynb_checkpoints"):
        draw(root / "train" / hidden, "x.png", first=30)
    (root / "train" / ".DS_Store").write_bytes(b"x")
    return root


def birds(root, **changes):
    return DatasetConfig("birds", "folder", root=str(root), **changes)


def greys(source):
    return [int(source.image(i)[0, 0, 0]) for i in range(len(source))]


def test_nested_images_are_read_in_imagefolders_order(tree):
    source = build_source(birds(tree), "train")
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        shutil.rmtree(tree / "train" / hidden)
    shutil.rmtree(tree / "train" / "gull" / ".ipynb_checkpoints")
    theirs = ImageFolder(str(tree / "train"))
    assert [str(tree / "train" / name) for name in source.files] == [file for file, _ in theirs.samples]
    assert source.labels.tolist() == theirs.targets and list(source.classes) == theirs.classes
    assert greys(source) == [int(np.asarray(image)[0, 0, 0]) for image, _ in theirs]


def test_the_other_names_of_the_second_split(tree):
    expected = build_source(birds(tree), "eval")
    for name in ("valid", "validation", "test"):
        other = shutil.copytree(tree, tree.parent / name / "birds")
        (other / "val").rename(other / name)
        source = build_source(birds(other), "eval")
        assert source.fingerprint() == expected.fingerprint() and greys(source) == greys(expected)
        assert describe_survey(birds(other)) == [
            f"data: birds: 2 classes, 7 + 2 images in {other}: class folders in train/ and {name}/"
        ]


def test_of_two_splits_one_is_evaluated_on_and_it_is_said(tree):
    draw(tree / "test" / "gull", "t.png", first=40)
    assert describe_survey(birds(tree))[0].endswith(
        f"in {tree}: evaluated on val; on test with dataset.eval_split=test"
    )
    shutil.rmtree(tree / "test")
    (tree / "val").rename(tree / "valid")
    draw(tree / "test" / "gull", "t.png", first=40)
    assert greys(build_source(birds(tree), "eval")) == [20, 21]
    tested = birds(tree, eval_split="test")
    assert greys(build_source(tested, "eval")) == [40]
    assert inventories(birds(tree))["eval"].fingerprint != inventories(tested)["eval"].fingerprint
    assert resolve_class_list(tested, str(tree.parent / "runs")).num_eval == 1
    assert describe_survey(birds(tree))[0].endswith(
        "class folders in train/ and valid/; evaluated on valid; on test with dataset.eval_split=test"
    )
    with pytest.raises(
        ConfigError, match=r"eval_split: there is no val split in .*dataset\.eval_split=valid"
    ) as no_val:
        build_source(birds(tree, eval_split="val"), "eval")
    assert no_val.value.ways == ("dataset.eval_split=valid", "dataset.eval_split=test")


def test_one_tree_needs_to_be_told_what_to_evaluate_on(tree):
    one = tree / "train"
    one.rename(tree.parent / "all birds")
    one = tree.parent / "all birds"
    with pytest.raises(ConfigError, match="one tree of 2 class folders without a split") as refused:
        build_source(birds(one), "train")
    assert refused.value.ways == ("dataset.val_fraction=0.1", "dataset.num_eval=0")
    split = resolve_class_list(birds(one, val_fraction=0.3), str(tree.parent / "runs"))
    assert (split.num_classes, split.num_train, split.num_eval) == (2, 7, 0)
    assert len(build_source(split, "train")) == 5 and len(build_source(split, "eval")) == 2
    assert describe_survey(split) == [f"data: birds: 2 classes, 7 images in {one}: one tree of class folders"]
    shutil.move(one, tree / "train")
    with_split = inventories(birds(tree, val_fraction=0.3))["train"].fingerprint
    shutil.move(tree / "train", one)
    assert inventories(split)["train"].fingerprint == with_split, "the same data, wherever they lie"


@pytest.mark.parametrize("name", ["train", "test"])
def test_one_tree_may_have_a_splits_name(tree, name):
    shutil.rmtree(tree / "val")
    if name != "train":
        (tree / "train").rename(tree / name)
    with pytest.raises(ConfigError, match=f"did you mean {re.escape(f'dataset.root={tree}')}"):
        build_source(birds(tree / name), "train")
    assert len(build_source(birds(tree / name, val_fraction=0.3), "train")) == 5


def test_a_split_that_lacks_a_class_is_fine_and_one_with_another_is_not(tree):
    shutil.rmtree(tree / "val" / "gull")
    assert build_source(birds(tree), "eval").labels.tolist() == [1]
    draw(tree / "val" / "owl", "o.png")
    with pytest.raises(ConfigError, match=r"val has class 'owl', which .*train lacks"):
        resolve_class_list(birds(tree), str(tree.parent / "runs"))


def test_an_empty_class_is_named(tree):
    (tree / "train" / "owl" / "folder").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"class folder .*train/owl holds no image"):
        build_source(birds(tree), "train")


def test_links_are_followed_and_circles_are_not(tree):
    os.symlink(tree / "train" / "gull" / "session 2", tree / "train" / "tern été" / "more")
    os.symlink(tree / "train" / "gull", tree / "train" / "gull" / "again")
    found = list_tree(tree / "train", ["gull", "tern été"])
    assert found.files[-2:] == ["tern été/more/a.png", "tern été/more/deep/c.png"]
    assert len(found.files) == 7 + 2 + 5, "a folder within itself once, and no further"


def test_a_nested_folder_that_changes_is_seen(tree, monkeypatch):
    monkeypatch.setattr(listing, "CACHE_FROM", 1)
    for folder in (tree / "train").rglob("*"):
        os.utime(folder, (1e9, 1e9))
    first = list_tree(tree / "train", ["gull", "tern été"])
    assert listing._read(listing._cache_of(tree / "train"), tree / "train", ["gull", "tern été"]), "it is in the cache"
    draw(tree / "train" / "gull" / "session 2" / "deep", "new.png")
    again = list_tree(tree / "train", ["gull", "tern été"])
    assert set(again.files) - set(first.files) == {"gull/session 2/deep/new.png"}
