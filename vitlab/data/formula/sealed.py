"""Files that are sealed with a checksum, in a folder that one process at a time writes to."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.core.errors import UserError
from vitlab.core.files import DiskError, locked, make_folder, written_whole

_MAGIC = b"vitlab fractal\n"


ELSEWHERE = ", or choose another place (for the cache: the environment variable VITLAB_CACHE)"


class StaleError(UserError):
    """A file that is not whole, or not of what it should be."""


def write_sealed(file: Path, header: dict[str, Any], payload: np.ndarray) -> None:
    """Write `payload` (uint8) with `header` and a checksum, at once or not at all."""
    content = np.ascontiguousarray(payload).data
    line = json.dumps(header | {"bytes": content.nbytes, "crc32": zlib.crc32(content)}, sort_keys=True)
    with written_whole(file) as stream:
        stream.write(_MAGIC + line.encode() + b"\n")
        stream.write(content)


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


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, waiting for whoever holds it. Inside, a refusal to write says what else to do.

    Raises DiskError.
    """
    try:
        make_folder(folder)
        with locked(folder / ".lock", wait=math.inf, say=lambda: _waiting(folder)):
            yield
    except DiskError as error:
        raise error.extended(ELSEWHERE) from error


def _waiting(folder: Path) -> None:
    print(f"waiting for another process that writes in {folder}", file=sys.stderr)


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
