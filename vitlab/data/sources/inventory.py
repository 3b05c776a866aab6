"""The images of a split as data that can be compared: by name, size and bytes; see `on_disk` for how they are taken.

Whole files and images are read once for their hashes, and again only where a size or modification time is another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitlab.core.archives import load_arrays, save_arrays
from vitlab.core.files import DiskError, default_cache_dir, make_folder
from vitlab.core.integrity import DamagedError, Fingerprint
from vitlab.core.terminal import progress_bar
from vitlab.data.sources.containers import LooseFiles, SplitFiles, file_name

SAMPLE = 64
"""Files, spread evenly over a split, whose ends are read."""
HASH = 16
"""Bytes of a hash of an image."""
_SETTLED = 2.0
"""Seconds after which a file's modification time is taken to tell every change."""
_BYTES = 32
_CHUNK = 256
"""Files that a thread looks at before it asks for more."""


@dataclass(frozen=True, eq=False)
class Items:
    """The N images of a split one by one."""

    names: list[str]
    """CLASS/NAME, by class, then by name; `image 17` for images in memory."""
    sizes: np.ndarray
    """(N,) int64, bytes."""
    sampled: np.ndarray
    """(k, 16) uint8: hashes of the ends of the files `sample_rows(N)`; k = 0 where there are none."""
    hashes: np.ndarray
    """(N, 16) uint8 hashes of the contents; (0, 16) where they were not read."""


@dataclass(frozen=True, eq=False)
class Inventory:
    fingerprint: Fingerprint
    items: Callable[[], Items]
    """Lists the images; called only where they are to be recorded or compared one by one."""


def sample_rows(images: int) -> np.ndarray:
    """The images whose ends are read, (min(N, SAMPLE),)."""
    return np.unique(np.linspace(0, images - 1, min(images, SAMPLE)).astype(np.int64))


def of_files(items: Items) -> Inventory:
    """The inventory of listed files."""
    digest = hashlib.sha256("\0".join(items.names).encode(errors="surrogateescape"))
    digest.update(b"\0\0" + items.sizes.astype("<i8").tobytes())
    sample, contents = (_digest(part) for part in (items.sampled, items.hashes))
    return Inventory(Fingerprint(len(items.names), digest.hexdigest()[:16], sample, contents), lambda: items)


def of_images(images: np.ndarray, labels: np.ndarray) -> Inventory:
    """The inventory of images in memory, (N, H, W, 3) uint8 and (N,): their pixels are their contents."""
    images, labels = np.ascontiguousarray(images), labels.astype("<i8")

    def items() -> Items:
        hashes = [
            hashlib.blake2b(image.tobytes() + label.tobytes(), digest_size=HASH).digest()
            for image, label in zip(images, labels, strict=True)
        ]
        sizes = np.full(len(images), images[0].nbytes if len(images) else 0, dtype=np.int64)
        return Items([f"image {i}" for i in range(len(images))], sizes, as_hashes([]), as_hashes(hashes))

    digest = hashlib.sha256(images.data)
    digest.update(labels.tobytes())
    shape = hashlib.sha256(str(images.shape).encode()).hexdigest()[:16]
    return Inventory(Fingerprint(len(images), shape, None, digest.hexdigest()[:16]), items)


def of_name(images: int, name: str) -> Inventory:
    """The inventory of images that follow from `name` alone: rendered ones, or a pack's, which its manifest names."""
    nothing = Items([], np.zeros(0, np.int64), as_hashes([]), as_hashes([]))
    return Inventory(Fingerprint(images, hashlib.sha256(name.encode()).hexdigest()[:16]), lambda: nothing)


def save_items(folder: Path, inventory: Inventory) -> None:
    """Write the list of images into `folder`, under the fingerprint's name, where it is not there yet."""
    file = folder / f"{inventory.fingerprint.short}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        items = inventory.items()
        names = np.frombuffer("\0".join(items.names).encode(errors="surrogateescape"), np.uint8)
        save_arrays(file, names=names, sizes=items.sizes, sampled=items.sampled, hashes=items.hashes)


def load_items(folder: Path, fingerprint: Fingerprint) -> Items | None:
    """What `save_items` wrote for this fingerprint; None where it is not there or damaged."""
    try:
        content = load_arrays(folder / f"{fingerprint.short}.npz", ("names", "sizes", "sampled", "hashes"), "")
    except DamagedError:
        return None
    names = content["names"].tobytes().decode(errors="surrogateescape")
    return Items(names.split("\0"), content["sizes"], content["sampled"], content["hashes"])


def item_differences(old: Items, new: Items) -> list[str]:
    """One phrase for each image that differs, in the order of the names: what it was, what it is."""
    was, now = ({name: i for i, name in enumerate(items.names)} for items in (old, new))
    known = [len(old.hashes), len(new.hashes)] == [len(old.names), len(new.names)]
    other = set()
    if old.names == new.names and len(old.sampled) == len(new.sampled):
        rows = sample_rows(len(new.names))[(old.sampled != new.sampled).any(1)] if len(new.sampled) else ()
        other = {new.names[i] for i in rows}
    phrases = []
    for name in sorted(was.keys() | now.keys(), key=lambda name: (now.get(name, was.get(name)), name)):
        i, j = was.get(name), now.get(name)
        if i is None or j is None:
            phrases.append(f"{name} ({'added' if i is None else 'gone'})")
        elif old.sizes[i] != new.sizes[j]:
            phrases.append(f"{name} ({old.sizes[i]:,} bytes then, {new.sizes[j]:,} now)")
        elif name in other or (known and (old.hashes[i] != new.hashes[j]).any()):
            phrases.append(f"{name} (other contents)")
    return phrases


def _digest(hashes: np.ndarray) -> str | None:
    return hashlib.sha256(hashes.tobytes()).hexdigest()[:16] if len(hashes) else None


def as_hashes(values: list[bytes]) -> np.ndarray:
    """Hashes as an array (N, 16) uint8."""
    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, HASH)


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
