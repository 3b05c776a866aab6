"""FractalDB as a data set."""

import dataclasses
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from vitlab.config import FractalConfig, choice
from vitlab.data.formula.source import FractalSource
from vitlab.data.loader import TrainLoader

SPEC = FractalConfig(categories=3, instances=60, image_size=40, num_points=3000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def source(folder):
    return FractalSource(SPEC, folder, threads=2)


def pixels(source, epoch=0):
    return np.stack([source.image(i, epoch) for i in range(len(source))])


def picture(source_and_index):
    source, index = source_and_index
    return source.image(index, 0)


def test_it_is_a_source(source):
    assert len(source) == 180 and source.classes == ("00000", "00001", "00002")
    assert source.labels.dtype == np.int64 and np.bincount(source.labels).tolist() == [60, 60, 60]
    image = source.image(7)
    assert image.shape == (40, 40, 3) and image.dtype == np.uint8
    assert set(np.unique(image)) == {0, 127}
    assert (image == image[..., :1]).all()


def test_images_differ(source):
    assert len({image.tobytes() for image in pixels(source)}) == len(source)


def test_crops_are_slices_and_black_outside(source):
    rng = np.random.default_rng(3)
    for index in range(0, len(source), 5):
        padded = np.pad(source.image(index)[..., 0], 50)
        top, left = rng.integers(-49, 60, 2)
        height, width = rng.integers(1, 30, 2)
        expected = padded[top + 50 : top + 50 + height, left + 50 : left + 50 + width]
        np.testing.assert_array_equal(source.crop(index, np.array([top, left, height, width])), expected)


def test_the_same_in_threads_and_processes(source):
    asked = [(source, i) for i in (0, 5, 61, 179)]
    here = [picture(a) for a in asked]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(picture, asked)), here)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        np.testing.assert_array_equal(list(pool.map(picture, asked)), here)


def test_a_pickled_source_carries_no_pixels(source):
    source.image(3)
    assert len(pickle.dumps(source)) < 10_000 + 8 * len(source)


def test_fewer_categories_or_instances_are_the_same_pictures(source, folder):
    few = FractalSource(replace(SPEC, categories=2, instances=10), folder)
    for category in range(2):
        for number in range(10):
            np.testing.assert_array_equal(few.image(category * 10 + number), source.image(category * 60 + number))


def test_fresh_masks_are_new_each_epoch_on_the_same_shapes(source, folder):
    fresh = FractalSource(replace(SPEC, fresh_masks=True), folder)
    np.testing.assert_array_equal(fresh.image(4, 0), source.image(4, 0))
    np.testing.assert_array_equal(source.image(4, 5), source.image(4, 0))
    assert (fresh.image(4, 1) != fresh.image(4, 0)).any() and (fresh.image(4, 1) != fresh.image(4, 2)).any()
    np.testing.assert_array_equal(fresh.image(4, 1), fresh.image(4, 1))
    never = np.all([fresh.image(0, epoch) == 0 for epoch in range(24)], axis=0)
    np.testing.assert_array_equal(never, np.all([fresh.image(0, epoch) == 0 for epoch in range(24, 60)], axis=0))


def batches(source, workers, epoch=0):
    """An epoch's images (n, 3, 32, 32) from the loader."""
    dataset = choice("dataset", "fractaldb60")
    recipe = dataclasses.replace(choice("recipe", "quick"), batch_size=60)
    loader = TrainLoader(
        source, dataset, choice("augment", "none"), recipe, image_size=32, seed=3, rank=0, world=1, workers=workers,
        micro_batch=30, device=torch.device("cpu"),
    )  # fmt: skip
    return torch.cat([batch.images for step in loader.epoch(epoch) for batch in step])


def test_the_loader_gives_the_same_with_any_number_of_workers(source):
    alone = batches(source, workers=0)
    assert alone.shape == (180, 3, 32, 32) and alone.dtype == torch.uint8
    for workers in (1, 2):
        assert torch.equal(batches(source, workers), alone)


def test_the_loader_asks_for_the_masks_of_its_epoch(source, folder):
    fresh = FractalSource(replace(SPEC, fresh_masks=True), folder)
    assert torch.equal(batches(fresh, 0), batches(source, 0)), "the first epoch's masks are the set's own"
    assert not torch.equal(batches(fresh, 0, epoch=1), batches(source, 0, epoch=1))


def test_what_the_loader_renders_is_what_it_would_read_from_whole_images(source):
    class Whole:
        """The same images, without the way to ask for a part of one."""

        labels, classes = source.labels, source.classes
        image = staticmethod(source.image)

        def __len__(self):
            return len(source)

    assert torch.equal(batches(Whole(), 0), batches(source, 0))


def test_another_mask_seed_is_other_pictures(source, folder):
    other = FractalSource(replace(SPEC, mask_seed=1), folder)
    assert (other.image(0) != source.image(0)).any()
    assert other.fingerprint() != source.fingerprint()


def test_select(source):
    rows = np.array([170, 3, 62])
    chosen = source.select(rows)
    assert len(chosen) == 3 and chosen.labels.tolist() == [2, 0, 1] and chosen.classes == source.classes
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(chosen.image(place), source.image(row))
    np.testing.assert_array_equal(chosen.select(np.array([2])).image(0), source.image(62))
    assert len(source) == 180


@pytest.mark.parametrize("index", [180, -181])
def test_an_index_outside_is_an_error(source, index):
    with pytest.raises(IndexError):
        source.image(index)
