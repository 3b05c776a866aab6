"""The files of a class-folder tree: walked once, then known from a cache until one of its folders changes."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitlab.config import ConfigError
from vitlab.core.archives import require_whole_archive, save_arrays
from vitlab.core.files import DiskError, default_cache_dir, make_folder
from vitlab.data.sources.containers import walk_order

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
"""Of files that are taken for images; .avif too where this Pillow reads it."""
CACHE_FROM = 10_000
"""Minimum number of images for caching the listing (a million of them on a network's disk take minutes)."""
GLANCE = 20_000
"""Images from which on a first look at a tree that has not been walked yet is content with some of its classes."""
_SETTLED = 2.0
"""Seconds after which a folder's modification time is taken to tell every change."""


class Listing(NamedTuple):
    """The images of a tree: `files` relative to it (CLASS/NAME, or CLASS/FOLDER/NAME, sorted by class, then as
    torchvision's ImageFolder walks a class), `labels` and `sizes` (N,) int64: a file's class and its bytes. `left_out`
    counts what else the class folders hold, by extension, "" for files without one; hidden files are not counted.
    `inner` are the folders below class folders, relative to the tree."""

    files: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    left_out: dict[str, int]
    inner: list[str]


def list_tree(folder: Path, classes: list[str], *, again: bool = False) -> Listing:
    """The images in the class folders `classes` of `folder`.

    A cached walk is used while no folder in it has another modification time. A file that was overwritten in place
    keeps its old size there; its folder touched, the tree is walked again. `again` walks it in any case.
    """
    folder = folder.resolve()
    file = _cache_of(folder)
    if not again and (known := _read(file, folder, classes)):
        return known
    before = _times(folder, classes)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda name: _walk(folder / name), classes))
    listing = _merged(classes, found)
    times = np.concatenate([before, _times(folder, listing.inner)])
    if len(listing.files) >= CACHE_FROM and times.max() < (time.time() - _SETTLED) * 1e9:
        with contextlib.suppress(DiskError):  # without a cache the walk is made again
            make_folder(file.parent)
            save_arrays(
                file, files=_joined(listing.files), classes=_joined(classes), times=times, taken=_taken(),
                labels=listing.labels, sizes=listing.sizes, inner=_joined(listing.inner),
                left_out=_joined([f"{extension} {n}" for extension, n in listing.left_out.items()]),
            )  # fmt: skip
    return listing


def glance(folder: Path, classes: list[str]) -> tuple[Listing, int]:
    """What is quickly known of a tree, and of how many of its classes: all where the walk is in the cache or short,
    else classes spread over the whole, until `GLANCE` images have been seen."""
    folder = folder.resolve()
    if known := _read(_cache_of(folder), folder, classes):
        return known, len(classes)
    spread = sorted(range(len(classes)), key=lambda i: i * 0.6180339887 % 1)  # any first few are far apart
    found: dict[str, _Walked] = {}
    seen = 0
    for i in spread:
        found[classes[i]] = _walk(folder / classes[i])
        seen += len(found[classes[i]].images)
        if seen >= GLANCE:
            break
    names = sorted(found)
    return _merged(names, [found[name] for name in names]), len(names)


class _Walked(NamedTuple):
    """A class folder's images with their bytes, what else is in it, and the folders below it."""

    images: list[tuple[str, int]]
    left_out: Counter[str]
    inner: list[str]


def _walk(folder: Path) -> _Walked:
    found = _Walked([], Counter(), [])
    _walk_into(found, folder, "", ())
    found.images.sort(key=lambda image: walk_order(image[0]))
    return found


def _walk_into(found: _Walked, folder: Path, below: str, above: tuple[tuple[int, int], ...]) -> None:
    """Add what is in `folder`, which is `below` the class's ("", "session1/"); links are followed, not in circles."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = below + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                own = (entry.stat().st_dev, entry.stat().st_ino)
                if own not in above:
                    found.inner.append(name)
                    _walk_into(found, folder / entry.name, f"{name}/", (*above, own))
            elif is_image(entry.name):
                found.images.append((name, entry.stat().st_size))
            else:
                found.left_out[Path(entry.name).suffix.lower()] += 1


def _merged(classes: list[str], found: list[_Walked]) -> Listing:
    return Listing(
        [f"{name}/{image}" for name, walked in zip(classes, found, strict=True) for image, _ in walked.images],
        np.repeat(np.arange(len(classes)), [len(walked.images) for walked in found]),
        np.array([size for walked in found for _, size in walked.images], dtype=np.int64),
        dict(sorted(sum((walked.left_out for walked in found), Counter[str]()).items())),
        [f"{name}/{inner}" for name, walked in zip(classes, found, strict=True) for inner in sorted(walked.inner)],
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is one that programs leave behind: never a class, and not counted."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    lower = name.lower()
    taken = lower.endswith(EXTENSIONS) or (lower.endswith(".avif") and reads_avif())
    return taken and not name.startswith(".")


@functools.cache
def reads_avif() -> bool:
    """Whether this Pillow was built with AVIF (its wheels are, from 11.3 on)."""
    from PIL import Image

    Image.init()
    return Image.registered_extensions().get(".avif") in Image.OPEN


def _taken() -> np.ndarray:
    """What decides which files are taken: another answer makes a cached walk worthless."""
    return _joined([*EXTENSIONS, ".avif" if reads_avif() else ""])


def _times(folder: Path, names: list[str]) -> np.ndarray:
    return np.array([(folder / name).stat().st_mtime_ns for name in names], dtype=np.int64)


def _cache_of(folder: Path) -> Path:
    name = hashlib.sha256(str(folder).encode(errors="surrogateescape")).hexdigest()[:16]
    return default_cache_dir() / "listings" / f"{name}.npz"


def find_images(name: str, key: str) -> list[Path]:
    """The files that a path, a folder or a pattern means, in order of name; `key` is where the user gave it.

    Raises ConfigError where there is none.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(f for f in path.iterdir() if is_image(f.name))
    else:
        found = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())
    if not found:
        raise ConfigError(key, f"no image at {name!r}")
    return found


def _read(file: Path, folder: Path, classes: list[str]) -> Listing | None:
    try:
        require_whole_archive(file, "")
        with np.load(file) as content:
            inner = [name for name in _parted(content["inner"]) if name]
            asked = {"classes": _joined(classes), "times": _times(folder, [*classes, *inner]), "taken": _taken()}
            if not all(np.array_equal(content[key], value) for key, value in asked.items()):
                return None
            left_out = [text.rpartition(" ") for text in _parted(content["left_out"]) if text]
            counts = {extension: int(number) for extension, _, number in left_out}
            files = [name for name in _parted(content["files"]) if name]
            return Listing(files, content["labels"], content["sizes"], counts, inner)
    except Exception:  # absent, or damaged, which makes the readers raise nearly anything: the tree itself tells
        return None


def _joined(names: list[str]) -> np.ndarray:
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), dtype=np.uint8)


def _parted(names: np.ndarray) -> list[str]:
    return names.tobytes().decode(errors="surrogateescape").split("\0")
