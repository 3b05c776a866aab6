"""Sheets of augmented pictures."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.cli.preview_task import augment_pictures, read_pictures, run_preview, sample_pictures
from vitlab.config import AugmentConfig, ConfigError, DatasetConfig, choice
from vitlab.core.random import Draws
from vitlab.data.augment import Augment

SMALL = ["task=preview", "preview.size=32", "preview.columns=4"]


@pytest.fixture(scope="module")
def digits(compose_config):
    return compose_config().cell.dataset


def test_the_pictures_are_photographs_and_images_of_several_classes(digits):
    names, pictures = sample_pictures(digits, 12)
    assert names[:2] == ["temple", "flower"] and pictures[0].shape == (427, 640, 3)
    assert names[2:] == [*"0123456789", "0", "1"] and all(p.shape == (8, 8, 3) for p in pictures[2:])
    assert not np.array_equal(pictures[2], pictures[12])
    square = dataclasses.replace(digits, train_crop="pad", image_size=8)
    assert [p.shape for p in sample_pictures(square, 0)[1]] == [(427, 427, 3)] * 2


def test_it_shows_what_training_sees(digits):
    """The same crops, policies and erasing as a training batch of the same seed, epoch and samples."""
    _, pictures = sample_pictures(digits, 2)
    augment = dataclasses.replace(choice("augment", "randaug"), erase=1.0)
    seen = augment_pictures(augment, digits, pictures, size=24, seed=4, epoch=2)
    crops = augment_pictures(AugmentConfig(), digits, pictures, size=24, seed=4, epoch=2)
    function = Augment(augment, digits)
    trained = function(crops, Draws(4, 2, np.arange(4))) * function.std + function.mean
    assert torch.equal(seen, trained.round().clamp(0, 255).byte())
    assert not torch.equal(crops, augment_pictures(AugmentConfig(), digits, pictures, size=24, seed=4, epoch=3))


def test_mixing_pairs_neighbours(digits):
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    seen = augment_pictures(choice("augment", "mixup"), digits, [black, white, white, white], size=16, seed=0, epoch=0)
    assert torch.all((seen[0].int() + seen[1].int() - 255).abs() <= 1) and 0 < seen[0].float().mean() < 255
    assert torch.all(seen[2:] == 255)


def test_one_condition_is_a_sheet(compose_config, tmp_path):
    config = compose_config(*SMALL, "augment=randaug", f"output_dir={tmp_path}")
    (line,) = run_preview(config)
    with Image.open(tmp_path / "preview" / "randaug.png") as sheet:
        assert sheet.size == (132 + 4 * 36, 20 + 6 * 36)
        first = np.asarray(sheet)
    assert "randaug.png" in line and first[20:52, 132:164].std() > 20
    run_preview(config)
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "preview" / "randaug.png"))), "the same every time"


def test_several_conditions_share_their_random_numbers(compose_config, tmp_path):
    conditions = "preview.conditions=[none,none,erase]"
    run_preview(compose_config(*SMALL, conditions, "preview.pictures=0", f"preview.file={tmp_path}/sheet.png"))
    rows = np.asarray(Image.open(tmp_path / "sheet.png"))[:, 132:]
    assert rows.shape[0] == 2 * 36, "one row per name"
    run_preview(compose_config(*SMALL, "preview.conditions=[jitter,none]", f"preview.file={tmp_path}/other.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["preview.conditions=[none,mixupp]"], "augment: 'mixupp'.*mixup"),
        (["preview.conditions=[none]", "preview.columns=3"], "preview.columns: got 3"),
        (["preview.pictures=3"], "preview.pictures: got 3"),
        (["preview.size=2"], "preview.size: got 2"),
        (["preview.sizes=2"], "sizes"),
        (["dataset=imagenet1k"], "dataset.root"),
    ],
)
def test_a_mistake_is_named(compose_config, tmp_path, words, message):
    words = [w if w != "preview.sizes=2" else "+preview.sizes=2" for w in words]
    with pytest.raises(ConfigError, match=message):
        run_preview(compose_config("task=preview", *words, f"output_dir={tmp_path}"))


def test_given_files_are_shown_upright(compose_config, tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 40:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "a_photo_with_a_long_name.png", exif=exif)
    Image.fromarray(wide).save(tmp_path / "b.png")
    names, pictures = read_pictures(str(tmp_path / "*.png"), DatasetConfig("x", "folder"))
    assert names == ["a_photo_with_a_lo…", "b"] and [p.shape for p in pictures] == [(60, 20, 3), (20, 60, 3)]
    run_preview(compose_config(*SMALL, f"preview.images={tmp_path}/b.png", f"preview.file={tmp_path}/out/sheet.png"))
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (132 + 4 * 36, 20 + 36)
    for words, message in (
        (["augment=mixup", f"preview.images={tmp_path}/b.png"], "preview.images: got 1; mixing pairs"),
        ([f"preview.images={tmp_path}/none.png"], "preview.images: no image at"),
        (["preview.images=[]"], "preview.images: the list is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_preview(compose_config(*SMALL, *words, f"output_dir={tmp_path}/runs"))
