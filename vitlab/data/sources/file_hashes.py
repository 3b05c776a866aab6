"""Hashes of whole files and images, read once and again only where a file's size or modification time is another."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitlab.core.files import DiskError, default_cache_dir, make_folder, save_arrays
from vitlab.core.integrity import DamagedError, load_arrays
from vitlab.core.terminal import progress_bar
from vitlab.data.sources.containers import LooseFiles, SplitFiles, file_name

_SETTLED = 2.0
"""Seconds after which a file's modification time is taken to tell every change."""
_BYTES = 32
_CHUNK = 256
"""Files that a thread looks at before it asks for more."""


def hash_files(folder: Path, names: list[str]) -> np.ndarray:
    """SHA-256 (N, 32) uint8 of the files `names` of `folder`. Raises OSError for one that cannot be read."""

    def state(row: int) -> tuple[int, int]:
        found = os.stat(folder / file_name(names[row]))
        return found.st_size, found.st_mtime_ns

    def digest(row: int) -> bytes:
        with open(folder / file_name(names[row]), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    return _hash(str(folder), str(folder.resolve()), names, state, digest)


def hash_images(found: SplitFiles) -> np.ndarray:
    """SHA-256 (N, 32) uint8 of the files of a split's images, wherever their bytes lie."""
    content = found.content
    if isinstance(content, LooseFiles):
        return hash_files(content.root, list(content.paths))
    states, order = content.states(), content.stored()
    names = [f"{states[i]} {name}" for i, name in zip(order, (found.names[i] for i in order), strict=True)]
    key = "\0".join(sorted({str(state) for state in states}))

    def state(row: int) -> tuple[int, int]:
        return int(found.sizes[order[row]]), 0  # a file's own state is a part of the name

    where = Path(content.where(0).partition(": ")[0]).parent
    hashes = _hash(str(where), key, names, state, lambda row: hashlib.sha256(content.read(int(order[row]))).digest())
    return hashes[np.argsort(order)]


def _hash(
    where: str, key: str, names: list[str], state: Callable[[int], tuple[int, int]], digest: Callable[[int], bytes]
) -> np.ndarray:
    """The digests of N things; one whose `state` (bytes, modification time) is as the cache has it is not read."""
    remembered = cache_file("contents", key, ".npz")
    known = _read(remembered)
    hashes, stats = np.zeros((len(names), _BYTES), np.uint8), np.zeros((len(names), 2), np.int64)
    done, fresh = np.zeros(len(names), bool), False

    def look(rows: range) -> int:
        nonlocal fresh
        for i in rows:
            stats[i] = now = state(i)
            size, modified, value = known.get(names[i], (-1, -1, b""))
            if (size, modified) != now:
                fresh = True
                value = digest(i)
            hashes[i], done[i] = np.frombuffer(value, np.uint8), True
        return len(rows)

    chunks = [range(at, min(at + _CHUNK, len(names))) for at in range(0, len(names), _CHUNK)]
    with ThreadPoolExecutor(16) as pool:
        try:
            with progress_bar(f"comparing all bytes of {where}", len(names)) as advance:
                for count in pool.map(look, chunks):
                    for _ in range(count):
                        advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:  # what was read before a Ctrl-C need not be read again
            settled = done & (stats[:, 1] < (time.time() - _SETTLED) * 1e9)
            if fresh and settled.any():
                kept = [name for name, keep in zip(names, settled, strict=True) if keep]
                _write(remembered, kept, stats[settled], hashes[settled])
    return hashes


def cache_file(room: str, key: str, suffix: str) -> Path:
    """The file of the cache directory that belongs to `key`, in a folder of its kind."""
    name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:16]
    return default_cache_dir() / room / f"{name}{suffix}"


def _read(file: Path) -> dict[str, tuple[int, int, bytes]]:
    """Name → bytes, modification time, hash; empty where there is no file or a damaged one."""
    try:
        content = load_arrays(file, ("names", "stats", "hashes"), "")
    except DamagedError:
        return {}
    names = content["names"].tobytes().decode(errors="surrogateescape").split("\0")
    found = zip(names, content["stats"].tolist(), content["hashes"], strict=True)
    return {n: (*stat, value.tobytes()) for n, stat, value in found}


def _write(file: Path, names: list[str], stats: np.ndarray, hashes: np.ndarray) -> None:
    with contextlib.suppress(DiskError):  # without a cache the files are read again
        make_folder(file.parent)
        joined = np.frombuffer("\0".join(names).encode(errors="surrogateescape"), np.uint8)
        save_arrays(file, names=joined, stats=stats, hashes=hashes)
