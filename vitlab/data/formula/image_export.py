"""FractalDB as files for other tools, and a picture of it for people."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from vitlab.core.errors import UserError
from vitlab.core.files import make_folder, require_space, unwritten, write_text, written_whole
from vitlab.core.picture_files import maker
from vitlab.core.terminal import progress_bar
from vitlab.data.decode import picture_format
from vitlab.data.formula.cache import VERSION, alone
from vitlab.data.formula.geometry import GREY
from vitlab.data.formula.render import instance
from vitlab.data.formula.source import FractalSource

Layout = Literal["published", "train"]
Format = Literal["png", "npy"]
MANIFEST = "fractaldb.json"
_PNG_SHARE = 0.08
"""Bytes per pixel of an average exported PNG, for the question whether the disk will do."""


def export(
    source: FractalSource, root: Path, *, layout: Layout = "train", format: Format = "png", threads: int = 1
) -> Path:
    """Write all images below `root`, one folder per class, and return the folder that holds the classes.

    `published`: FractalDB-N/00000/00000_00_count_0_flip0.png as in the downloadable set; `train`: train/00000/… with
    the same names. PNGs have one bit per pixel and decode to 0 and 127 as the published ones. `npy` is one array
    (instances, S, S) uint8 per class, 00000.npy, in the order of the source.

    A class appears whole or not at all, so a killed export goes on where it stopped. Raises UserError where `root`
    holds something else, or cannot be written.
    """
    root = Path(root)
    tree = root / (f"FractalDB-{source.spec.categories}" if layout == "published" else "train")
    manifest = {"version": VERSION, "layout": layout, "format": format, **asdict(source.spec)}
    _claim(root, manifest)
    with alone(root):
        make_folder(tree)
        _export_classes(source, tree, format, threads)
    return tree


def _claim(root: Path, manifest: dict) -> None:
    """Make `root` this export's folder, or raise UserError where it is something else's."""
    make_folder(root)
    file = root / MANIFEST
    if not file.exists():
        if any(root.iterdir()):
            raise UserError(f"{root}: not empty, and no export of FractalDB; give a new folder")
        write_text(file, json.dumps(manifest, indent=1) + "\n")
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        different = [f"{k}={there.get(k)!r}, not {v!r}" for k, v in manifest.items() if there.get(k) != v]
    except (ValueError, AttributeError):
        different = ["it cannot be read"]
    if different:
        raise UserError(f"{file}: this folder holds another export ({', '.join(different)}); give a new folder")


def _export_classes(source: FractalSource, tree: Path, format: Format, threads: int) -> None:
    missing = [name for name in source.classes if not _place(tree, name, format).exists()]
    if not missing:
        return
    share = _PNG_SHARE if format == "png" else 1.0
    require_space(tree, int(len(missing) * source.spec.instances * source.image_size**2 * share))
    with ThreadPoolExecutor(threads) as pool, progress_bar("FractalDB: export of classes", len(missing)) as advance:
        try:
            for _ in pool.map(lambda name: _export_class(source, name, tree, format), missing):
                advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _place(tree: Path, name: str, format: Format) -> Path:
    return tree / name if format == "png" else tree / f"{name}.npy"


def _export_class(source: FractalSource, name: str, tree: Path, format: Format) -> None:
    """Write one class under a hidden name, then give it its own."""
    category, count = source.classes.index(name), source.spec.instances
    rows = range(category * count, (category + 1) * count)
    place = _place(tree, name, format)
    if format == "npy":
        with written_whole(place) as stream:
            np.save(stream, np.stack([source.crop(row, None) for row in rows]))
        return
    partial = tree / f".{place.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for number, row in enumerate(rows):
            (partial / published_name(category, number)).write_bytes(encode_png(source.crop(row, None)))
        partial.rename(place)
    except OSError as error:
        raise unwritten(place, error) from error


def published_name(category: int, number: int) -> str:
    """The file's name of an instance in the published set."""
    kind = instance(number)
    return f"{category:05}_{kind.variant:02}_count_{kind.count}_flip{kind.flip}.png"


def encode_png(picture: np.ndarray) -> bytes:
    """A PNG of a picture (h, w) of 0 and 127: one bit per pixel, a palette of black and that grey.

    By hand, because it is several times faster than through an imaging library, and there are a million of them.
    """
    height, width = picture.shape
    rows = np.packbits(picture > 0, axis=1)
    scanlines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # each starts with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)
    palette = bytes([0, 0, 0, GREY, GREY, GREY])
    parts = (b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(scanlines.tobytes(), 6)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def contact_sheet(
    source: FractalSource, file: Path, *, num_categories: int = 12, num_instances: int = 12, side: int = 112
) -> None:
    """A picture for people: a row per category, spread over all of them, a column per instance.

    The grey is doubled to white. Raises UserError where `file` cannot be written.
    """
    spec = source.spec
    file = Path(file)
    written_as = picture_format(file, "fractaldb.preview")
    categories = np.unique(np.linspace(0, spec.categories - 1, num_categories).astype(int))
    columns, gap, margin = min(num_instances, spec.instances), 4, 48
    sheet = Image.new("L", (margin + columns * (side + gap) + gap, len(categories) * (side + gap) + gap), 40)
    pen = ImageDraw.Draw(sheet)
    for r, category in enumerate(categories):
        top = gap + r * (side + gap)
        pen.text((6, top + side // 2 - 6), source.classes[category], fill=220)
        for c in range(columns):
            picture = Image.fromarray(source.crop(category * spec.instances + c, None) * 2)
            sheet.paste(picture.resize((side, side), Image.Resampling.BOX), (margin + c * (side + gap), top))
    make_folder(file.parent)
    with written_whole(file) as stream:
        sheet.save(stream, written_as, exif=maker())
