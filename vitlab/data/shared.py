"""Images that the cells of a study have in common, read once: the crops they train on, the images they evaluate on.

One reading process decodes, crops and resizes for all cells that see the same crops (`Ring`); the images to evaluate
on stay in memory from the first evaluation on (`EvaluationMemory`). A cell whose images are not there reads them for
itself; either way it gets the same bits.
"""

from __future__ import annotations

import functools
import multiprocessing as mp
import signal
import time
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitlab.config import CellConfig, RecipeConfig
from vitlab.core.plugins import import_plugins
from vitlab.core.processes import end_with_parent
from vitlab.data.crop import Cropping
from vitlab.data.order import CHUNK, crops_of, epoch_order, epoch_samples
from vitlab.data.readers import FileReader, ImageChunks, Reader, Request
from vitlab.data.ring import APART, FREE, IMAGES, MADE, EvaluationMemory, Given, Ring
from vitlab.data.sources.arrays import ArraySource
from vitlab.data.sources.registry import build_source
from vitlab.data.sources.staging import Copies, staged

_given = Given()


def take(given: Given) -> None:
    """Let the loaders of this process, and of those that it forks, use what it was given."""
    global _given
    _given = given


def device_share() -> float:
    """The share of the device's memory that this process may use."""
    return _given.device_share


def cells_on_device() -> int:
    """How many cells train on this process's device now, this one included."""
    return 1 if _given.present is None else max(1, int(_given.present.cells[_given.place]))


def reading_at_once() -> int:
    """How many processes train on this machine at once and read for themselves, this one included."""
    return _given.at_once


def share_crops(reader: Reader, recipe: RecipeConfig, rank: int) -> Reader:
    """`reader`, or one that takes from the ring that this process was given, where that holds these very crops."""
    ring = _given.ring
    if ring is None or not isinstance(reader, FileReader):
        return reader
    crop, num_images = reader.cropping, len(reader.source)
    crops = crops_of(crop.dataset, crop.image_size, crop.interpolation, recipe, crop.seed or 0)
    fits = crops == ring.crops and epoch_samples(num_images, recipe) <= ring.length
    return RingReader(reader, ring, _given.member + rank, recipe.epochs) if fits else reader


def share_evaluation(reader: Reader) -> Reader:
    """`reader`, or one that keeps what it reads in the memory that this process was given for these very images."""
    if isinstance(reader, FileReader):
        for memory in _given.evaluation:
            if memory.is_for(reader.cropping.dataset, reader.cropping.image_size, len(reader.source)):
                return KeepingReader(reader, memory)
    return reader


class RingReader:
    """Reads crops from a ring as member `member`; where they are not to be had there, with `own`, until they are."""

    def __init__(self, own: FileReader, ring: Ring, member: int, epochs: int) -> None:
        self.own, self.ring, self.member, self.epochs = own, ring, member, epochs
        self.bad = own.bad
        self._free: list[np.ndarray] = []

    def read(self, epoch: int, requests: Sequence[Request]) -> Iterator[tuple[Tensor, np.ndarray]]:
        ring, member = self.ring, self.member
        numbers = [epoch * ring.chunks + request.position // CHUNK for request in requests]
        numbers.append((epoch + 1) * ring.chunks)
        ring.begin(member, numbers[0], self.epochs * ring.chunks)
        if ring.facts[IMAGES]:
            self._is_ours()
        done = 0
        while done < len(requests):
            found = self._take(epoch, requests[done])
            if found is not None:
                done += 1
                ring.advance(member, numbers[done])
                yield found
                continue
            alone, first = ring.state_of(member) == APART, done
            rest = requests[first:] if alone or ring.state_of(member) == FREE else requests[first : first + 1]
            for result in self.own.read(epoch, rest, lambda i, at=first: not ring.join(member, numbers[at + i])):
                done += 1
                if done - first == len(rest) or not alone:
                    ring.advance(member, numbers[done])
                yield result
        if epoch + 1 == self.epochs:
            ring.leave(member)

    def _take(self, epoch: int, request: Request) -> tuple[Tensor, np.ndarray] | None:
        """The images of a request from the ring; None where one of its chunks is not to be had there."""
        ring, length = self.ring, len(request.index)
        images = self._buffer(length)
        kept, bad = np.empty(length, np.int64), {}
        done = 0
        while done < length:
            chunk, row = divmod(request.position + done, CHUNK)
            chunk += epoch * ring.chunks
            place = ring.wait(self.member, chunk)
            if place is None or not self._is_ours():
                return None
            count = min(CHUNK - row, length - done)
            images[done : done + count].copy_(torch.from_numpy(ring.images[place, row : row + count]))
            kept[done : done + count] = ring.kept[place, row : row + count]
            bad |= {index: text for of, index, text in ring.bad(place) if row <= of < row + count}
            if not ring.holds(self.member, place, chunk):
                return None
            done += count
        self.bad.update(bad)
        return images.to(self.own.device, non_blocking=True), kept

    def _buffer(self, length: int) -> Tensor:
        """Memory for `length` images. On a CPU it is that of an earlier request, once no tensor uses it any more: new
        pages take as long to clear as the copy takes. (Of pinned memory, torch keeps what is free.)"""
        side = self.own.cropping.image_size
        if self.own.device.type == "cuda":
            return torch.empty(length, 3, side, side, dtype=torch.uint8, pin_memory=True)
        free = self._free
        whole = free.pop() if free else None
        if whole is None or len(whole) < length:
            whole = np.empty((length, 3, side, side), np.uint8)
        lent = whole[:length]  # kept by the tensor below and by every view of it
        weakref.finalize(lent, free.append, whole).atexit = False
        return torch.from_numpy(lent)

    @functools.cached_property
    def _same_files(self) -> bool:
        """Whether the reading process has the very files of this one; a tree may change between their starts."""
        name = self.own.source.fingerprint().encode()[: len(self.ring.name)]
        same = self.ring.name.tobytes().rstrip(b"\0") == name and self.ring.facts[IMAGES] == len(self.own.source)
        return bool(same)

    def _is_ours(self) -> bool:
        if not self._same_files:
            self.ring.leave(self.member)
        return self._same_files


def seconds_to_read(cell: CellConfig) -> float:
    """Processor seconds of one core for reading an image of a cell's training; 0 where its images are in memory."""
    source = build_source(cell.dataset, "train")
    if isinstance(source, ArraySource):
        return 0.0
    crops = Cropping(cell.dataset, cell.model.image_size, cell.augment.interpolation, cell.seed)
    chunks, order = ImageChunks(source, crops), epoch_order(len(source), cell.seed, 0, 1)[0][: 2 * CHUNK]
    half = max(1, len(order) // 2)
    chunks[0, order[:half], np.zeros(half, np.int64)]  # what is loaded at the first image
    began = time.process_time()
    chunks[0, order[-half:], np.zeros(half, np.int64)]
    return (time.process_time() - began) / half


def read_for_all(ring: Ring, plugins: tuple[str, ...], readers: int) -> None:
    """Fill a ring until its members have ended: the life of a reading process, which ends with the one that started it.

    It decodes with `readers` processes of its own, or, with fewer than two, by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the cells save, and read while they do
    end_with_parent(signal.SIGKILL)
    ring.serve_as(0)
    torch.set_num_threads(1)
    import_plugins(plugins)
    crops = ring.crops
    copies = _copies_for(ring)
    if ring.is_over():
        return None
    source = build_source(crops.dataset, "train", copies)
    if isinstance(source, ArraySource):
        return ring.describe(0, "")
    chunks = ImageChunks(source, Cropping(crops.dataset, crops.image_size, crops.interpolation, crops.seed))
    ring.describe(len(source), source.fingerprint())
    if readers < 2:
        return _fill(ring, chunks, 0)
    context = mp.get_context("fork")
    helpers: dict[int, Any] = {}
    while not ring.is_over():
        for number in range(1, readers + 1):
            if number not in helpers or not helpers[number].is_alive():
                helpers[number] = context.Process(target=_help, args=(ring, chunks, number), daemon=True)
                helpers[number].start()
        wait([helper.sentinel for helper in helpers.values()], timeout=0.5)
        ring.bury()
    return None


def _copies_for(ring: Ring) -> Copies:
    """The copies of the data set on this node, once a member has made them; none where all members end before."""
    reports = staged(ring.crops.dataset, ("train",), copying=False)
    while not ring.is_over():
        try:
            next(reports)
        except StopIteration as end:
            ring.facts[MADE] = time.monotonic_ns()  # the members begin now, not when the ring was made
            return end.value
        ring.bury()
    return {}


def _help(ring: Ring, chunks: ImageChunks, number: int) -> None:
    end_with_parent(signal.SIGKILL)
    ring.serve_as(number)
    _fill(ring, chunks, number)


def _fill(ring: Ring, chunks: ImageChunks, reader: int) -> None:
    """Read one chunk after another that is wanted."""
    order = functools.lru_cache(2)(
        lambda epoch: epoch_order(len(chunks.source), ring.crops.seed, epoch, ring.crops.repeats)
    )
    idle, looked = 0, time.monotonic()
    while not ring.is_over():
        claimed = ring.claim(reader)
        if claimed is None:
            idle += 1
            time.sleep(min(0.001 * idle, 0.02))
            if time.monotonic() - looked > 0.2:
                looked = time.monotonic()
                ring.bury()
            continue
        idle = 0
        place, number = claimed
        epoch, chunk = divmod(number, ring.chunks)
        rows = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, ring.length))
        index, repetition = order(epoch)
        try:
            ring.publish(place, chunks.read(epoch, index[rows], repetition[rows], torch.from_numpy(ring.images[place])))
        except Exception:  # whoever needs it reads it, and meets and reports the error
            ring.fail(place)


class KeepingReader:
    """Reads with `own` what is not yet in `memory`, and keeps it there; batches with bad images are read each time.

    Of cells that need the same batches at once, one reads, and the others wait for each batch, up to `patience` s.
    """

    def __init__(self, own: FileReader, memory: EvaluationMemory, patience: float = 60) -> None:
        self.own, self.memory, self.patience = own, memory, patience
        self.bad = own.bad
        self._reads = False
        """Whether this is the one that reads."""

    def read(self, epoch: int, requests: Sequence[Request]) -> Iterator[tuple[Tensor, np.ndarray]]:
        memory, done = self.memory, 0
        lock = int(requests[0].index[0]) if requests else 0  # ranks of a cell need other batches, and read all at once
        try:
            while done < len(requests):
                index = requests[done].index
                if self._is_read(index, lock):
                    done += 1
                    images = torch.from_numpy(memory.images[index[0] : index[-1] + 1])
                    yield images.to(self.own.device, non_blocking=True), index
                    continue
                rest = requests[done:]
                for images, kept in self.own.read(
                    epoch, rest, lambda i, r=rest: self._reads and not memory.has(r[i].index)
                ):
                    memory.keep(requests[done].index, images if len(kept) == len(requests[done].index) else None)
                    done += 1
                    yield images, kept
        finally:
            if self._reads:
                self._reads = False
                memory.memory.release(lock)

    def _is_read(self, index: np.ndarray, lock: int) -> bool:
        """Whether images are in the memory, or come while another cell reads; False where this one has to read them."""
        memory, end = self.memory, time.monotonic() + self.patience
        while not memory.has(index):
            if self._reads or memory.is_bad(index):
                return False
            if time.monotonic() > end:
                self.patience = 0.0  # whoever reads is stuck, or slower than reading
                return False
            self._reads = memory.memory.hold(lock)
            time.sleep(0 if self._reads else 0.005)
        return True
