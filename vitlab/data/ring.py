"""Memory that cells have in common: a window of what they train on, filled by one reader; what they evaluate on.

Chunks of images are numbered through all epochs. A member of a ring is a process that trains; it is *joined* while the
window moves on only as it takes its chunks, and *apart* while it reads for itself. Reading processes fill the window
from its oldest chunk that a joined member still needs; a chunk's place is used again once no joined member needs it.
Everything that decides is in the memory or is a lock that ends with its holder, so that any process may die at any
moment.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.config import DatasetConfig
from vitlab.core.processes import SharedMemory
from vitlab.data.order import CHUNK, Crops, evaluated_as, pixel_bytes

if TYPE_CHECKING:  # the process that makes a ring needs no torch
    from torch import Tensor

    from vitlab.data.readers import Chunk

FREE, EXPECTED, JOINED, APART = range(4)
"""Of a member: it has ended or left; it has not begun to read; see above."""
EMPTY, FILLING, FILLED, FAILED = range(4)
"""Of a place: FAILED is a chunk that each member is to read for itself."""
STATE, NEXT, UNTIL, WANTED = range(4)  # columns of the members: chunks, `WANTED` -1 where none is waited for
CHUNK_OF, OWNER, TEXT = 1, 2, 3  # columns of the places after STATE: its chunk, who fills it, bytes of its text
IMAGES, OPEN, TICK, STARVED, MADE = range(5)  # the facts: images of the data set (-1: no use), the rest in ns
_FACTS, _NAME, _TEXT_BYTES = 8, 64, 2048
KEPT, BAD = 1, 2
"""Of an image to evaluate on; 0: not yet read."""


class Ring:
    """A window of chunks of `crops`; an epoch is `length` samples, `members` processes take part.

    `patience` is how many seconds the others wait for a member before it is set apart, `start_patience` how many for
    one that has not begun. Raises OSError where the machine has not the memory (about `pixel_bytes` of its window).
    """

    def __init__(
        self, crops: Crops, length: int, members: int, window: int, patience: float = 120, start_patience: float = 120,
        memory: SharedMemory | None = None,
    ) -> None:  # fmt: skip
        self.crops, self.length, self.window = crops, length, window
        self.patience, self.start_patience = patience, start_patience
        self.chunks = -(-length // CHUNK)
        """Chunks of an epoch."""
        side = crops.image_size
        shapes: list[tuple[tuple[int, ...], type]] = [
            ((_FACTS,), np.int64), ((members, 4), np.int64), ((window, 4), np.int64), ((window, CHUNK), np.int64),
            ((_NAME,), np.uint8), ((window, _TEXT_BYTES), np.uint8), ((window, CHUNK, 3, side, side), np.uint8),
        ]  # fmt: skip
        sizes = [int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in shapes]
        starts = np.cumsum([0, *sizes])
        self.memory = memory or SharedMemory(int(starts[-1]))
        arrays = [self.memory.array(int(at), *shape) for at, shape in zip(starts, shapes, strict=False)]
        self.facts, self.members, self.places, self.kept, self.name, self.texts, self.images = arrays
        if memory is None:
            self.members[:, STATE], self.members[:, WANTED], self.places[:, CHUNK_OF] = EXPECTED, -1, -1
            self.facts[MADE] = time.monotonic_ns()

    def __reduce__(self) -> tuple[Any, ...]:
        about = (self.crops, self.length, len(self.members), self.window, self.patience, self.start_patience)
        return Ring, (*about, self.memory)

    # What the readers do

    def describe(self, images: int, fingerprint: str) -> None:
        """Say what is read: so many images; 0 where it cannot be shared."""
        name = fingerprint.encode()[:_NAME]
        self.name[: len(name)] = np.frombuffer(name, np.uint8)
        self.facts[IMAGES] = images or -1

    def serve_as(self, reader: int) -> None:
        """Be the reading process of this number, 0 the first; waits until its predecessor has ended."""
        self.memory.hold(self._reader_lock(reader), wait=True)
        with self.memory.held(0):  # what it died of, maybe: each member is to read that for itself
            self.places[(self.places[:, STATE] == FILLING) & (self.places[:, OWNER] == reader), STATE] = FAILED

    def claim(self, reader: int) -> tuple[int, int] | None:
        """The place and number of the chunk to read next; None while there is none."""
        with self.memory.held(0):
            self._open()
            wanted = self._wanted()
            if len(wanted):
                places = self.places[wanted % self.window]
                there = (places[:, CHUNK_OF] == wanted) & (places[:, STATE] != EMPTY)
                free = np.flatnonzero(~there & (places[:, STATE] != FILLING))
                if len(free):
                    chunk = int(wanted[free[0]])
                    place = chunk % self.window
                    self.places[place, STATE] = FILLING  # before its number: nobody takes it for filled
                    self.places[place, OWNER], self.places[place, CHUNK_OF] = reader, chunk
                    self._tick(starving=False)
                    return place, chunk
                self._tick(starving=bool((self._joined(WANTED) >= wanted[0] + self.window).any()))
        return None

    def bury(self) -> None:
        """Forget members and readers that have died. For a reading process that has nothing to do."""
        with self.memory.held(0):
            for member in np.flatnonzero((self.members[:, STATE] == JOINED) | (self.members[:, STATE] == APART)):
                if not self.memory.is_held(1 + int(member)):
                    self.members[member, STATE] = FREE
            for place in np.flatnonzero(self.places[:, STATE] == FILLING):
                if not self.memory.is_held(self._reader_lock(int(self.places[place, OWNER]))):
                    self.fail(int(place))

    def publish(self, place: int, chunk: Chunk) -> None:
        """Hand over what was read, into its place or elsewhere; a chunk that cannot be is marked, and each member reads
        it."""
        text = json.dumps(chunk.bad).encode() if chunk.bad else b""
        if isinstance(chunk.images, str) or len(text) > _TEXT_BYTES:
            return self.fail(place)
        pixels = chunk.images.numpy()
        if not np.may_share_memory(pixels, self.images[place]):
            self.images[place, : len(pixels)] = pixels
        self.kept[place, : len(chunk.kept)] = chunk.kept
        self.texts[place, : len(text)] = np.frombuffer(text, np.uint8)
        self.places[place, TEXT] = len(text)
        self.places[place, STATE] = FILLED
        return None

    def fail(self, place: int) -> None:
        self.places[place, STATE] = FAILED

    def is_over(self) -> bool:
        """Whether no member will read any more."""
        return bool((self.members[:, STATE] == FREE).all())

    def has_reader(self) -> bool:
        """Whether the first reading process lives; not to be asked by it."""
        return self.memory.is_held(self._reader_lock(0))

    # What the members do

    def begin(self, member: int, chunk: int, until: int) -> None:
        """Say that `chunk` is the next that `member` needs, and `until` the first that it will not."""
        if self.memory.hold(1 + member):
            row = self.members[member]
            with self.memory.held(0):
                first = row[STATE] == EXPECTED
                row[NEXT], row[UNTIL], row[WANTED] = chunk, until, -1
                if first:
                    row[STATE] = JOINED if not self.facts[OPEN] or self._has_room(chunk, late=True) else APART

    def join(self, member: int, chunk: int) -> bool:
        """Whether a member that is apart is joined again from `chunk` on: where others are, or where nobody is."""
        row = self.members[member]
        with self.memory.held(0):
            if row[STATE] == APART and self._has_room(chunk):
                row[NEXT], row[WANTED], row[STATE] = chunk, -1, JOINED
        return bool(row[STATE] == JOINED)

    def wait(self, member: int, chunk: int, gone: float = 30, hung: float = 300) -> int | None:
        """The place where `chunk` is; None where this member is to read it for itself.

        It is set apart for good where there was no reading process for `gone` seconds, or nothing for `hung` seconds.
        """
        row, place = self.members[member], chunk % self.window
        began = seen = time.monotonic()
        pause = 0.001
        while True:
            if row[STATE] != JOINED:
                return None
            if self.places[place, CHUNK_OF] == chunk and self.places[place, STATE] in (FILLED, FAILED):
                row[WANTED] = -1
                return place if self.places[place, STATE] == FILLED else None
            row[WANTED] = chunk
            now = time.monotonic()
            if now - seen > gone / 10 and self.has_reader():
                seen = now
            if now - seen > gone or now - began > hung or self.facts[IMAGES] < 0:
                self.leave(member)
                return None
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def holds(self, member: int, place: int, chunk: int) -> bool:
        """Whether what was copied from `place` was the chunk: a member that was set apart meanwhile cannot know."""
        return bool(self.members[member, STATE] == JOINED and self.places[place, CHUNK_OF] == chunk)

    def bad(self, place: int) -> list[tuple[int, int, str]]:
        """The bad images of a chunk, as in `Chunk`."""
        length = int(self.places[place, TEXT])
        return json.loads(self.texts[place, :length].tobytes()) if length else []

    def advance(self, member: int, chunk: int) -> None:
        """The member has taken everything before `chunk`."""
        self.members[member, NEXT] = chunk

    def leave(self, member: int) -> None:
        """The member reads no more from here; also said for one whose process has ended."""
        self.members[member, STATE] = FREE

    def state_of(self, member: int) -> int:
        return int(self.members[member, STATE])

    # Rules; the lock is held

    def _joined(self, column: int) -> np.ndarray:
        return self.members[self.members[:, STATE] == JOINED, column]

    def _wanted(self) -> np.ndarray:
        """The numbers of the chunks in the window."""
        if not self.facts[OPEN] or not len(following := self._joined(NEXT)):
            return np.empty(0, np.int64)
        first = int(following.min())
        return np.arange(first, min(first + self.window, int(self._joined(UNTIL).max())))

    def _has_room(self, chunk: int, late: bool = False) -> bool:
        """Whether a member that needs `chunk` next fits into the window; `late`: it may be a little behind the others,
        where what it needs is still there."""
        following = self._joined(NEXT)
        if not len(following):
            return True
        first = int(following.min())
        least = first
        if late:
            last = self.places[self.places[:, STATE] != EMPTY, CHUNK_OF].max(initial=-1)
            least = min(first, int(last) + 1 - self.window)
        return least <= chunk < first + self.window

    def _open(self) -> None:
        """Begin once every member has, or patience ends: where most of them are. The others are apart."""
        if self.facts[OPEN]:
            return
        states = self.members[:, STATE]
        waited = time.monotonic_ns() - self.facts[MADE]
        if not (states == JOINED).any() or ((states == EXPECTED).any() and waited < self.start_patience * 1e9):
            return
        following = self._joined(NEXT)
        together = [((following >= f) & (following < f + self.window)).sum() for f in following]
        first = int(following[int(np.argmax(together))])
        outside = (states == JOINED) & (
            (self.members[:, NEXT] < first) | (self.members[:, NEXT] >= first + self.window)
        )
        self.members[outside, STATE] = APART
        self.facts[OPEN] = 1

    def _tick(self, *, starving: bool) -> None:
        """Add up how long members have waited for the slowest, less how long they have not; set that one apart."""
        now = time.monotonic_ns()
        passed = min(now - int(self.facts[TICK]), 10**9) if self.facts[TICK] else 0
        self.facts[TICK] = now
        self.facts[STARVED] = max(0, int(self.facts[STARVED]) + (passed if starving else -passed))
        if self.facts[STARVED] > self.patience * 1e9:
            slowest = (self.members[:, STATE] == JOINED) & (self.members[:, NEXT] == self._joined(NEXT).min())
            self.members[slowest, STATE] = APART
            self.facts[STARVED] = 0

    def _reader_lock(self, reader: int) -> int:
        return 1 + len(self.members) + reader


class EvaluationMemory:
    """Memory for the square images, `image_size` a side, that cells evaluate on, of which the data set has `count`.

    Raises OSError where the machine has not so much (`pixel_bytes`).
    """

    def __init__(self, dataset: DatasetConfig, image_size: int, count: int, memory: SharedMemory | None = None) -> None:
        self.dataset, self.image_size = evaluated_as(dataset), image_size
        self.memory = memory or SharedMemory(pixel_bytes(count, image_size) + count)
        self.images = self.memory.array(0, (count, 3, image_size, image_size), np.uint8)
        self.there = self.memory.array(self.images.nbytes, (count,), np.uint8)
        """Which of them are in it: KEPT, or BAD where their batch cannot be."""

    def __reduce__(self) -> tuple[Any, ...]:
        return EvaluationMemory, (self.dataset, self.image_size, len(self.images), self.memory)

    def has(self, index: np.ndarray) -> bool:
        """Whether a batch, images in a row, is in the memory."""
        return bool((self.there[index[0] : index[-1] + 1] == KEPT).all())

    def is_bad(self, index: np.ndarray) -> bool:
        """Whether a batch has to be read each time."""
        return bool((self.there[index[0] : index[-1] + 1] == BAD).any())

    def keep(self, index: np.ndarray, images: Tensor | None) -> None:
        """Take a batch into the memory; None: some of it is bad."""
        rows = slice(index[0], index[-1] + 1)
        if images is not None:
            self.images[rows] = images.cpu().numpy()
        self.there[rows] = BAD if images is None else KEPT

    def is_for(self, dataset: DatasetConfig, image_size: int, count: int) -> bool:
        wanted = (evaluated_as(dataset), image_size, count)
        return wanted == (self.dataset, self.image_size, len(self.images))


class Present:
    """How many cells train now on each of `places`, a place being the device, or the devices, of a cell."""

    def __init__(self, places: int, memory: SharedMemory | None = None) -> None:
        self.memory = memory or SharedMemory(8 * places)
        self.cells = self.memory.array(0, (places,), np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Present, (len(self.cells), self.memory)


@dataclass(frozen=True)
class Given:
    """What the process that started this one shares with it. `member` is its first number in `ring`: rank 0's."""

    ring: Ring | None = None
    member: int = 0
    evaluation: tuple[EvaluationMemory, ...] = ()
    device_share: float = 1.0
    """The share of the device's memory that is this cell's."""
    present: Present | None = None
    """None where cells have devices of their own."""
    place: int = 0
    """Which of the places of `present` is this cell's."""
    at_once: int = 1
    """How many processes train on this machine at once and read for themselves, at most."""
