"""Batches of square uint8 images on the device, in an order that no hardware changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitlab.config import AugmentConfig, DatasetConfig, RecipeConfig
from vitlab.core.device import to_device
from vitlab.core.errors import ConfigError
from vitlab.data.crop import Cropping
from vitlab.data.order import epoch_length, epoch_order
from vitlab.data.readers import FileReader, MemoryReader, Reader, Request
from vitlab.data.shared import reading_at_once, share_crops, share_evaluation
from vitlab.data.sources.arrays import ArraySource
from vitlab.data.sources.registry import Source


@dataclass(frozen=True)
class Batch:
    """b samples: `images` (b, 3, S, S) uint8 and `labels` (b,) int64 on the device; the rest (b,) int64 in numpy.

    `index` is a sample's place in its data set, `repetition` which copy of it this is in the epoch, `position` its
    place in the epoch's global order.
    """

    images: Tensor
    labels: Tensor
    index: np.ndarray
    repetition: np.ndarray
    position: np.ndarray


class TrainLoader:
    """The training batches of this process: its share of every global batch, in micro-batches.

    Step s of an epoch uses samples s x batch_size … of the epoch's order; process r the r-th equal slice of them.
    The last incomplete batch is dropped.
    """

    def __init__(
        self, source: Source, dataset: DatasetConfig, augment: AugmentConfig, recipe: RecipeConfig, *, image_size: int,
        seed: int, rank: int, world: int, workers: int, micro_batch: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.seed, self.device = recipe, seed, device
        self.num_images, self.micro_batch = len(source), micro_batch
        self.share = recipe.batch_size // world
        self.offset = rank * self.share
        self.labels = source.labels
        self.steps_per_epoch = epoch_length(self.num_images, recipe.repeated_augmentation) // recipe.batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                "recipe.batch_size",
                f"{recipe.batch_size} is more than an epoch of {dataset.name} has ({self.num_images} images); lower it",
            )
        cropping = Cropping(dataset, image_size, augment.interpolation, seed)
        self.reader = share_crops(build_reader(source, cropping, device, workers), recipe, rank)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        """For each optimizer step from `start_step` on: this process's micro-batches."""
        index, repetition = epoch_order(self.num_images, self.seed, epoch, self.recipe.repeated_augmentation)
        starts = [
            step * self.recipe.batch_size + self.offset + at
            for step in range(start_step, self.steps_per_epoch)
            for at in range(0, self.share, self.micro_batch)
        ]
        slices = [slice(start, start + self.micro_batch) for start in starts]
        images = self.reader.read(epoch, [Request(s.start, index[s], repetition[s]) for s in slices])
        step: list[Batch] = []
        for place, (pixels, kept) in zip(slices, images, strict=True):
            labels = to_device(self.labels[kept], self.device)
            step.append(Batch(pixels, labels, index[place], repetition[place], np.arange(place.start, place.stop)))
            if len(step) * self.micro_batch == self.share:
                yield step
                step = []


class EvalLoader:
    """The evaluation batches of this process: every `world`-th from `rank` on, no image twice, none padded.

    Whole batches are shared out, so that an image is computed with the same others, to the same bits, on any number
    of processes.
    """

    def __init__(
        self, source: Source, dataset: DatasetConfig, *, image_size: int, rank: int, world: int, workers: int,
        batch: int, device: torch.device,
    ) -> None:  # fmt: skip
        self.device = device
        index = np.arange(len(source))
        starts = range(rank * batch, len(source), world * batch)
        self.requests = [Request(at, index[at : at + batch], np.zeros_like(index[at : at + batch])) for at in starts]
        self.labels = source.labels
        cropping = Cropping(dataset, image_size, "bicubic", None)
        self.reader = share_evaluation(build_reader(source, cropping, device, workers))

    def __iter__(self) -> Iterator[Batch]:
        for pixels, kept in self.reader.read(0, self.requests):
            labels = to_device(self.labels[kept], self.device)
            yield Batch(pixels, labels, kept, np.zeros_like(kept), kept)


def build_reader(source: Source, cropping: Cropping, device: torch.device, workers: int) -> Reader:
    """The fast path for this kind of source."""
    if isinstance(source, ArraySource):
        return MemoryReader(source, cropping, device)
    return FileReader(source, cropping, device, workers, reading_at_once())
