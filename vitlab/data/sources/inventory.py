"""The images of a split as data that can be compared: by name, size and bytes; see `on_disk` for how they are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitlab.core.files import save_arrays
from vitlab.core.integrity import DamagedError, Fingerprint, load_arrays

SAMPLE = 64
"""Files, spread evenly over a split, whose ends are read."""
HASH = 16
"""Bytes of a hash of an image."""


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


def differences(old: Items, new: Items) -> list[str]:
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
