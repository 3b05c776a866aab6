"""Pictures as a model's input: read, cropped and normalised as in its evaluation."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitlab.config import AugmentConfig, ConfigError, DatasetConfig
from vitlab.core.files import text_of
from vitlab.data.augment import Augment
from vitlab.data.crop import central_squares
from vitlab.data.decode import BadImageError, decode, reading_of
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.listing import find_images
from vitlab.data.sources.registry import Source, build_source
from vitlab.explain.options import OF_EVALUATION
from vitlab.models.restore import centred

Size = int | tuple[int, int]
"""The side in pixels of a model's square input, or its height and width."""
_SHOWN = 4
"""Images of the evaluation set that `eval` alone means: the first of so many classes."""


@dataclass(frozen=True)
class Picture:
    """One image: `pixels` (3, h, w) uint8, cropped for the model; its class where the data set has it."""

    name: str
    pixels: Tensor
    label: int | None = None


def load_pictures(
    wanted: str | Sequence[str] | None, dataset: DatasetConfig, image_size: Size, output_dir: str
) -> list[Picture]:
    """The pictures that `explain.images` names, cropped by the settings of `dataset`. Raises ConfigError that names the
    mistake.
    """
    if wanted is None:
        return sample_photographs(dataset, image_size)
    pictures: list[Picture] = []
    source: Source | None = None
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if match := OF_EVALUATION.fullmatch(name):
            source = source or evaluation_source(dataset, output_dir)
            rows = _rows(match, source)
            pictures += [_picture_of(source, row, dataset, image_size) for row in rows]
        else:
            pictures += [_read(file, dataset, image_size) for file in find_images(name, "explain.images")]
    if not pictures:
        raise ConfigError("explain.images", "the list is empty")
    names = [p.name for p in pictures]
    return [
        Picture(f"{p.name}-{i}", p.pixels, p.label) if names.count(p.name) > 1 else p for i, p in enumerate(pictures)
    ]


def sample_photographs(dataset: DatasetConfig, image_size: Size) -> list[Picture]:
    """The two photographs that scikit-learn brings, a temple and a flower, so that a figure needs no file."""
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    return [
        Picture(Path(file).stem, _cropped(image, dataset, image_size))
        for file, image in zip(bunch.filenames, bunch.images, strict=True)  # pyright: ignore[reportAttributeAccessIssue]
    ]


def evaluation_pictures(dataset: DatasetConfig, image_size: Size, output_dir: str, count: int) -> list[Picture]:
    """`count` images of the evaluation set, evenly spaced; all of them where there are fewer."""
    source = evaluation_source(dataset, output_dir)
    rows = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int))
    return [_picture_of(source, int(row), dataset, image_size) for row in rows]


def evaluation_source(dataset: DatasetConfig, output_dir: str) -> Source:
    """The images that the checkpoint's training was evaluated on."""
    return build_source(resolve_class_list(dataset, output_dir), "eval")


def normalise(pictures: Sequence[Picture], dataset: DatasetConfig) -> Tensor:
    """The model's float input (B, 3, h, w)."""
    return Augment(AugmentConfig(), dataset).normalise(torch.stack([p.pixels for p in pictures]))


def _rows(match: re.Match[str], source: Source) -> list[int]:
    first, last = match.groups()
    if first is None:
        return [int(np.flatnonzero(source.labels == c)[0]) for c in np.unique(source.labels)[:_SHOWN]]
    rows = list(range(int(first), int(last or first) + 1))
    if not rows or rows[-1] >= len(source):
        raise ConfigError(
            "explain.images", f"{match.string!r} is out of range: the evaluation set has {len(source)} images"
        )
    return rows


def _picture_of(source: Source, row: int, dataset: DatasetConfig, image_size: Size) -> Picture:
    label = int(source.labels[row])
    try:
        pixels = _cropped(source.image(row), dataset, image_size)
    except BadImageError as error:
        raise ConfigError("explain.images", str(error)) from error
    return Picture(f"eval-{row}", pixels, label)


def _read(file: Path, dataset: DatasetConfig, image_size: Size) -> Picture:
    """A file that the user names, upright whatever the data set does: it is for people to look at."""
    reading = dataclasses.replace(reading_of(dataset), upright=True)
    try:
        name = text_of(file.stem, sys.getfilesystemencoding())
        return Picture(name, _cropped(decode(file, reading), dataset, image_size))
    except BadImageError as error:
        raise ConfigError("explain.images", str(error)) from error


def _cropped(image: np.ndarray, dataset: DatasetConfig, image_size: Size) -> Tensor:
    """(3, h, w) uint8 of an image (H, W, 3), which may be read-only."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    keep, interpolation = dataset.eval_crop, dataset.eval_interpolation
    return centred(central_squares([np.array(image)], max(size), keep, interpolation)[0], size)
