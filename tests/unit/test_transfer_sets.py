"""The transfer sets, laid out as their archives are, in small: read by torchvision, split as published."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from vitlab.config import ConfigError, choice
from vitlab.core.plugins import TRANSFER_SETS
from vitlab.data.sources.claims import require_data
from vitlab.data.sources.registry import build_source

CLASSES = ("abbey", "bar", "coast")


@pytest.fixture(autouse=True)
def no_digests(monkeypatch):
    """torchvision compares the digests of the real archives' label files."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *of: True)


def draw(file, grey):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (grey, grey, grey)).save(file)


def flowers102(root):
    base = root / "flowers-102"
    for i in range(1, 13):
        draw(base / "jpg" / f"image_{i:05}.jpg", i)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([[i % 3 + 1 for i in range(12)]])})
    parts = {"trnid": [[1, 2, 3]], "valid": [[4, 5, 6]], "tstid": [[7, 8, 9, 10, 11, 12]]}
    scipy.io.savemat(base / "setid.mat", {name: np.array(ids) for name, ids in parts.items()})


def pets(root):
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        lines = []
        for c, name in enumerate(("Abyssinian", "great_pyrenees", "pug")):
            for i in range(2):
                own = f"{name}_{2 * i + (split == 'test')}"
                draw(base / "images" / f"{own}.jpg", c)
                lines.append(f"{own} {c + 1} 1 1")
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")


def cars(root):
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(i % 3 + 1, f"{i:05}.jpg") for i in range(6)]
        kind = [("class", object), ("fname", object)]
        scipy.io.savemat(base / file, {"annotations": np.array(rows, dtype=kind).reshape(1, -1)})
        for label, name in rows:
            draw(base / f"cars_{split}" / name, label)
    scipy.io.savemat(
        base / "devkit" / "cars_meta.mat", {"class_names": np.array([["AM General", "Audi", "BMW"]], object)}
    )


def food101(root):
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 2)):
        names = {name: [f"{name}/{first + i}" for i in range(2)] for name in reversed(CLASSES)}
        (base / "meta" / f"{split}.json").write_text(json.dumps(names), encoding="utf-8")
        for file in (file for part in names.values() for file in part):
            draw(base / "images" / f"{file}.jpg", 7)


def dtd(root):
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{number}{i}.jpg" for name in CLASSES for i in range(1 + (split == "test"))]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names), encoding="utf-8")
        for name in names:
            draw(base / "images" / name, number)


def eurosat(root):
    for name in CLASSES:
        for i in range(5):
            draw(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", i)


SETS = {"flowers102": flowers102, "pets": pets, "cars": cars, "food101": food101, "dtd": dtd, "eurosat": eurosat}
READERS = {
    "flowers102": "Flowers102",
    "pets": "OxfordIIITPet",
    "cars": "StanfordCars",
    "food101": "Food101",
    "dtd": "DTD",
}


def small(kind, root, **changes):
    """The shipped choice, for a set of three classes."""
    return dataclasses.replace(
        choice("dataset", kind), root=str(root), num_classes=None, num_train=None, num_eval=None, **changes
    )


def places(source):
    return {source.content.where(i) for i in range(len(source))}


@pytest.mark.parametrize("kind", TRANSFER_SETS)
def test_a_set_is_read_from_its_archives_folders(kind, tmp_path):
    SETS[kind](tmp_path)
    dataset = small(kind, tmp_path)
    require_data(dataset)
    train, held_out = build_source(dataset, "train"), build_source(dataset, "eval")
    assert train.labels.tolist() == sorted(train.labels) and set(train.labels) == {0, 1, 2}
    assert (len(train), len(held_out)) == ((12, 3) if kind == "eurosat" else (6, 6))
    assert train.image(0).shape == (8, 9, 3) and not places(train) & places(held_out)
    inside = tmp_path / next(tmp_path.iterdir()).name
    assert build_source(small(kind, inside), "train").fingerprint() == train.fingerprint(), "its own folder will do"


@pytest.mark.parametrize("kind", READERS)
def test_labels_and_pixels_are_torchvisions(kind, tmp_path):
    SETS[kind](tmp_path)
    theirs = getattr(datasets, READERS[kind])(str(tmp_path), split="test")
    ours = build_source(small(kind, tmp_path), "eval")
    seen = sorted((label, np.asarray(image).tobytes()) for image, label in theirs)
    assert sorted((int(label), ours.image(i).tobytes()) for i, label in enumerate(ours.labels)) == seen


@pytest.mark.parametrize("kind", TRANSFER_SETS)
def test_a_set_that_is_missing_is_named_with_how_to_get_it(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.root: no folder .* in .*download=True"):
        require_data(small(kind, tmp_path))


def test_a_file_that_the_list_names_and_is_missing(tmp_path):
    flowers102(tmp_path)
    (tmp_path / "flowers-102" / "jpg" / "image_00002.jpg").unlink()
    with pytest.raises(ConfigError, match=r"image_00002\.jpg is missing, which the set's own list names"):
        build_source(small("flowers102", tmp_path), "train")
    (tmp_path / "flowers-102" / "setid.mat").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is no whole Flowers102"):
        build_source(small("flowers102", tmp_path), "train")


def test_the_published_counts_are_claimed(tmp_path):
    flowers102(tmp_path)
    with pytest.raises(ConfigError, match="102"):
        build_source(dataclasses.replace(choice("dataset", "flowers102"), root=str(tmp_path)), "train")


def test_eurosat_has_no_split(tmp_path):
    eurosat(tmp_path)
    with pytest.raises(ConfigError, match="was published without a split"):
        build_source(small("eurosat", tmp_path, val_fraction=0.0), "eval")
