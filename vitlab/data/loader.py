"""Batches of square uint8 images on the device, in an order that no hardware changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vitlab.config import AugmentConfig, DatasetConfig, RecipeConfig
from vitlab.core.errors import ConfigError
from vitlab.data.crop import Cropping, resize_crops
from vitlab.data.decode import BadImageError
from vitlab.data.order import epoch_length, epoch_order
from vitlab.data.sources.arrays import ArraySource
from vitlab.data.sources.registry import Source

_CHUNK = 32
"""Images that a worker hands over at a time."""


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


class MemoryReader:
    """Reads an ArraySource: pixels stay on the device, crops are made there for a whole batch at once."""

    def __init__(self, source: ArraySource, cropping: Cropping, device: torch.device) -> None:
        self.cropping, self.device = cropping, device
        self.bad: dict[int, str] = {}  # what is in memory has been read
        self.pixels = torch.from_numpy(np.ascontiguousarray(source.images)).to(device)  # (N, H, W, 3)

    def read(self, epoch: int, requests: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """For each request (index, repetition): images (b, 3, S, S) uint8, and the indices they are of."""
        for index, repetition in requests:
            images = self.pixels[torch.from_numpy(index).to(self.device)].permute(0, 3, 1, 2)
            yield self.cropping.squares(images, epoch, index, repetition), index


class FileReader:
    """Reads any other source in worker processes, a chunk of images at a time."""

    def __init__(self, source: Source, cropping: Cropping, device: torch.device, workers: int) -> None:
        self.device, self.source = device, source
        self.bad: dict[int, str] = {}
        """The bad images met so far: place in the data set → what is wrong with which file."""
        self._requests = _Requests()
        pinned = device.type == "cuda"
        self._loader = DataLoader(
            _Chunks(source, cropping), sampler=self._requests, batch_size=None, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=pinned, prefetch_factor=8 if workers else None,
        )  # fmt: skip

    def read(self, epoch: int, requests: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """As MemoryReader.read. A bad image raises, or is left out and counted in `bad` where that was chosen."""
        self._requests.chunks = [
            (epoch, index[at : at + _CHUNK], repetition[at : at + _CHUNK])
            for index, repetition in requests
            for at in range(0, len(index), _CHUNK)
        ]
        chunks = iter(self._loader)
        for index, _ in requests:
            parts: list[Tensor] = []
            kept: list[np.ndarray] = []
            for _ in range(0, len(index), _CHUNK):
                images, indices, bad = next(chunks)
                if isinstance(images, str):
                    raise BadImageError(images)
                self.bad.update(bad)
                parts.append(images.to(self.device, non_blocking=True))
                kept.append(indices)
            yield (torch.cat(parts) if len(parts) > 1 else parts[0]), np.concatenate(kept)


class _Requests(Sampler):
    """The chunks of the coming epoch, in order."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, np.ndarray, np.ndarray]] = []

    def __iter__(self):
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


class _Chunks(Dataset):
    """What a worker does: decode, crop and resize the images of one request."""

    def __init__(self, source: Source, cropping: Cropping) -> None:
        self.source, self.cropping = source, cropping

    def __getitem__(
        self, request: tuple[int, np.ndarray, np.ndarray]
    ) -> tuple[Tensor | str, np.ndarray, dict[int, str]]:
        """Images (b, 3, S, S), their indices, and the bad ones; in place of the images, the words of an error."""
        epoch, index, repetition = request
        if hasattr(self.source, "crop"):
            return self._render(epoch, index, repetition), index, {}
        bad: dict[int, str] = {}
        pixels, kept = [], []
        for i in index:
            try:
                image, at = self._good_image(int(i), bad)
            except BadImageError as error:
                return f"{error}; fix the file, or leave such images out with dataset.bad_images=skip", index, bad
            if image is not None:
                pixels.append(image)
                kept.append(at)
        taken, size = np.array(kept, dtype=np.int64), self.cropping.image_size
        if not pixels:
            return torch.empty(0, 3, size, size, dtype=torch.uint8), taken, bad
        return self.cropping.squares(pixels, epoch, index, repetition), taken, bad

    def _render(self, epoch: int, index: np.ndarray, repetition: np.ndarray) -> Tensor:
        """Images of a source that draws only the part that is wanted (FractalDB): grey, so resized once."""
        source: Any = self.source
        sizes = np.full((len(index), 2), source.image_size)
        boxes = np.rint(self.cropping.boxes(sizes, epoch, index, repetition)).astype(np.int64)
        greys = [source.crop(int(i), box, epoch)[..., None] for i, box in zip(index, boxes, strict=True)]
        whole = np.array([[0, 0, *grey.shape[:2]] for grey in greys])
        squares = resize_crops(greys, whole, self.cropping.image_size, self.cropping.interpolation)
        return squares.expand(-1, 3, -1, -1).contiguous()

    def _good_image(self, index: int, bad: dict[int, str]) -> tuple[np.ndarray | None, int]:
        """The image at `index`; where it is bad and may be skipped, the next good one (training) or None."""
        for at in (*range(index, len(self.source)), *range(index)):
            try:
                return self.source.image(at), at
            except BadImageError as error:
                bad[at] = str(error)
                if self.cropping.dataset.bad_images == "error":
                    raise
                if self.cropping.seed is None:
                    return None, at
        raise BadImageError(f"every image of {self.cropping.dataset.name} is bad; the first: {bad[index]}")


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
        self.labels = torch.from_numpy(source.labels)
        self.steps_per_epoch = epoch_length(self.num_images, recipe.repeated_augmentation) // recipe.batch_size
        if not self.steps_per_epoch:
            raise ConfigError(
                "recipe.batch_size",
                f"{recipe.batch_size} is more than an epoch of {dataset.name} has ({self.num_images} images); lower it",
            )
        self.reader = build_reader(source, Cropping(dataset, image_size, augment.interpolation, seed), device, workers)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        """For each optimizer step from `start_step` on: this process's micro-batches."""
        index, repetition = epoch_order(self.num_images, self.seed, epoch, self.recipe.repeated_augmentation)
        starts = [
            step * self.recipe.batch_size + self.offset + at
            for step in range(start_step, self.steps_per_epoch)
            for at in range(0, self.share, self.micro_batch)
        ]
        slices = [slice(start, start + self.micro_batch) for start in starts]
        images = self.reader.read(epoch, [(index[s], repetition[s]) for s in slices])
        step: list[Batch] = []
        for place, (pixels, kept) in zip(slices, images, strict=True):
            labels = self.labels[torch.from_numpy(kept)].to(self.device, non_blocking=True)
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
        self.requests = [index[at : at + batch] for at in range(rank * batch, len(source), world * batch)]
        self.labels = torch.from_numpy(source.labels)
        self.reader = build_reader(source, Cropping(dataset, image_size, "bicubic", None), device, workers)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, kept in self.reader.read(0, [(r, np.zeros_like(r)) for r in self.requests]):
            labels = self.labels[torch.from_numpy(kept)].to(self.device, non_blocking=True)
            yield Batch(pixels, labels, kept, np.zeros_like(kept), kept)


def build_reader(source: Source, cropping: Cropping, device: torch.device, workers: int) -> MemoryReader | FileReader:
    """The fast path for this kind of source."""
    if isinstance(source, ArraySource):
        return MemoryReader(source, cropping, device)
    return FileReader(source, cropping, device, workers)
