"""Files that are whole or not there: sealed with a checksum, guarded by a lock, honest about a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = b"vitlab fractal\n"


class StaleError(ValueError):
    """A file that is not whole, or not of what it should be."""


def write_sealed(file: Path, header: dict[str, Any], payload: np.ndarray) -> None:
    """Write `payload` (uint8) with `header` and a checksum, at once or not at all."""
    content = np.ascontiguousarray(payload).data
    line = json.dumps(header | {"bytes": content.nbytes, "crc32": zlib.crc32(content)}, sort_keys=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(_MAGIC + line.encode() + b"\n")
            stream.write(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def read_sealed(file: Path, expected: dict[str, Any], *, verify: bool = False) -> tuple[dict[str, Any], memoryview]:
    """Header and payload of a sealed file, the payload mapped into memory; `verify` reads it all for the checksum.

    Raises FileNotFoundError, or StaleError where the file is truncated, damaged, or not as `expected`.
    """
    with open(file, "rb") as stream:
        magic, line = stream.readline(len(_MAGIC)), stream.readline()
        try:
            header = json.loads(line) if magic == _MAGIC else None
        except ValueError:
            header = None
        if not isinstance(header, dict) or not {"bytes", "crc32"} <= header.keys():
            raise StaleError(f"{file}: not a file of this cache, or cut short")
        start = stream.tell()
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    payload = content[start:]
    if len(payload) != header["bytes"]:
        raise StaleError(f"{file}: truncated ({len(payload)} of {header['bytes']} bytes)")
    for name, value in expected.items():
        if header.get(name) != value:
            raise StaleError(f"{file}: {name} is {header.get(name)!r}, not {value!r}")
    if verify and zlib.crc32(payload) != header["crc32"]:
        raise StaleError(f"{file}: damaged (its checksum differs)")
    return header, payload


def require_space(folder: Path, needed: int) -> None:
    """Raise ValueError where the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: {needed / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free; make room, or choose "
            "another disk (for the cache: the environment variable VITLAB_CACHE)"
        )


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's refusal to write below `folder` into one clear ValueError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(
                f"{folder}: no space left on its disk; what was finished is kept. Make room and run again, or choose "
                "another disk (for the cache: the environment variable VITLAB_CACHE)"
            ) from error
        raise ValueError(
            f"{folder}: cannot be used ({error.strerror}); choose another place (for the cache: the environment "
            "variable VITLAB_CACHE)"
        ) from error


@contextlib.contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Hold `file`'s lock, waiting for it; a dead holder cannot keep it. False where the file system has no locks."""
    with open(file, "a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that writes in {file.parent}", file=sys.stderr)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, a line elsewhere; yields the function that advances it by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{label}: {total}", file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
