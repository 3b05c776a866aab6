"""What a tree of image files holds in addition to plain pictures: files that are left out, EXIF rotations, deep grey.

Of each split the headers of at most `SAMPLE` files are read, once: the answer is kept in the cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import struct
import warnings
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import UserError
from vitlab.core.files import DiskError, default_cache_dir, make_folder, write_text
from vitlab.core.integrity import DamagedError, misfit, read_mapping, sealed
from vitlab.data.sources.containers import Content, LooseFiles, SplitFiles
from vitlab.data.sources.folder import Layout, recognise

SAMPLE = 500
"""Files of a split whose headers are read, evenly spaced in the order of the listing."""
EIGHT_BITS = "8 bits"
OUTSIDE = "../"
RANGED = ("12-bit grey", "16-bit grey")
"""The kinds of deep grey whose white is known from their format."""
_VERSION = 1
"""Of the cached answers."""


@dataclass(frozen=True)
class Survey:
    """What is known of one split's files."""

    classes: int
    looked_at_classes: int
    images: int
    """In the classes that were looked at."""
    left_out: Mapping[str, int]
    """As in `Listing`; "../.jpg" counts files that lie next to the class folders."""
    looked_at: int
    """Files whose headers were read."""
    rotated: int
    """Of those, how many have an EXIF orientation that Pillow does not apply by itself."""
    depths: Mapping[str, int]
    """Kind of pixel → of those, how many have it: "8 bits", "16-bit grey", "32-bit float grey", …"""
    unreadable: int

    def __add__(self, other: Survey) -> Survey:
        ours, theirs = asdict(self), asdict(other)
        both: dict[str, Any] = {
            key: dict(Counter(value) + Counter(theirs[key])) if isinstance(value, dict) else value + theirs[key]
            for key, value in ours.items()
        }
        return Survey(**both)


def survey(dataset: DatasetConfig) -> dict[str, Survey]:
    """Split ("train", "val") → what its files are. Empty for a data set that is no tree of files, or is not here."""
    if dataset.kind != "folder" or dataset.pack or not dataset.root:
        return {}
    try:
        layout = recognise(dataset, evaluating=True)
        shown = ("train",) if dataset.val_fraction else ("train", "eval")
        return {_FOLDERS[split]: _survey(layout, split) for split in shown if layout.has(split)}
    except (ConfigError, OSError):
        return {}  # whoever needs the files says what is wrong


_FOLDERS = {"train": "train", "eval": "val"}
"""Split → its name in a survey."""


def _survey(layout: Layout, split: str) -> Survey:
    found, known, classes = layout.glance(split)
    rows = np.unique(np.linspace(0, len(found.names) - 1, min(SAMPLE, len(found.names))).round().astype(int))
    return Survey(classes, known, len(found.names), found.left_out, len(rows), **_headers(layout.root, found, rows))


def _headers(root: Path, found: SplitFiles, rows: np.ndarray) -> dict:
    """rotated, depths, unreadable of these images: from the cache, else from the files."""
    chosen = [(found.names[i], int(found.sizes[i])) for i in rows]
    content = found.content.select(rows)
    where = content.root if isinstance(content, LooseFiles) else root
    name = json.dumps([_VERSION, str(where.resolve()), chosen])
    file = default_cache_dir() / "surveys" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(DamagedError):  # absent or damaged: the files tell
        if not misfit(known := read_mapping(file, ""), {"rotated": int, "depths": dict, "unreadable": int}):
            assert known is not None, "else it would not fit"
            return known
    with ThreadPoolExecutor(16) as pool:
        headers = list(pool.map(lambda i: _header(content, i), range(len(chosen))))
    depths = Counter(kind for kind, _ in headers if kind)
    answer = {"rotated": sum(turned for _, turned in headers), "depths": dict(depths)}
    answer["unreadable"] = len(headers) - depths.total()
    with contextlib.suppress(DiskError):  # without a cache the headers are read again
        make_folder(file.parent)
        write_text(file, json.dumps(sealed(answer)))
    return answer


def _header(content: Content, index: int) -> tuple[str, bool]:
    """The kind of a file's pixels, "" where its header cannot be read, and whether it is to be turned."""
    from PIL import Image

    from vitlab.data.decode import grey_kind, is_deep, orientation

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with content.open(index) as stream, Image.open(stream) as image:
                kind = grey_kind(image)[0] if is_deep(image.mode) else EIGHT_BITS
                return kind, image.format != "TIFF" and orientation(image, header_only=True) in range(2, 9)
    except (OSError, UserError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return "", False


def describe_survey(dataset: DatasetConfig) -> list[str]:
    """What to say of a data set's files before anything trains: one line, and one more for each peculiarity.

    Raises ConfigError where images are of a grey that `dataset.grey16` refuses and `dataset.bad_images` does not skip.
    """
    splits = list(survey(dataset).values())
    if not splits:
        return []
    whole = functools.reduce(Survey.__add__, splits)
    partly = whole.looked_at_classes < whole.classes
    known = [n for n in (dataset.num_train, dataset.num_eval) if n] if partly else [s.images for s in splits]
    counts = " + ".join(f"{n:,}" for n in known)
    some = f" (in {whole.looked_at_classes:,} of {whole.classes:,} class folders)" if partly else ""
    left = ", ".join(_named(extension, number) for extension, number in whole.left_out.items())
    layout = recognise(dataset, evaluating=True)
    said = "; ".join(filter(None, ("" if layout.form == "class folders" else layout.form, layout.remark)))
    form = f": {said}" if said else ""
    lines = [
        f"data: {dataset.name}: {splits[0].classes:,} {'class' if splits[0].classes == 1 else 'classes'}, {counts} "
        f"images in {dataset.root}{form}" + (f"; left out{some}: {left}" if left else "")
    ]
    sample = "" if whole.looked_at == whole.images and not partly else "a sample of "
    of = f"{sample}{whole.looked_at:,} images"
    if whole.rotated:
        done = "is applied" if dataset.exif == "apply" else "is not applied (as in every ImageFolder)"
        offer = "" if dataset.exif == "apply" else "; dataset.exif=apply trains on upright ones"
        lines.append(f"note: {whole.rotated:,} of {of} carry an EXIF rotation, which {done}{offer}")
    if whole.unreadable:
        lines.append(f"note: {whole.unreadable:,} of {of} cannot be read (dataset.bad_images={dataset.bad_images})")
    return lines + _on_depths(dataset, whole.depths, of)


def _on_depths(dataset: DatasetConfig, depths: Mapping[str, int], of: str) -> list[str]:
    deep = {kind: number for kind, number in sorted(depths.items()) if kind != EIGHT_BITS}
    if not deep:
        return []
    refused = [kind for kind in deep if kind not in RANGED] if dataset.grey16 == "range" else []
    if refused and dataset.bad_images == "error":
        raise ConfigError(
            "dataset.grey16",
            f"{deep[refused[0]]:,} of {of} of {dataset.name} are {refused[0]}, and no format says "
            "which value is white; dataset.grey16=minmax scales each by its own smallest and largest value, "
            "dataset.bad_images=skip leaves them out",
        )
    kinds = [f"{number:,} are {kind}" for kind, number in deep.items()]
    kinds += [f"{depths[EIGHT_BITS]:,} have 8 bits"] if EIGHT_BITS in depths else []
    how = "by the range of its format" if dataset.grey16 == "range" else "each by its own smallest and largest value"
    mixed = "the data set mixes depths: " if len(kinds) > 1 else ""
    left = f"; {refused[0]} is left out (dataset.bad_images=skip)" if refused else ""
    return [f"note: {mixed}of {of} {', '.join(kinds)}; grey of more than 8 bits is scaled {how} "
            f"(dataset.grey16={dataset.grey16}){left}"]  # fmt: skip


def _named(extension: str, number: int) -> str:
    outside, name = extension.startswith(OUTSIDE), extension.removeprefix(OUTSIDE)
    return f"{number:,} {name or 'without an extension'}{' outside the class folders' if outside else ''}"
