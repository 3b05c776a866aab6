"""Which samples a training sees in which order: a function of its configuration, whatever the hardware."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitlab.config import CellConfig, DatasetConfig, RecipeConfig
from vitlab.core.device import shared_memory
from vitlab.core.errors import ConfigError
from vitlab.core.files import in_units
from vitlab.core.random import permutation

CHUNK = 32
"""Images that are read at a time."""
PREFETCH = 8
"""Chunks that each worker reads ahead, where there is the memory to hand them over."""
_LEAST_WINDOW = 1024
_AFTER_THE_CROP = ("mean", "std", "hflip", "eval_crop", "eval_interpolation")
"""Fields of a data set that change no crop, only what is made of it, or how it is evaluated."""
_OF_TRAINING = (
    "mean", "std", "hflip", "train_crop", "crop_scale", "crop_ratio", "pad", "train_per_class", "train_fraction",
    "subset_seed",
)  # fmt: skip
"""Fields that change no image to evaluate on."""

_ROUND = 256
"""DeiT's repeated-augmentation sampler takes a multiple of so many samples per epoch."""


def epoch_order(num_images: int, seed: int, epoch: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Which image each sample of an epoch is, and which copy of it: two (N,) int64 arrays.

    With `repeats` k > 1, every image of the shuffled order comes k times in a row and the first N samples are
    taken: an epoch then sees about 1/k of the images k times each, another part in every epoch, on one device as on
    many (repeated augmentation: Hoffer et al., CVPR 2020; Berman et al., 2019; DeiT's RASampler).
    """
    order = permutation(seed, "order", epoch, num_images)
    if repeats == 1:
        return order, np.zeros(num_images, dtype=np.int64)
    length = epoch_length(num_images, repeats)
    place = np.arange(length)
    return order[place // repeats], place % repeats


def epoch_length(num_images: int, repeats: int) -> int:
    """Samples of an epoch before the last incomplete batch is dropped."""
    return num_images // _ROUND * _ROUND if repeats > 1 and num_images >= _ROUND else num_images


def num_steps(cell: CellConfig) -> int:
    """Optimizer steps of all epochs of a cell."""
    length = epoch_length(cell.dataset.train_images, cell.recipe.repeated_augmentation)
    return cell.recipe.epochs * (length // cell.recipe.batch_size)


@dataclass(frozen=True)
class Crops:
    """What decides a training's crops: trainings with equal ones see the same images in the same order."""

    dataset: DatasetConfig
    image_size: int
    interpolation: str
    repeats: int
    seed: int


def crops_of(dataset: DatasetConfig, image_size: int, interpolation: str, recipe: RecipeConfig, seed: int) -> Crops:
    return Crops(_without(dataset, _AFTER_THE_CROP), image_size, interpolation, recipe.repeated_augmentation, seed)


def crops_of_cell(cell: CellConfig) -> Crops:
    return crops_of(cell.dataset, cell.model.image_size, cell.augment.interpolation, cell.recipe, cell.seed)


def epoch_samples(num_images: int, recipe: RecipeConfig) -> int:
    """Samples of an epoch that make whole batches."""
    return epoch_length(num_images, recipe.repeated_augmentation) // recipe.batch_size * recipe.batch_size


def evaluated_as(dataset: DatasetConfig) -> DatasetConfig:
    """`dataset` without what changes no image to evaluate on: data sets equal then are evaluated on the same images."""
    return _without(dataset, _OF_TRAINING)


def window_for(batch: int, length: int) -> int:
    """Chunks of the window in which cells share what is read: four global batches, at least 1,024 samples, and never
    more than two epochs of `length` samples."""
    return min(-(-max(4 * batch, _LEAST_WINDOW) // CHUNK), max(2, 2 * -(-length // CHUNK)))


def readers_for(members: int, workers: int, cores: int) -> int:
    """Processes that decode for `members` processes which train and share what is read: as many as these would have had
    alone (`workers` each; with none, they decode themselves), but no more than there are cores."""
    return max(1, min(cores, members * max(1, workers)))


def chunks_ahead(workers: int, image_size: int, at_once: int = 1) -> int:
    """Chunks of square images that each of `workers` reads ahead: PREFETCH, or as many as shared memory has room for.

    Docker and Kubernetes give a container 64 MB of it, and processes that read `at_once` have a part each. Raises
    ConfigError where there is not room for one chunk of each worker, those in work, and two that are used.
    """
    chunk, free = pixel_bytes(CHUNK, image_size), shared_memory()[0] // at_once
    if (least := (2 * workers + 2) * chunk) > free:
        each = f" for each of {at_once} trainings at once" if at_once > 1 else ""
        raise ConfigError(
            "workers",
            f"processes that read images hand them over through /dev/shm, of which {in_units(free)} are free{each}; "
            f"{workers} need {in_units(least)} (in a container: docker run --ipc=host, or --shm-size=1g)",
            ["workers=0"],
        )
    return max(1, min(PREFETCH, free // 2 // (workers * chunk)))


def pixel_bytes(images: int, image_size: int) -> int:
    """The memory of so many square images."""
    return images * 3 * image_size**2


def _without(dataset: DatasetConfig, names: Sequence[str]) -> DatasetConfig:
    """`dataset` with these fields at their defaults."""
    defaults = {f.name: f.default for f in dataclasses.fields(dataset) if f.name in names}
    return dataclasses.replace(dataset, **defaults)
