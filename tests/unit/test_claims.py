"""What a configuration says of the data: that they are there, and what they hold; to take fewer has its own key."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from vitlab.cli.train_task import run_study
from vitlab.config import ConfigError, choice
from vitlab.core.plugins import DATASETS, register_dataset
from vitlab.data.sources.arrays import ArraySource
from vitlab.data.sources.claims import check_claims, require_data
from vitlab.data.sources.registry import build_source, stratified_order
from vitlab.study.identity import Request, identity
from vitlab.study.launch_local import run_locally
from vitlab.study.plan import build_plan
from vitlab.study.preflight import prove


def planned(compose_config, tmp_path, *words):
    """The plan of a command, shown and not carried out."""
    words = (*words, "study.dry_run=true", f"output_dir={tmp_path / 'runs'}")
    return run_study([Request(words, compose_config(*words))], lambda plan, view: {})


@pytest.fixture()
def tree(tmp_path):
    for split, count in (("train", 5), ("val", 3)):
        for name in ("finch", "wren"):
            folder = tmp_path / "birds" / split / name
            folder.mkdir(parents=True)
            for i in range(count + (name == "wren")):
                Image.new("RGB", (9, 9), (i, 0, 0)).save(folder / f"{i}.png")
    return tmp_path / "birds"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.num_train=500"], r"dataset\.num_train: digits has 1,437 training images, not 500; to train on fewer "
         r"of them: dataset\.train_fraction=0\.3479, or dataset\.train_per_class=50"),
        (["dataset.num_train=2000"], r"has 1,437 training images, not 2,000; leave dataset\.num_train out"),
        (["dataset.num_eval=100"], r"dataset\.num_eval: digits has 360 evaluation images, not 100; .*val_fraction"),
        (["dataset.num_classes=12"], r"dataset\.num_classes: digits has 10 classes, not 12"),
        (["dataset.image_size=12"], r"dataset\.image_size: .* digits are 8 pixels wide, not 12; .*model\.image_size"),
        (["dataset=cifar100", "dataset.num_classes=10"], r"cifar100 has 100 classes, not 10"),
        (["dataset=svhn", "dataset.num_eval=1"], r"svhn has 26,032 evaluation images"),
        (["dataset=stl10", "dataset.image_size=32"], r"stl10 are 96 pixels wide"),
        (["pretrain=fractaldb_small", "dataset.num_train=1000"], r"^dataset\.num_train: digits has"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_a_claim_that_the_data_contradict_is_refused_with_the_true_value(compose_config, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        planned(compose_config, tmp_path, *words)


@pytest.mark.parametrize("prefix", ["", "pretrain."])
def test_what_a_fractaldb_holds_follows_from_how_it_is_made(compose_config, prefix):
    start = "pretrain=fractaldb_small" if prefix else "dataset=fractaldb60"
    with pytest.raises(ConfigError, match=rf"^{prefix}dataset\.num_train: got 500, .*dataset\.fractal\.instances"):
        compose_config(start, f"{prefix}dataset.num_train=500")
    with pytest.raises(ConfigError, match=rf"^{prefix}dataset\.num_classes: got 9, and 60 categories"):
        compose_config(start, f"{prefix}dataset.num_classes=9")
    assert compose_config(start, f"{prefix}dataset.train_fraction=0.5")


@pytest.mark.parametrize(
    ("claim", "message"),
    [("num_train=9", r"birds has 11 training images, not 9; .*dataset\.train_fraction=0\.8182"),
     ("num_train=12", r"birds has 11 training images, not 12; complete the data, or .*dataset\.num_train=11"),
     ("num_eval=6", r"birds has 7 evaluation images, not 6; .*dataset\.num_eval=7"),
     ("num_classes=3", r"birds has 2 classes, not 3")],
)  # fmt: skip
def test_a_tree_of_files_is_counted(compose_config, tmp_path, tree, claim, message):
    words = ["dataset=folder", f"dataset.root={tree}", "dataset.name=birds", "recipe.batch_size=2"]
    with pytest.raises(ConfigError, match=message):  # the counts are not given
        planned(compose_config, tmp_path, *words, f"dataset.{claim}")
    known = dict(num_classes=2, num_train=11, num_eval=7)
    key, _, value = claim.partition("=")
    given = [f"dataset.{k}={v}" for k, v in (known | {key: value}).items()]
    with pytest.raises(ConfigError, match=message):  # all counts are given, and would need no data
        planned(compose_config, tmp_path, *words, *given)
    assert planned(compose_config, tmp_path, *words, *(f"dataset.{k}={v}" for k, v in known.items())) == 0


def test_fashion_mnist_is_what_its_files_say(tmp_path):
    import gzip

    def write(name, *shape):
        header = b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + bytes(int(np.prod(shape)))))

    for split, count in (("train", 30), ("t10k", 20)):
        write(f"{split}-images-idx3-ubyte", count, 28, 28)
        write(f"{split}-labels-idx1-ubyte", count)
    dataset = dataclasses.replace(choice("dataset", "fashion_mnist"), root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"has 30 training images, not 60,000; complete the data"):
        check_claims(dataset)
    with pytest.raises(ConfigError, match=r"has 30 training images, not 60,000"):
        build_source(dataset, "train")
    assert len(build_source(dataclasses.replace(dataset, num_train=30, num_eval=20), "eval")) == 20
    check_claims(dataclasses.replace(dataset, root="/nowhere"))  # out of sight: nothing is known


def test_a_plugins_data_are_compared_too(monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    @register_dataset("six")
    def load(dataset, split):
        return ArraySource(np.zeros((6, 4, 4, 3), np.uint8), np.arange(6) % 2, ("a", "b"))

    dataset = dataclasses.replace(choice("dataset", "digits"), name="six", kind="six", num_classes=2, num_train=7)
    with pytest.raises(ConfigError, match="six has 6 training images, not 7"):
        build_source(dataset, "train")
    with pytest.raises(ConfigError, match="six are 4 pixels wide, not 8"):
        build_source(dataclasses.replace(dataset, num_train=6), "train")
    assert len(build_source(dataclasses.replace(dataset, num_train=6, image_size=4), "train")) == 6


def test_no_evaluation_is_a_wish_and_no_claim(compose_config, tmp_path):
    assert planned(compose_config, tmp_path, "dataset.num_eval=0") == 0


def test_the_keys_that_are_proposed_are_accepted(compose_config, tmp_path):
    with pytest.raises(ConfigError) as error:
        planned(compose_config, tmp_path, "dataset.num_train=500")
    for word in re.findall(r"dataset\.\w+=[\d.]+\d", str(error.value)):
        assert planned(compose_config, tmp_path, word) == 0
        assert compose_config(word).cell.dataset.train_images == 500


def rows_of(dataset):
    """Which images of the whole split are trained on, by their bytes and label."""
    source = build_source(dataset, "train")
    return [(image.tobytes(), label) for image, label in zip(source.images, source.labels, strict=True)]  # pyright: ignore


@pytest.mark.parametrize("val_fraction", [0.0, 0.2])
def test_fractions_are_stratified_and_nested(val_fraction):
    digits = dataclasses.replace(choice("dataset", "digits"), val_fraction=val_fraction)
    whole = build_source(digits, "train")
    proportions = np.bincount(whole.labels) / len(whole)
    smaller: set = set()
    for fraction in (0.01, 0.03, 0.1, 0.25, 0.5, 0.999):
        part = dataclasses.replace(digits, train_fraction=fraction)
        source, rows = build_source(part, "train"), set(rows_of(part))
        assert len(source) == part.train_images == round(len(whole) * fraction)
        assert np.abs(np.bincount(source.labels, minlength=10) - proportions * len(source)).max() <= 1
        assert smaller <= rows <= set(rows_of(digits))
        smaller = rows
    held_out = build_source(digits, "eval")
    assert len(build_source(dataclasses.replace(digits, train_fraction=0.1), "eval")) == len(held_out)


def test_classes_of_any_size_keep_their_share():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), [1000, 300, 40, 7, 1]))
    order = stratified_order(labels)
    assert sorted(order) == list(range(len(labels)))
    for k in (1, 5, 50, 400, 1348):
        counts = np.bincount(labels[order[:k]], minlength=5)
        assert np.abs(counts - np.bincount(labels) * k / len(labels)).max() < 1.5
    assert not np.array_equal(order[:50], np.sort(order[:50])), "not the first images of every class"


def test_a_fraction_that_leaves_a_class_out_names_the_least_that_does_not():
    digits = dataclasses.replace(choice("dataset", "digits"), train_fraction=0.004)
    with pytest.raises(ConfigError, match=r"0\.004 of 1,437 images leaves a class of digits without any") as error:
        build_source(digits, "train")
    least = float(re.findall(r"is ([\d.]+)$", str(error.value))[0])
    assert len(set(build_source(dataclasses.replace(digits, train_fraction=least), "train").labels)) == 10
    with pytest.raises(ConfigError, match="without any"):
        build_source(dataclasses.replace(digits, train_fraction=least - 1 / 1437), "train")


def test_a_fraction_is_another_cell_and_the_whole_is_the_same(compose_config):
    whole = identity(compose_config().cell)
    assert identity(compose_config("dataset.train_fraction=1").cell) == whole
    assert identity(compose_config("dataset.train_fraction=0.5").cell) != whole
    with pytest.raises(ConfigError, match=r"train_fraction: give it, or dataset\.train_per_class"):
        compose_config("dataset.train_fraction=0.5", "dataset.train_per_class=5")
    with pytest.raises(ConfigError, match=r"recipe\.batch_size: 32 is more than the 14 training images of digits"):
        compose_config("dataset.train_fraction=0.01")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=imagenet1k"], "imagenet1k needs a folder that holds train/ and val/"),
        (["dataset=imagenet1k", "dataset.root=/nowhere"], "there is no folder '/nowhere'"),
        (["dataset=fashion_mnist", "dataset.root=/nowhere"], "no Fashion-MNIST in /nowhere"),
        (["dataset=cifar100", "dataset.root=/nowhere"], "no folder cifar-100-python in '/nowhere'"),
    ],
)
def test_what_is_looked_for_is_named(compose_config, words, said):
    with pytest.raises(ConfigError, match=said):
        require_data(compose_config(*words).cell.dataset)


@pytest.mark.parametrize("below", ["", "CIFAR10"])
def test_data_that_are_there_pass(compose_config, tmp_path, below):
    (tmp_path / below / "cifar-10-batches-py").mkdir(parents=True)
    for folder in ("train/a", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
    for words in (["dataset=cifar10"], ["dataset=imagenet1k"]):
        require_data(compose_config(*words, f"dataset.root={tmp_path}").cell.dataset)
    require_data(compose_config("dataset=digits").cell.dataset)
    require_data(compose_config("dataset=fractaldb1k").cell.dataset)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["pretrain=fractaldb_small", "dataset=cifar10", "dataset.root=/nowhere"],
            r"dataset\.root: no folder cifar-10",
        ),
        (
            ["pretrain=fractaldb_small", "dataset@pretrain.dataset=imagenet1k", "pretrain.dataset.fractal=null"],
            r"pretrain\.dataset\.root: imagenet1k needs",
        ),
    ],
)
def test_no_pretraining_starts_for_a_cell_without_data(compose_config, tmp_path, words, said):
    config = compose_config(*words, f"output_dir={tmp_path / 'runs'}")
    plan = build_plan([Request((), config)], "s")
    assert [cell.config.study.part for cell in plan.todo] == ["pretraining", "cell"]
    with pytest.raises(ConfigError, match=said):
        prove([(cell.name, cell.config) for cell in plan.todo])
    assert not list(tmp_path.glob("runs/c*"))


def test_a_tree_to_pretrain_on_is_named_as_such(compose_config, tmp_path):
    config = compose_config(
        "pretrain=fractaldb_small", "pretrain.dataset.root=/nowhere", f"output_dir={tmp_path / 'runs'}"
    )
    with pytest.raises(ConfigError, match=r"^pretrain\.dataset\.root: '/nowhere' is no folder"):
        run_study([Request((), config)], run_locally)
