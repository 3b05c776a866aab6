"""From requests to square images on the device: of data sets in memory at once, of all others in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from vitlab.core.device import shared_memory, to_device
from vitlab.core.errors import UserError
from vitlab.core.files import in_units
from vitlab.core.processes import SharedMemory, end_with_parent
from vitlab.data.crop import Cropping, resize_crops
from vitlab.data.decode import BadImageError
from vitlab.data.order import CHUNK, PREFETCH, chunks_ahead, pixel_bytes
from vitlab.data.sources.arrays import ArraySource
from vitlab.data.sources.registry import Source


@dataclass(frozen=True)
class Request:
    """Samples that are wanted together: `index` and `repetition` (b,) int64, in a row from `position` on in the epoch's
    global order."""

    position: int
    index: np.ndarray
    repetition: np.ndarray


class Reader(Protocol):
    """Reads images in the order in which they are wanted."""

    bad: dict[int, str]
    """The bad images met so far: place in the data set → what is wrong with which file."""

    def read(self, epoch: int, requests: Sequence[Request]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """For each request: images (b, 3, S, S) uint8 on the device, and the indices (b,) that they are of.

        Raises BadImageError for a bad image; where it may be skipped it is left out, and noted in `bad`.
        """
        ...


class MemoryReader:
    """Reads an ArraySource: pixels stay on the device, crops are made there for a whole batch at once."""

    def __init__(self, source: ArraySource, cropping: Cropping, device: torch.device) -> None:
        self.cropping, self.device = cropping, device
        self.bad: dict[int, str] = {}  # what is in memory has been read
        self.pixels = torch.from_numpy(np.ascontiguousarray(source.images)).to(device)  # (N, H, W, 3)

    def read(self, epoch: int, requests: Sequence[Request]) -> Iterator[tuple[Tensor, np.ndarray]]:
        for request in requests:
            images = self.pixels[to_device(request.index, self.device)].permute(0, 3, 1, 2)
            yield self.cropping.squares(images, epoch, request.index, request.repetition), request.index


def _always(number: int) -> bool:
    return True


class FileReader:
    """Reads any other source in `workers` processes, a chunk of images at a time."""

    def __init__(
        self, source: Source, cropping: Cropping, device: torch.device, workers: int, at_once: int = 1
    ) -> None:
        """`at_once`: how many such readers this machine has. Raises ConfigError like `chunks_ahead`."""
        self.device, self.source, self.cropping = device, source, cropping
        self.bad: dict[int, str] = {}
        self._order = _Order()
        pinned = device.type == "cuda"
        over = SharedMemory(1) if workers else None
        if over:  # of this reader, or of its process: before multiprocessing sends SIGTERM to the workers
            Finalize(self, _mean_it, (over,), exitpriority=1)
        ahead = chunks_ahead(workers, cropping.image_size, at_once) if workers else None
        if workers:  # a cell's processes come from a fork server: without this each of them imports torch, for 2 s
            multiprocessing.set_forkserver_preload([__name__])
        self._loader = DataLoader(
            ImageChunks(source, cropping, over), sampler=self._order, batch_size=None, num_workers=workers,
            persistent_workers=workers > 0, pin_memory=pinned, prefetch_factor=ahead,
            worker_init_fn=_serve_reader,
        )  # fmt: skip

    def read(
        self, epoch: int, requests: Sequence[Request], go_on: Callable[[int], bool] = _always
    ) -> Iterator[tuple[Tensor, np.ndarray]]:
        """As Reader.read, up to the first request after the first one of which `go_on(its number)` is false."""
        order = self._order
        order.epoch, order.requests, order.go_on = epoch, requests, go_on
        try:
            chunks = iter(self._loader)
            for request in requests:
                parts: list[Tensor] = []
                kept: list[np.ndarray] = []
                whole = self._room_for(len(request.index))
                for _ in range(0, len(request.index), CHUNK):
                    try:
                        chunk = next(chunks, None)
                    except RuntimeError as error:
                        raise self._explained(error) from error
                    if chunk is None:
                        return
                    if isinstance(chunk.images, str):
                        raise BadImageError(chunk.images)
                    self.bad.update((place, text) for _, place, text in chunk.bad)
                    if whole is None:
                        parts.append(chunk.images.to(self.device, non_blocking=True))
                    else:
                        done = sum(map(len, kept))
                        whole[done : done + len(chunk.kept)] = chunk.images
                    kept.append(chunk.kept)
                    del chunk
                indices = np.concatenate(kept)
                if whole is not None:
                    parts = [whole[: len(indices)]]
                yield (torch.cat(parts) if len(parts) > 1 else parts[0]), indices
        finally:
            # `go_on` refers to who asked, and that to this reader: a cycle would keep the workers until the garbage
            # collector runs, which may be in a process forked since then, whose children they are not
            if order.go_on is go_on:
                order.go_on = _always

    def _room_for(self, images: int) -> Tensor | None:
        """Memory of this process for a request of several chunks, each of which is then given back at once; None where
        they are copied to a device anyway."""
        if self.device.type != "cpu" or images <= CHUNK:
            return None
        return torch.empty(images, 3, self.cropping.image_size, self.cropping.image_size, dtype=torch.uint8)

    def _explained(self, error: RuntimeError) -> Exception:
        """What an error of the loader means: a worker that lacks shared memory is killed without a word."""
        needed = 2 * self._loader.num_workers * PREFETCH * pixel_bytes(CHUNK, self.cropping.image_size)
        there = shared_memory()[1]
        if "DataLoader worker" not in str(error) or there > needed:
            return error
        return UserError(
            f"a process that reads images was killed, most likely since /dev/shm has no more than {in_units(there)}; "
            "give workers=0, or enlarge it (in a container: docker run --ipc=host, or --shm-size=1g)"
        )


def _serve_reader(worker: int) -> None:
    """End with the reader, and not before: Slurm and terminals send their signals to all processes of a job, and the
    reader may still need images while it saves. (torch's workers look for the death of their parent: where that is a
    fork server, it is not the one that reads.)

    At its own end the reader sends SIGTERM and waits; it says before that it means it. A handler, and no mask: threads
    that a library has started before (pyarrow's, after a fork) would not have the mask, and let the signal kill.
    """
    chunks: Any = getattr(get_worker_info(), "dataset", None)
    over: SharedMemory = chunks.over
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if over.content[0] else None)
    end_with_parent(signal.SIGKILL)


def _mean_it(over: SharedMemory) -> None:
    over.content[0] = 1
    os.close(over.file)  # the workers have theirs


class _Order(Sampler):
    """The chunks of the requests that come next, in order."""

    def __init__(self) -> None:
        self.epoch = 0
        self.requests: Sequence[Request] = ()
        self.go_on: Callable[[int], bool] = _always

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for number, request in enumerate(self.requests):
            if number and not self.go_on(number):
                return
            for at in range(0, len(request.index), CHUNK):
                yield self.epoch, request.index[at : at + CHUNK], request.repetition[at : at + CHUNK]


class Chunk(NamedTuple):
    """What was read of up to CHUNK samples."""

    images: Tensor | str
    """(b, 3, S, S) uint8; or an error's message."""
    kept: np.ndarray
    """(b,) int64: which images of the data set they are."""
    bad: list[tuple[int, int, str]]
    """The bad images met: for which sample of the chunk, the image's place in the data set, what is wrong."""


class ImageChunks(Dataset):
    """Decodes, crops and resizes the images of a chunk, given its epoch, `index` and `repetition`."""

    def __init__(self, source: Source, cropping: Cropping, over: SharedMemory | None = None) -> None:
        self.source, self.cropping, self.over = source, cropping, over

    def __getitem__(self, request: tuple[int, np.ndarray, np.ndarray]) -> Chunk:
        return self.read(*request)

    def read(self, epoch: int, index: np.ndarray, repetition: np.ndarray, out: Tensor | None = None) -> Chunk:
        """The images of a chunk. Training's are written to `out` (CHUNK, 3, S, S), unless they are drawn."""
        if hasattr(self.source, "crop"):
            return Chunk(self._render(epoch, index, repetition), index, [])
        bad: list[tuple[int, int, str]] = []
        pixels, kept = [], []
        for row, i in enumerate(index):
            try:
                image, at = self._good_image(row, int(i), bad)
            except UserError as error:  # bad, or of a file that was replaced: that one is no image to skip
                ways = "; fix the file, or leave such images out with dataset.bad_images=skip"
                return Chunk(str(error) + ways * isinstance(error, BadImageError), index, bad)
            if image is not None:
                pixels.append(image)
                kept.append(at)
        taken, size = np.array(kept, dtype=np.int64), self.cropping.image_size
        if not pixels:
            return Chunk(torch.empty(0, 3, size, size, dtype=torch.uint8), taken, bad)
        room = None if out is None else out[: len(pixels)]
        return Chunk(self.cropping.squares(pixels, epoch, index, repetition, room), taken, bad)

    def _render(self, epoch: int, index: np.ndarray, repetition: np.ndarray) -> Tensor:
        """Images of a source that draws only the part that is wanted (FractalDB): grey, so resized once."""
        source: Any = self.source
        sizes = np.full((len(index), 2), source.image_size)
        boxes = np.rint(self.cropping.boxes(sizes, epoch, index, repetition)).astype(np.int64)
        greys = [source.crop(int(i), box, epoch)[..., None] for i, box in zip(index, boxes, strict=True)]
        whole = np.array([[0, 0, *grey.shape[:2]] for grey in greys])
        squares = resize_crops(greys, whole, self.cropping.image_size, self.cropping.interpolation)
        return squares.expand(-1, 3, -1, -1).contiguous()

    def _good_image(self, row: int, index: int, bad: list[tuple[int, int, str]]) -> tuple[np.ndarray | None, int]:
        """The image at `index`; where it is bad and may be skipped, the next good one (training) or None."""
        first = None
        for at in (*range(index, len(self.source)), *range(index)):
            try:
                return self.source.image(at), at
            except BadImageError as error:
                first = first or error
                bad.append((row, at, str(error)))
                if self.cropping.dataset.bad_images == "error":
                    raise
                if self.cropping.seed is None:
                    return None, at
        raise BadImageError(f"every image of {self.cropping.dataset.name} is bad; the first: {first}")
