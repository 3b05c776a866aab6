"""The files of a class-folder tree: walked once, then known from a cache until one of its folders changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitlab.core.files import default_cache_dir, save_arrays

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
CACHE_FROM = 10_000
"""Images from which on a walk is worth remembering (a million of them on a network's disk take minutes)."""
_SETTLED = 2.0
"""Seconds after which a folder's modification time is taken to tell every change."""


class Listing(NamedTuple):
    """The images of a tree: `files` relative to it (CLASS/NAME, sorted by class, then name), `labels` and `sizes` (N,)
    int64: a file's class and its bytes."""

    files: list[str]
    labels: np.ndarray
    sizes: np.ndarray


def list_tree(folder: Path, classes: list[str]) -> Listing:
    """The images in the class folders `classes` of `folder`.

    A cached walk is used while no class folder has another modification time. A file that was overwritten in place
    keeps its old size there; its folder touched, the tree is walked again.
    """
    folder = folder.resolve()
    times = np.array([(folder / name).stat().st_mtime_ns for name in classes], dtype=np.int64)
    file = default_cache_dir() / "listings" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.npz"
    if known := _read(file, classes, times):
        return known
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda name: _walk(folder / name), classes))
    counts = [len(images) for images in found]
    listing = Listing(
        [f"{name}/{image}" for name, images in zip(classes, found, strict=True) for image, _ in images],
        np.repeat(np.arange(len(classes)), counts),
        np.array([size for images in found for _, size in images], dtype=np.int64),
    )
    if len(listing.files) >= CACHE_FROM and times.max() < (time.time() - _SETTLED) * 1e9:
        with contextlib.suppress(OSError):  # without a cache the walk is merely made again
            file.parent.mkdir(parents=True, exist_ok=True)
            save_arrays(
                file, files=_joined(listing.files), classes=_joined(classes), times=times, labels=listing.labels,
                sizes=listing.sizes,
            )  # fmt: skip
    return listing


def _walk(folder: Path) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return sorted((e.name, e.stat().st_size) for e in entries if is_image(e.name))


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _read(file: Path, classes: list[str], times: np.ndarray) -> Listing | None:
    try:
        with open(file, "rb") as stream, np.load(stream) as content:
            same = np.array_equal(content["classes"], _joined(classes)) and np.array_equal(content["times"], times)
            return Listing(_parted(content["files"]), content["labels"], content["sizes"]) if same else None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # absent or damaged: the tree itself tells


def _joined(names: list[str]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), dtype=np.uint8)


def _parted(names: np.ndarray) -> list[str]:
    return names.tobytes().decode(errors="surrogateescape").split("\0")
