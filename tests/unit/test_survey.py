"""What a tree of images is said to hold: left-out files, rotations, depths; from headers, of a sample, once."""

import numpy as np
import pytest
from PIL import Image

from vitlab.config import ConfigError, DatasetConfig
from vitlab.data.decode import grey_kind, is_deep
from vitlab.data.sources import listing, survey
from vitlab.data.sources.survey import RANGED, describe_survey

NOISE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """12 images a class in train/, 2 in val/; a quarter each lying down, 16-bit grey, grey, plain."""
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    lying = Image.Exif()
    lying[0x0112] = 8
    for split, count in (("train", 12), ("val", 4)):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                if i % 4 == 0:
                    Image.fromarray(NOISE).save(folder / f"{i}.jpg", exif=lying)
                elif i % 4 == 1:
                    Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257).save(folder / f"{i}.png")
                else:
                    Image.fromarray(NOISE if i % 4 == 2 else NOISE[..., 0]).save(folder / f"{i}.png")
    return tmp_path / "data"


def about(tree, **changes):
    return DatasetConfig("birds", "folder", root=str(tree), num_classes=2, num_train=24, num_eval=8, **changes)


def no_header(content, index):
    raise AssertionError(f"{content.where(index)} was opened")


def test_all_that_is_peculiar_is_said(tree):
    (tree / "train" / "a" / "x.heic").write_bytes(b"x")
    (tree / "val" / "b" / "note").write_bytes(b"x")
    (tree / "val" / "README.txt").write_bytes(b"x")
    assert describe_survey(about(tree)) == [
        f"data: birds: 2 classes, 24 + 8 images in {tree}; left out: 1 .heic, 1 without an extension, "
        "1 .txt outside the class folders",
        "note: 8 of 32 images carry an EXIF rotation, which is not applied (as in every ImageFolder); "
        "dataset.exif=apply trains on upright ones",
        "note: the data set mixes depths: of 32 images 8 are 16-bit grey, 24 have 8 bits; grey of more than 8 bits is "
        "scaled by the range of its format (dataset.grey16=range)",
    ]
    chosen = describe_survey(about(tree, exif="apply", grey16="minmax"))
    assert chosen[1] == "note: 8 of 32 images carry an EXIF rotation, which is applied"
    assert chosen[2].endswith("scaled each by its own smallest and largest value (dataset.grey16=minmax)")


def test_a_plain_tree_is_one_line(tree):
    for file in [*tree.rglob("*.jpg"), *tree.rglob("[159].png")]:
        Image.fromarray(NOISE).save(file)
    assert describe_survey(about(tree)) == [f"data: birds: 2 classes, 24 + 8 images in {tree}"]


def test_the_record_holds_the_same(tree):
    train, val = survey.survey(about(tree)).values()
    assert (
        train.images == train.looked_at == 24 and train.rotated == 6 and val.depths == {"16-bit grey": 2, "8 bits": 6}
    )


def test_headers_are_read_once(tree, monkeypatch):
    first = describe_survey(about(tree))
    monkeypatch.setattr(survey, "_header", no_header)
    assert describe_survey(about(tree)) == first
    (tree / "train" / "a" / "99.png").write_bytes(b"x")
    with pytest.raises(AssertionError, match="was opened"):
        describe_survey(about(tree))


def test_of_a_large_tree_a_sample_is_looked_at(tree, monkeypatch):
    monkeypatch.setattr(survey, "SAMPLE", 4)
    monkeypatch.setattr(listing, "GLANCE", 1)
    (tree / "train" / "a" / "x.heic").write_bytes(b"x")
    opened = []
    header = survey._header
    monkeypatch.setattr(survey, "_header", lambda *of: opened.append(of) or header(*of))
    lines = describe_survey(about(tree))
    assert lines[0] == f"data: birds: 2 classes, 24 + 8 images in {tree}; left out (in 2 of 4 class folders): 1 .heic"
    assert "of a sample of 8 images carry an EXIF rotation" in lines[1] and len(opened) == 8


def test_grey_without_a_range_stops_the_command_unless_it_is_skipped_or_scaled(tree):
    Image.fromarray(NOISE[..., 0].astype(np.float32)).save(tree / "train" / "a" / "f.tif")
    with pytest.raises(ConfigError, match=r"dataset.grey16: 1 of 33 images of birds are 32-bit float grey.*=minmax"):
        describe_survey(about(tree))
    assert (
        "32-bit float grey is left out (dataset.bad_images=skip)" in describe_survey(about(tree, bad_images="skip"))[-1]
    )
    assert "minmax" in describe_survey(about(tree, grey16="minmax"))[-1]


def test_what_cannot_be_read_is_counted(tree):
    (tree / "train" / "a" / "0.jpg").write_bytes(b"no image")
    assert "note: 1 of 32 images cannot be read (dataset.bad_images=error)" in describe_survey(about(tree))


def test_nothing_is_said_of_data_that_are_not_here(tree, compose_config):
    assert describe_survey(compose_config().cell.dataset) == []
    assert describe_survey(about(tree / "nowhere")) == []
    assert describe_survey(about(tree / "train")) == [], "whoever needs the files says what is wrong"


@pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "x.png"), (np.uint16, "x.tif"), (np.int32, "x.tif"),
                                             (np.float32, "x.tif"), (np.uint16, "x.pgm")])  # fmt: skip
def test_the_kinds_with_a_range_are_those_that_decoding_scales(tmp_path, dtype, name):
    Image.fromarray(NOISE[..., 0].astype(dtype)).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        kind, white = grey_kind(image)
        assert is_deep(image.mode) and (white is not None) == (kind in RANGED)


def test_a_record_of_a_training_says_what_was_left_out(tree, compose_config, tmp_path):
    """By the code that trains: provenance.json."""
    import json

    from vitlab.study.cell import run_cell

    (tree / "train" / "a" / "x.heic").write_bytes(b"x")
    config = compose_config(
        "dataset=folder", f"dataset.root={tree}", "dataset.num_classes=2", "dataset.num_train=24", "dataset.num_eval=8",
        "dataset.name=birds", "recipe.batch_size=8", "recipe.epochs=1", "recipe.warmup_epochs=0", "workers=0",
        "wandb.mode=disabled", f"output_dir={tmp_path}/runs",
    )  # fmt: skip
    assert run_cell(config, study="x", name="x") == "finished"
    (file,) = (tmp_path / "runs").glob("*/provenance.json")
    files = json.loads(file.read_text(encoding="utf-8"))["files"]
    assert files["train"]["left_out"] == {".heic": 1} and files["val"]["rotated"] == 2
