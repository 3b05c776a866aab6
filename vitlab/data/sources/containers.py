"""Where the bytes of images lie: in files of their own, or at an offset inside larger ones."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, overload

import numpy as np

from vitlab.core.errors import UserError, reason


class BadImageError(UserError):
    """A file that is no whole image; the message names it."""


class Names(Sequence[str]):
    """Texts in two flat arrays: a million of them take 60 bytes each, and no worker process copies them."""

    def __init__(self, texts: Iterable[str] = (), *, flat: np.ndarray | None = None) -> None:
        """`flat` is what `self.flat` was: (bytes,) uint8, UTF-8, each text followed by a 0."""
        if flat is None:
            whole = "".join(f"{text}\0" for text in texts).encode(errors="surrogateescape")
            flat = np.frombuffer(whole, np.uint8)
        self.flat = flat
        self.ends = np.flatnonzero(flat == 0)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        begin = int(self.ends[at - 1]) + 1 if at else 0
        return self.flat[begin : int(self.ends[at])].tobytes().decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return iter(self.flat.tobytes().decode(errors="surrogateescape").split("\0")[:-1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def select(self, rows: np.ndarray) -> Names:
        begins = np.concatenate([[0], self.ends[:-1] + 1])[rows] if len(self) else np.zeros(0, np.int64)
        lengths = self.ends[rows] + 1 - begins
        starts = np.cumsum(lengths) - lengths
        places = np.arange(int(lengths.sum())) + np.repeat(begins - starts, lengths)
        return Names(flat=self.flat[places])


class Content(Protocol):
    """The bytes of N images, and how to call each of them."""

    def read(self, index: int) -> bytes:
        """The file of an image, as it was written. Raises BadImageError."""
        ...

    def open(self, index: int) -> BinaryIO:
        """A stream of the same, of which only the beginning may be wanted. Raises OSError or BadImageError."""
        ...

    def where(self, index: int) -> str: ...

    def select(self, rows: np.ndarray) -> Self: ...

    def stored(self) -> np.ndarray:
        """All indices (N,), in the order in which the disk holds the images."""
        ...

    def states(self) -> list[State]:
        """The file that holds each image (N,), as it was when it was indexed; empty for files of their own."""
        ...


def file_name(text: str) -> str:
    """A text of `Names`, which are UTF-8, as the file system's functions take it in this locale."""
    return os.fsdecode(text.encode(errors="surrogateescape"))


class LooseFiles:
    """Each image in a file of its own: `paths` are relative to `root`."""

    def __init__(self, root: Path, paths: Names) -> None:
        self.root, self.paths = root, paths

    def read(self, index: int) -> bytes:
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise BadImageError(f"{self.where(index)}: cannot be read ({error.strerror})") from error

    def open(self, index: int) -> BinaryIO:
        return self.path(index).open("rb")

    def path(self, index: int) -> Path:
        return self.root / file_name(self.paths[index])

    def where(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def select(self, rows: np.ndarray) -> LooseFiles:
        return LooseFiles(self.root, self.paths.select(rows))

    def stored(self) -> np.ndarray:
        return np.arange(len(self.paths))

    def states(self) -> list[State]:
        return []


@dataclass(frozen=True)
class State:
    """A file as it was when it was indexed."""

    path: str
    bytes: int
    modified: int
    """Nanoseconds."""


def state_of(path: Path) -> State:
    """Raises OSError."""
    found = path.stat()
    return State(str(path), found.st_size, found.st_mtime_ns)


def is_still(state: State) -> bool:
    """Whether a copy is as it was made; a note that it is not goes to the log, and the original is read."""
    with contextlib.suppress(OSError):
        if state_of(Path(state.path)) == state:
            return True
    print(f"note: {state.path} is gone or has changed: its original is read", file=sys.stderr)
    return False


class Ranges:
    """Image i is `sizes[i]` bytes from `offsets[i]` on of `files[file_of[i]]`; `names` says what to call it there."""

    def __init__(
        self, files: Sequence[State], file_of: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, names: Names
    ) -> None:
        self.files, self.file_of, self.offsets, self.sizes, self.names = tuple(files), file_of, offsets, sizes, names
        self.copies: Mapping[State, State] = {}
        """A file → the copy that was made of it in that state, which is read in its place."""
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # each process opens the files itself

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def read(self, index: int) -> bytes:
        number, size = int(self.file_of[index]), int(self.sizes[index])
        try:
            if number not in self._open:
                self._open[number] = self._opened(number)
            content = os.pread(self._open[number], size, int(self.offsets[index]))
        except OSError as error:
            raise BadImageError(f"{self.where(index)}: cannot be read ({reason(error)})") from error
        if len(content) != size:
            raise BadImageError(f"{self.where(index)}: the file ends within it")
        return content

    def held_in(self) -> list[State]:
        """The files that hold these images."""
        return [self.files[number] for number in np.unique(self.file_of)]

    def read_from(self, copies: Mapping[State, State]) -> Self:
        """The same images, read from the copies of their files."""
        other = copy.copy(self)
        other.copies = copies
        return other

    def _place(self, number: int) -> str:
        """The path to read a file from: its copy's, while that is as it was made."""
        state = self.files[number]
        made = self.copies.get(state)
        return made.path if made is not None and is_still(made) else state.path

    def _opened(self, number: int) -> int:
        """The file, unchanged since it was indexed: at another's offsets there is anything. Raises UserError."""
        state, place = self.files[number], self._place(number)
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        if place != state.path:
            return descriptor
        now = os.fstat(descriptor)
        if (now.st_size, now.st_mtime_ns) != (state.bytes, state.modified):
            os.close(descriptor)
            raise UserError(
                f"{state.path} was replaced while it was in use ({state.bytes:,} bytes then, {now.st_size:,} now); "
                "restore it, or run the same command again"
            )
        return descriptor

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.read(index))

    def where(self, index: int) -> str:
        return f"{self.files[int(self.file_of[index])].path}: {self.names[index]}"

    def select(self, rows: np.ndarray) -> Ranges:
        names = self.names.select(rows)
        part = Ranges(self.files, self.file_of[rows], self.offsets[rows], self.sizes[rows], names)
        return part.read_from(self.copies)

    def stored(self) -> np.ndarray:
        return np.lexsort((self.offsets, self.file_of))

    def states(self) -> list[State]:
        return [self.files[number] for number in self.file_of]


@dataclass(frozen=True, eq=False)
class SplitFiles:
    """The images of one split, by class, then as a walk of the class's folder meets them."""

    names: Names
    """CLASS/NAME, as in a folder of class folders."""
    labels: np.ndarray
    """(N,) int64, places in the class list of the training split."""
    sizes: np.ndarray
    """(N,) int64, bytes."""
    content: Content
    left_out: dict[str, int] = field(default_factory=dict)
    """What else was met, by extension: "" for files without one, "../.jpg" for files outside all classes."""


def walk_order(name: str) -> tuple[str, str]:
    """The key that sorts the files of a class as torchvision's ImageFolder meets them: folder by folder."""
    folder, _, own = name.rpartition("/")
    return folder, own
