"""Boxes compared with torchvision's, resampling compared with Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize
from torchvision.transforms import functional as TF

from vitlab.core.random import Draws
from vitlab.data.crop import central_square_boxes, padded_boxes, random_resized_boxes, resize_crops, whole_boxes

RNG = np.random.default_rng(0)
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def pictures(height, width):
    """A photograph in miniature, noise, and hard edges."""
    from sklearn.datasets import load_sample_images

    photo = np.asarray(Image.fromarray(load_sample_images().images[0]).resize((width, height)))
    noise = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.stack([photo, noise, (noise > 127).astype(np.uint8) * 255, noise])


def resized(image, size, interpolation):
    """Pillow's resize of an image to a square, horizontally first. (Pillow 13 goes vertically first where that is less
    work; earlier versions never did, and the order shows where the cubic overshoots and is clipped in between.)"""
    across = image.resize((size, image.height), PILLOW[interpolation])
    return np.asarray(across.resize((size, size), PILLOW[interpolation])).astype(int)


def as_batch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def as_images(batch):
    return batch.permute(0, 2, 3, 1).numpy().astype(int)


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("size", [5, 28, 64])
def test_crops_are_pillows(size, interpolation):
    images = pictures(45, 61)
    boxes = np.array([[0, 0, 45, 61], [3, 10, 30, 20], [44, 60, 1, 1], [5, 7, 40, 50]])
    ours = as_images(resize_crops(as_batch(images), boxes, size, interpolation))
    for image, (top, left, height, width), result in zip(images, boxes, ours, strict=True):
        crop = Image.fromarray(image).crop((left, top, left + width, top + height))
        theirs = resized(crop, size, interpolation)
        assert (result == theirs).all()


def test_a_box_of_the_same_size_is_copied():
    images = as_batch(pictures(20, 30))
    boxes = np.array([[2, 3, 16, 16]] * 4)
    assert torch.equal(resize_crops(images, boxes, 16, "bicubic"), images[:, :, 2:18, 3:19])


@pytest.mark.parametrize("interpolation", PILLOW)
def test_padded_crops_are_black_outside(interpolation):
    """CIFAR's crop: four pixels of zeros around, a box of the native size, resized."""
    images = pictures(32, 32)
    boxes = np.array([[-4, -4, 32, 32], [4, 4, 32, 32], [0, -3, 32, 32], [2, 0, 32, 32]])
    ours = as_images(resize_crops(as_batch(images), boxes, 48, interpolation))
    for image, (top, left, height, width), result in zip(images, boxes, ours, strict=True):
        padded = Image.fromarray(np.pad(image, ((4, 4), (4, 4), (0, 0))))
        crop = padded.crop((left + 4, top + 4, left + 4 + width, top + 4 + height))
        theirs = resized(crop, 48, interpolation)
        assert (result == theirs).all()


def test_evaluation_crops_are_resize_then_centre_crop():
    images = pictures(32, 32)
    boxes = central_square_boxes(np.full((4, 2), 32), 0.875)
    ours = as_images(resize_crops(as_batch(images), boxes, 224, "bicubic", beyond=True))
    resize, centre = Resize(256, TF.InterpolationMode.BICUBIC), CenterCrop(224)
    for image, result in zip(images, ours, strict=True):
        theirs = np.asarray(centre(resize(Image.fromarray(image)))).astype(int)
        assert (result == theirs).all()


def test_a_crop_does_not_depend_on_its_batch():
    images = as_batch(np.tile(pictures(33, 29), (5, 1, 1, 1)))
    sizes = np.tile([33, 29], (20, 1))
    boxes = padded_boxes(sizes, 4, Draws(0, 0, np.arange(20)))
    whole = resize_crops(images, boxes, 24, "bicubic")
    parts = [resize_crops(images[s], boxes[s], 24, "bicubic") for s in (slice(0, 1), slice(1, 8), slice(8, 20))]
    assert torch.equal(whole, torch.cat(parts))


def test_random_boxes_have_torchvisions_distribution():
    count, height, width = 4000, 300, 400
    ours = random_resized_boxes(np.tile([height, width], (count, 1)), SCALE, RATIO, Draws(0, 0, np.arange(count)))
    blank = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(SCALE), list(RATIO)) for _ in range(count)])
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
    quantiles = np.linspace(0.05, 0.95, 10)
    for column, side in enumerate((height, width, height, width)):
        difference = np.quantile(ours[:, column], quantiles) - np.quantile(theirs[:, column], quantiles)
        assert np.abs(difference).mean() < 0.03 * side
    aspect = ours[:, 3] / ours[:, 2]
    assert aspect.min() > 0.72 and aspect.max() < 1.38


@pytest.mark.parametrize(("height", "width"), [(400, 20), (20, 400), (1, 1)])
def test_extreme_images_get_the_central_box(height, width):
    """Where no try can fit: torchvision's fall-back, the largest central box within the ratios."""
    sizes = np.array([[height, width]])
    ours = random_resized_boxes(sizes, (1.0, 1.0), (0.9, 1.1), Draws(0, 0, np.arange(1)))
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [0.9, 1.1])
    assert ours[0].tolist() == list(theirs)


def test_padded_boxes_reach_every_shift():
    boxes = padded_boxes(np.full((5000, 2), 32), 4, Draws(0, 0, np.arange(5000)))
    assert set(boxes[:, 0]) == set(boxes[:, 1]) == set(range(-4, 5))
    assert (boxes[:, 2:] == 32).all()
    assert whole_boxes(np.array([[3, 4]])).tolist() == [[0, 0, 3, 4]]


@pytest.mark.parametrize("interpolation", PILLOW)
def test_images_one_by_one_and_together_agree_to_one_level(interpolation):
    """The two ways of the one resizer: torch's fixed point of 16 bits, and Pillow's of 22."""
    images = pictures(45, 61)
    boxes = np.array([[0, 0, 45, 61], [3, 10, 30, 20], [-4, -4, 49, 65], [5, 7, 24, 24]])
    one_by_one = as_images(resize_crops(list(images), boxes, 24, interpolation))
    together = as_images(resize_crops(as_batch(images), boxes, 24, interpolation))
    assert np.abs(one_by_one - together).max() <= 1
    assert (one_by_one[3] == images[3, 5:29, 7:31]).all()
