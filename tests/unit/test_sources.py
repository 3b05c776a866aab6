"""Data sets: what they hold, which parts a split takes, and what is said of a broken one."""

import dataclasses
import gzip
import shutil

import numpy as np
import pytest
from PIL import Image

from vitlab.config import ConfigError, choice, named_after_folder
from vitlab.core.errors import UserError
from vitlab.data.order import epoch_length, epoch_order
from vitlab.data.sources.catalogue import remember_data, resolve_class_list
from vitlab.data.sources.on_disk import inventories
from vitlab.data.sources.registry import build_source, held_out_rows

DIGITS = choice("dataset", "digits")


def with_(dataset, **changes):
    return dataclasses.replace(dataset, **changes)


@pytest.fixture()
def tree(tmp_path):
    """Three classes, four training and two validation images each, of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for c in "abc":
            folder = tmp_path / "data" / split / c
            folder.mkdir(parents=True)
            for i in range(count):
                size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
                Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path / "data"


def folder_config(tree, **changes):
    dataset = named_after_folder(with_(choice("dataset", "folder"), root=str(tree), **changes))
    return resolve_class_list(dataset, str(tree.parent / "runs"))


def test_digits_split_is_stratified_and_disjoint():
    train, held = build_source(DIGITS, "train"), build_source(DIGITS, "eval")
    assert (len(train), len(held)) == (1437, 360) == (DIGITS.num_train, DIGITS.num_eval)
    assert np.bincount(held.labels).min() >= 34 and np.bincount(held.labels).max() <= 37
    assert train.images.shape == (1437, 8, 8, 3) and train.images.max() == 255
    assert train.fingerprint() != held.fingerprint()


def test_fashion_mnist_is_whole_where_it_is_installed():
    dataset = choice("dataset", "fashion_mnist")
    try:
        train, held = build_source(dataset, "train"), build_source(dataset, "eval")
    except ConfigError as error:
        assert "apt install dataset-fashion-mnist" in str(error)
        return
    assert len(train) == dataset.num_train and len(held) == dataset.num_eval
    assert train.images.shape[1:] == (28, 28, 3) and set(train.labels) == set(range(10))
    assert train.images.mean() / 255 == pytest.approx(dataset.mean[0], abs=1e-3)
    assert train.images.std() / 255 == pytest.approx(dataset.std[0], abs=1e-3)


def test_a_damaged_fashion_mnist_is_named(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + bytes(12))[:-9])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        build_source(with_(choice("dataset", "fashion_mnist"), root=str(tmp_path)), "train")
    with pytest.raises(ConfigError, match="no Fashion-MNIST in /nowhere"):
        build_source(with_(choice("dataset", "fashion_mnist"), root="/nowhere"), "train")


def test_validation_images_come_from_every_class():
    dataset = with_(DIGITS, val_fraction=0.2)
    train, held = build_source(dataset, "train"), build_source(dataset, "eval")
    assert len(train) + len(held) == 1437 and len(train) == dataset.train_images
    assert np.bincount(held.labels).min() >= 27
    assert held_out_rows(np.zeros(10, int), 0.0).sum() == 0


def test_few_images_per_class_are_the_same_every_time():
    few = build_source(with_(DIGITS, train_per_class=5), "train")
    assert np.bincount(few.labels).tolist() == [5] * 10
    again = build_source(with_(DIGITS, train_per_class=5), "train")
    assert few.fingerprint() == again.fingerprint()
    with pytest.raises(ConfigError, match=r"train_per_class: 999"):
        build_source(with_(DIGITS, train_per_class=999), "train")


def test_a_folder_is_read_and_its_classes_recorded(tree):
    dataset = folder_config(tree, name="mine")
    assert (dataset.num_classes, dataset.num_train, dataset.num_eval) == (3, 12, 6)
    source = build_source(dataset, "train")
    assert source.classes == ("a", "b", "c") and source.image(5).ndim == 3
    shutil.move(tree, tree.parent / "elsewhere")
    unmounted = resolve_class_list(
        with_(choice("dataset", "folder"), name="mine", root=str(tree)), str(tree.parent / "runs")
    )
    assert unmounted.num_train == 12, "a plan needs no data once the classes are recorded"


def test_imagenet100_is_any_tree_of_a_hundred_classes(tree):
    imagenet = with_(choice("dataset", "imagenet100"), root=str(tree))
    with pytest.raises(ConfigError, match=r"num_classes: .*data has 3 classes, not 100; .*dataset=folder"):
        resolve_class_list(imagenet, str(tree.parent / "runs"))
    for split in ("train", "val"):
        for i in range(97):
            shutil.copytree(tree / split / "a", tree / split / f"n{i:03}")
    found = resolve_class_list(imagenet, str(tree.parent / "runs"))
    assert (found.num_classes, found.num_train, found.num_eval) == (100, 400, 200)


def test_a_class_list_that_disagrees_is_refused(tree):
    folder_config(tree, name="mine")
    (tree / "train" / "d").mkdir()
    shutil.copy(tree / "train" / "a" / "0.jpg", tree / "train" / "d" / "0.jpg")
    with pytest.raises(ConfigError, match=r"recorded as 'mine'.*\n.*1 of its classes is new \(d\)") as refused:
        folder_config(tree, name="mine")
    assert "12 training images are recorded, it has 13" in str(refused.value)
    assert folder_config(tree, name="mine_2").num_train == 13, "the name that is proposed"
    assert "dataset.name=mine_2" in str(refused.value) and "study.rerun" not in str(refused.value)


def test_training_all_again_lets_the_name_mean_the_folder(tree):
    dataset = folder_config(tree, name="mine")
    runs = str(tree.parent / "runs")
    unknown = with_(dataset, num_classes=None, num_train=None, num_eval=None)
    remember_data(runs, dataset, inventories(dataset))
    (tree / "train" / "a" / "0.jpg").rename(tree / "train" / "a" / "new.jpg")
    shutil.copy(tree / "train" / "a" / "1.jpg", tree / "train" / "a" / "more.jpg")
    with pytest.raises(ConfigError, match=r"study\.rerun=all") as refused:
        resolve_class_list(unknown, runs, rerun=False)
    assert "3 of 13 training images differ: a/0.jpg (gone), a/more.jpg (added), a/new.jpg (added)" in str(refused.value)
    assert resolve_class_list(unknown, runs, rerun=True).num_train == 13
    assert resolve_class_list(unknown, runs, rerun=False).num_train == 13


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: shutil.rmtree(t), "there is no folder"),
        (lambda t: shutil.rmtree(t / "train"), r"no train/ in .*expected train/CLASS/IMAGE"),
        (lambda t: shutil.rmtree(t / "val"), r"no val/ in .*dataset\.val_fraction"),
        (lambda t: (t / "val" / "x").mkdir(), r"val has class 'x', which .*train lacks"),
        (lambda t: [f.unlink() for f in (t / "train" / "a").iterdir()], r"train/a holds no image"),
        (
            lambda t: (shutil.rmtree(t / "train"), (t / "ImageNet" / "train").mkdir(parents=True)),
            r"did you mean .*ImageNet",
        ),
        (lambda t: flatten_val(t), r"val is flat \(6 images"),
        (
            lambda t: (t / "train" / "a" / "0.jpg").unlink(),
            r"train has 11 training images, not 12; complete the data, or .*dataset\.num_train=11",
        ),
    ],
    ids=["missing", "no train", "no val", "extra class", "empty class", "parent", "flat val", "incomplete"],
)
def test_a_broken_tree_is_described(tree, damage, message):
    dataset = folder_config(tree)
    damage(tree)
    with pytest.raises(ConfigError, match=message):
        build_source(dataset, "train")
        build_source(dataset, "eval")


def flatten_val(tree):
    for i, file in enumerate(sorted((tree / "val").glob("*/*.jpg"))):
        shutil.move(file, tree / "val" / f"{i}.jpg")
    for folder in (tree / "val").iterdir():
        if folder.is_dir():
            folder.rmdir()


def test_given_a_split_the_parent_is_suggested(tree):
    with pytest.raises(ConfigError, match=f"did you mean dataset.root={tree}"):
        build_source(with_(folder_config(tree), root=str(tree / "train")), "train")


def test_evaluating_needs_no_training_images(tree):
    dataset = with_(choice("dataset", "folder"), root=str(tree))
    whole = build_source(dataset, "eval")
    shutil.rmtree(tree / "train")
    alone = build_source(dataset, "eval")
    assert alone.files == whole.files and alone.classes == whole.classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match="no train/"):
        build_source(dataset, "train")
    with pytest.raises(ConfigError, match="no train/"):
        build_source(with_(dataset, val_fraction=0.1), "eval")


def test_an_epoch_visits_every_image_once():
    order, repetition = epoch_order(1000, seed=0, epoch=3, repeats=1)
    assert sorted(order) == list(range(1000)) and not repetition.any()
    assert not np.array_equal(order, epoch_order(1000, 0, 4, 1)[0])
    assert np.array_equal(order, epoch_order(1000, 0, 3, 1)[0])


def test_repeated_augmentation_is_deits_and_sees_all_the_data():
    """Three copies in a row, a multiple of 256 samples, and other images in every epoch, on one device too."""
    order, repetition = epoch_order(1000, seed=0, epoch=0, repeats=3)
    assert len(order) == epoch_length(1000, 3) == 768
    assert (order[:768:3] == order[1:768:3]).all() and repetition[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(order)) == 256
    seen = set()
    for epoch in range(20):
        seen |= set(epoch_order(1000, 0, epoch, 3)[0])
    assert len(seen) > 990


def test_stl10_is_read_in_its_binary_layout(tmp_path, monkeypatch):
    """Written here as the published archive lays it out: column-major images, labels from 1."""
    from torchvision.datasets import STL10

    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
    labels = (np.arange(12) % 10 + 1).astype(np.uint8)
    for name in ("train", "test"):
        images.transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")
        labels.tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no whole STL10 in .*download=True"):
        build_source(with_(choice("dataset", "stl10"), root=str(tmp_path)), "train")
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    source = build_source(with_(choice("dataset", "stl10"), root=str(tmp_path), num_train=12), "train")
    assert np.array_equal(source.images, images) and source.labels.tolist() == [*range(10), 0, 1]
    assert source.classes[3] == "class 3"


def test_svhn_is_read_by_torchvision(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
    for name in ("train", "test"):
        savemat(tmp_path / f"{name}_32x32.mat", {"X": images, "y": np.array([[1], [2], [10], [3], [9], [1]])})
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    source = build_source(with_(choice("dataset", "svhn"), root=str(tmp_path), num_eval=6), "eval")
    assert source.labels.tolist() == [1, 2, 0, 3, 9, 1] and np.array_equal(source.image(2), images[..., 2])
