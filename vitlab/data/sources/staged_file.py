"""A file copied block by block, so that the copy can be continued, compared and repaired at any time.

FILE is the copy once it is whole, FILE.part before. FILE.sums is a line of JSON, the original's state, and 8 bytes for
each block: 0 until it is on the disk of the copy and has been read back, then its CRC-32 with `_DONE` set.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from pathlib import Path

import numpy as np

from vitlab.core.errors import FULL, ConfigError, UserError, reason
from vitlab.data.sources.containers import State, state_of

BLOCK = 1 << 23
"""Bytes that are copied at a time."""
_COARSE = 2 * 10**9
"""Nanoseconds by which a file system may round a modification time."""
_DONE = 1 << 32
_WRITE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


class StagedFile:
    """The copy `file` of a file that was `original` when it was indexed. One process at a time may write to it."""

    def __init__(self, original: State, file: Path) -> None:
        self.original, self.file, self.block = original, file, BLOCK
        self.part, self.sums = (file.with_name(file.name + end) for end in (".part", ".sums"))
        self.blocks = -(-original.bytes // self.block)
        about = {"path": os.path.realpath(original.path), "bytes": original.bytes, "modified": original.modified}
        self._header = json.dumps(about | {"block": self.block}).encode() + b"\n"
        self._left, self._counting = self.blocks, threading.Lock()

    def is_whole(self) -> bool:
        """Whether the copy is there in full length, and was made of the original as it is."""
        try:
            found = self.file.stat()
        except OSError:
            return False
        same = abs(found.st_mtime_ns - self.original.modified) < _COARSE
        return found.st_size == self.original.bytes and same and self._is_noted() and bool(self._noted().all())

    def missing(self) -> int:
        """Bytes that are still to be copied."""
        if not self.part.exists() and not self.file.exists():
            return self.original.bytes
        return sum(self._length(int(block)) for block in np.flatnonzero(self._noted() == 0))

    def differs(self, block: int) -> bool:
        """Whether a block of the whole copy is not what was copied."""
        try:
            return not self._holds(self.file, block, int(self._noted()[block]))
        except OSError:
            return True  # the disk cannot read it

    def begin(self) -> None:
        """Make ready to settle blocks: a whole copy becomes a part, one of another state of the original is removed.

        Raises ConfigError for a disk that does not take it.
        """
        try:
            if not self._is_noted():
                for file in (self.file, self.part):
                    file.unlink(missing_ok=True)
                self.sums.write_bytes(self._header + bytes(8 * self.blocks))
            elif self.file.exists():  # damaged, or its time is another
                self.file.replace(self.part)
            descriptor = os.open(self.part, _WRITE, 0o644)
            try:
                os.ftruncate(descriptor, self.original.bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._refused(error) from error
        self._left = self.blocks
        if not self.blocks:
            self._end()

    def settle(self, block: int) -> tuple[int, int]:
        """Copy a block unless the part holds it; with the last one the copy is whole. Returns the bytes copied, and the
        block's. Raises ConfigError for a disk that does not take it, UserError for an original that has changed."""
        length, fresh = self._length(block), 0
        try:
            if not self._holds(self.part, block, int(self._noted()[block])):
                fresh = length
                self._copy(block)
        except OSError as error:
            raise self._refused(error) from error
        with self._counting:
            self._left -= 1
            if not self._left:
                self._end()
        return fresh, length

    def _copy(self, block: int) -> None:
        at, length = block * self.block, self._length(block)
        try:
            content = _read(Path(self.original.path), at, length)
        except OSError as error:
            raise UserError(f"{self.original.path} cannot be read ({reason(error)})") from error
        if len(content) != length:
            raise self._changed()
        entry = _DONE | zlib.crc32(content)
        part = os.open(self.part, _WRITE, 0o644)
        try:
            _write(part, content, at)
            os.fsync(part)
            if hasattr(os, "posix_fadvise"):  # else what is read back comes from memory
                os.posix_fadvise(part, at, length, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(part)
        if not self._holds(self.part, block, entry):
            raise ConfigError("dataset.stage", f"{self.part}: what was written could not be read back; is the disk "
                              "damaged? name a folder of another one")  # fmt: skip
        sums = os.open(self.sums, _WRITE, 0o644)
        try:
            _write(sums, entry.to_bytes(8, "little"), len(self._header) + 8 * block)
        finally:
            os.close(sums)

    def require_original(self) -> None:
        """Raise UserError where the original is not what it was."""
        try:
            now = state_of(Path(self.original.path))
        except OSError:
            raise self._changed() from None
        if now != self.original:
            raise self._changed()

    def _end(self) -> None:
        self.require_original()
        try:
            os.utime(self.part, ns=(self.original.modified, self.original.modified))
            self.part.replace(self.file)
        except OSError as error:
            raise self._refused(error) from error

    def _length(self, block: int) -> int:
        return min(self.block, self.original.bytes - block * self.block)

    def _holds(self, file: Path, block: int, entry: int) -> bool:
        """Whether a block of `file` is what `entry` of the sums says."""
        return entry != 0 and entry == _DONE | zlib.crc32(_read(file, block * self.block, self._length(block)))

    def _is_noted(self) -> bool:
        """Whether the sums are there, and of this state of the original."""
        try:
            with self.sums.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                return stream.readline() == self._header and size == len(self._header) + 8 * self.blocks
        except OSError:
            return False

    def _noted(self) -> np.ndarray:
        """(blocks,) uint64: what the sums say of each block; 0 for all where there are none."""
        if not self._is_noted():
            return np.zeros(self.blocks, np.uint64)
        return np.fromfile(self.sums, "<u8", offset=len(self._header))

    def _changed(self) -> UserError:
        return UserError(f"{self.original.path} was replaced while it was copied; run the same command again")

    def _refused(self, error: OSError) -> ConfigError:
        then = "make room, or name a folder of another disk" if error.errno in FULL else "name another folder"
        text = f"{self.part} could not be written ({reason(error)}); {then}; what was copied is kept and continued"
        return ConfigError("dataset.stage", text)


def original_of(sums: Path) -> State | None:
    """The original of the copy that these sums are of, as it was; None for a file that is no such sums."""
    try:
        with sums.open("rb") as stream:
            about = json.loads(stream.readline())
        return State(about["path"], about["bytes"], about["modified"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(file: Path, at: int, length: int) -> bytes:
    """Fewer bytes where the file ends before."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while length and (part := os.pread(descriptor, length, at)):
            parts.append(part)
            at, length = at + len(part), length - len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(descriptor, view, at)
        at, view = at + done, view[done:]
