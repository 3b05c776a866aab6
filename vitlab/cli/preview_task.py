"""`task=preview`: draw what an augmentation does to real pictures, by the code that trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vitlab.cli.outputs import read_places, require_picture
from vitlab.config import AugmentConfig, Config, ConfigError, DatasetConfig, build, choice
from vitlab.core.files import clean_name, make_folder, text_of, written_whole
from vitlab.core.picture_files import maker
from vitlab.core.random import Draws
from vitlab.data.augment import Augment, mix
from vitlab.data.crop import Cropping, central_squares
from vitlab.data.decode import BadImageError, decode, picture_format, reading_of
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.listing import find_images
from vitlab.data.sources.registry import build_source

_GAP, _LABEL, _HEADER = 4, 132, 20
_INK, _PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class PreviewConfig:
    """The keys of `preview` in conf/task/preview.yaml."""

    size: int = dataclasses.field(default=160, metadata={"low": 8, "high": 1024})
    """Side of a picture in pixels. The model's input may be smaller: the sheet is for looking at."""
    columns: int = dataclasses.field(default=6, metadata={"low": 2, "high": 40})
    pictures: int = dataclasses.field(default=4, metadata={"low": 0, "high": 100})
    """Images of the data set, in addition to two photographs."""
    images: str | tuple[str, ...] | None = None
    """Files, folders and patterns such as 'photos/*.jpg', in place of the photographs and the data set's images."""
    conditions: tuple[str, ...] | None = None
    """Choices of augment=, one row each, in place of the one condition that augment= names."""
    file: str | None = None
    """Null: output_dir/preview/NAME.png"""


def run_preview(config: Config) -> list[str]:
    """Draw the sheet that `config` asks for; returns the lines to print.

    One condition: a row for each picture, a column for each time that it is seen. Several: a row for each condition,
    with the same random numbers in all. Raises ConfigError for an unknown condition or a data set that is not there.
    """
    options: PreviewConfig = build(PreviewConfig, config.options, "preview")
    stem = "conditions" if options.conditions else clean_name(config.labels.get("augment", ""), "augment")
    file = Path(options.file or Path(config.output_dir) / "preview" / f"{stem}.png")
    written_as = picture_format(file, "preview.file")
    if options.file:
        require_picture("preview.file", Path(options.file), read_places(config))
    dataset = resolve_class_list(config.cell.dataset, config.output_dir)
    if options.images is None:
        names, pictures = sample_pictures(dataset, options.pictures)
    else:
        names, pictures = read_pictures(options.images, dataset)
    if options.conditions:
        if options.columns % 2:
            raise ConfigError("preview.columns", f"got {options.columns}; mixing pairs neighbours, so it must be even")
        conditions = {name: choice("augment", name) for name in options.conditions}
        sheet = draw_conditions(conditions, dataset, pictures, options, config.cell.seed)
    else:
        if len(pictures) % 2 and options.images is None:
            raise ConfigError("preview.pictures", f"got {options.pictures}; mixing pairs pictures, so it must be even")
        if len(pictures) % 2 and config.cell.augment.mixes:
            raise ConfigError("preview.images", f"got {len(pictures)}; mixing pairs pictures, so it must be even")
        sheet = draw_condition(config.cell.augment, dataset, names, pictures, options, config.cell.seed)
    make_folder(file.parent)
    with written_whole(file) as stream:
        sheet.save(stream, written_as, quality=90, exif=maker())
    return [f"wrote {file} ({sheet.width} x {sheet.height}); look at it, then train: python run.py augment=…"]


def sample_pictures(dataset: DatasetConfig, count: int) -> tuple[list[str], list[np.ndarray]]:
    """Names and pixels (H, W, 3): scikit-learn's two photographs, and `count` training images of as many classes."""
    from sklearn.datasets import load_sample_images

    photographs = [np.asarray(p) for p in load_sample_images().images]
    if dataset.train_crop != "random_resized":  # such data sets have square images, and are not cropped by much
        photographs = [p[:, (p.shape[1] - p.shape[0]) // 2 :][:, : p.shape[0]] for p in photographs]
    if not count:
        return ["temple", "flower"], photographs
    source = build_source(dataset, "train")
    classes = np.unique(source.labels)
    places = [np.flatnonzero(source.labels == classes[i % len(classes)]) for i in range(count)]
    chosen = [int(rows[i // len(classes) % len(rows)]) for i, rows in enumerate(places)]
    names = [source.classes[source.labels[i]] for i in chosen]
    return ["temple", "flower", *names], [*photographs, *(source.image(i) for i in chosen)]


def read_pictures(wanted: str | Sequence[str], dataset: DatasetConfig) -> tuple[list[str], list[np.ndarray]]:
    """Names and pixels (H, W, 3) of the files that `preview.images` names, upright whatever the data set does."""
    reading = dataclasses.replace(reading_of(dataset), upright=True)
    files = [
        f for name in ([wanted] if isinstance(wanted, str) else wanted) for f in find_images(name, "preview.images")
    ]
    if not files:
        raise ConfigError("preview.images", "the list is empty")
    stems = [text_of(file.stem) for file in files]
    names = [stem if len(stem) <= 18 else f"{stem[:17]}…" for stem in stems]
    try:
        return names, [decode(file, reading) for file in files]
    except BadImageError as error:
        raise ConfigError("preview.images", f"{error}") from error


def augment_pictures(
    augment: AugmentConfig, dataset: DatasetConfig, pictures: Sequence[np.ndarray], *, size: int, seed: int, epoch: int
) -> Tensor:
    """The pictures as a training batch of `size` pixels would hold them in `epoch`: (B, 3, size, size) uint8.

    Neighbours are mixed, each pair with a lambda of its own (training shares one among `mix_group` samples). Grey
    levels beyond 0 … 255, which erasing's noise has, are cut off.
    """
    index = np.arange(len(pictures))
    cropping = Cropping(dataset, size, augment.interpolation, seed)
    crops = cropping.squares(pictures, epoch, index, np.zeros_like(index))
    function = Augment(augment, dataset)
    images = function(crops, Draws(seed, epoch, index))
    pairs = dataclasses.replace(augment, mix_group=2)
    groups = Draws(seed, epoch, index[::2] // 2)
    images, _ = mix(pairs, images, torch.from_numpy(index), num_classes=len(pictures), draws_of_groups=groups)
    return (images * function.std + function.mean).round().clamp(0, 255).byte()


def draw_condition(
    augment: AugmentConfig, dataset: DatasetConfig, names: list[str], pictures: list[np.ndarray],
    options: PreviewConfig, seed: int,
) -> Image.Image:  # fmt: skip
    """One condition: each picture as it is evaluated, then as it is seen in the first epochs."""
    size = options.size
    plain = central_squares(pictures, size, dataset.eval_crop, dataset.eval_interpolation)
    epochs = range(options.columns - 1)
    seen = [augment_pictures(augment, dataset, pictures, size=size, seed=seed, epoch=epoch) for epoch in epochs]
    heads = ["evaluated", *(f"epoch {epoch + 1}" for epoch in epochs)]
    return draw_grid(torch.stack([plain, *seen], 1), names, heads)


def draw_conditions(
    conditions: dict[str, AugmentConfig], dataset: DatasetConfig, pictures: list[np.ndarray], options: PreviewConfig,
    seed: int,
) -> Image.Image:  # fmt: skip
    """Several conditions, a row each, on the same pictures with the same random numbers."""
    columns = [pictures[i % len(pictures)] for i in range(options.columns)]
    rows = [augment_pictures(c, dataset, columns, size=options.size, seed=seed, epoch=0) for c in conditions.values()]
    return draw_grid(torch.stack(rows), list(conditions), [])


def draw_grid(images: Tensor, names: Sequence[str], heads: Sequence[str]) -> Image.Image:
    """Images (R, C, 3, S, S) uint8 as a table with a name before each row and, where given, a head over each column."""
    rows, columns, _, size, _ = images.shape
    step, top = size + _GAP, _HEADER if heads else 0
    sheet = Image.new("RGB", (_LABEL + columns * step, top + rows * step), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, head in enumerate(heads):
        pen.text((_LABEL + column * step + size / 2, top / 2), head, _INK, font, anchor="mm")
    for row, name in enumerate(names):
        pen.text((_LABEL - 8, top + row * step + size / 2), name, _INK, font, anchor="rm")
        for column in range(columns):
            pixels = images[row, column].permute(1, 2, 0).contiguous().numpy()
            sheet.paste(Image.fromarray(pixels), (_LABEL + column * step, top + row * step))
    return sheet
