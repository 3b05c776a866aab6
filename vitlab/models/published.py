"""Published weights by their file's name: timm's (ARCHITECTURE.TAG, or the file that timm downloads) and torchvision's.

Their own configurations say how pictures reach them, and of which model they are. A name is believed only where
the classifier has as many classes as the published one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import timm
from timm.models import PretrainedCfg
from torch import Tensor

from vitlab.config import IMAGENET_MEAN, IMAGENET_STD, DatasetConfig
from vitlab.core.hub import WEIGHTS
from vitlab.models.formats import dataset_of_timm, model_of_name


@dataclass(frozen=True)
class Published:
    """What is known of published weights."""

    name: str
    """timm's ARCHITECTURE.TAG, or torchvision's MODEL.WEIGHTS."""
    architecture: str | None
    """timm's name of the model."""
    dataset: DatasetConfig
    """Statistics, crop and interpolation of their evaluation."""
    said: str


def published_as(path: Path, classes: int | None) -> Published | None:
    """The published weights that a file with `classes` classes (None: no classifier) is named after, if any."""
    for name in _names(path):
        found = of_timm(name, classes)
        if found is None and (tag := _timms_files().get(name)):
            found = of_timm(tag, classes)
        found = found or _of_torchvision(name, classes)
        if found is not None:
            return found
    return None


def fill_in(found: dict[str, Any], path: Path, state: Mapping[str, Tensor], classes: int | None) -> list[str]:
    """Give `found` the model and the data set that it lacks, where the file's name tells them; returns lines that say
    so."""
    published = published_as(path, classes)
    if published is None:
        return []
    said = []
    if found.get("model") is None and published.architecture:
        found["model"] = model_of_name(published.architecture, state)
        said.append(f"by the file's name the model is {published.architecture}")
    if found.get("dataset") is None:
        found["dataset"] = published.dataset
        said.append(published.said)
    return said


def of_timm(tag: str, classes: int | None) -> Published | None:
    """timm's weights ARCHITECTURE.TAG by timm's own configuration, if there are such with so many classes."""
    known = _configuration(tag) if "." in tag else None
    if known is None or classes not in (None, known.num_classes):
        return None
    dataset = dataset_of_timm(known.to_dict(), classes)
    if dataset is None:
        return None
    said = f"mean, std and crop are timm's for {tag}"
    if known.crop_mode != "center":
        said += f" (whose crop mode is {known.crop_mode}; here the central square is taken)"
    return Published(tag, tag.partition(".")[0], dataset, said)


def dataset_of_training(name: str, arguments: Mapping[str, Any], classes: int | None) -> DatasetConfig | None:
    """How timm's train.py evaluates: by its arguments, and where they are not given by the configuration of its model
    `name`. None where the arguments are not its own and `name` has no tag."""
    if "mean" not in arguments and "." not in name:
        return None
    known = _configuration(name) or _configuration(name.partition(".")[0])
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": 0.875}
    usual |= known.to_dict() if known is not None else {}
    given = {key: arguments[key] for key in (*usual, "dataset") if arguments.get(key)}
    return dataset_of_timm(usual | given, classes)


def _names(path: Path) -> list[str]:
    """What may be the name of published weights: the file's, with and without its ending; of a folder's usual file the
    folder's, or the repository's in huggingface_hub's cache."""
    if path.name not in WEIGHTS:
        return [path.name, path.stem]
    if path.parent.parent.name == "snapshots":
        return [path.parents[2].name.rpartition("--")[2]]
    return [path.absolute().parent.name]


def _configuration(name: str) -> PretrainedCfg | None:
    """timm's of ARCHITECTURE.TAG, or of an architecture's first tag; None where there is none."""
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    except RuntimeError:  # no such tag
        return None


def _file_of(address: str) -> str:
    return unquote(PurePosixPath(urlparse(address).path).name)


@functools.cache
def _timms_files() -> dict[str, str]:
    """The names of the files that timm downloads → ARCHITECTURE.TAG; without those that several architectures share."""
    found: dict[str, set[str]] = {}
    for tag in timm.list_pretrained():
        known = _configuration(tag)
        if known is not None and isinstance(known.url, str) and known.url:
            found.setdefault(_file_of(known.url), set()).add(tag)
    return {file: tags.pop() for file, tags in found.items() if len(tags) == 1}


@functools.cache
def _torchvisions_files() -> dict[str, tuple[str, DatasetConfig, int]]:
    """The names of torchvision's files → model and weights, how they are evaluated, and the number of classes."""
    from torchvision import models

    found = {}
    for name in models.list_models(module=models):
        for weights in models.get_model_weights(name):
            classes = weights.meta.get("categories")
            if not classes:  # of optical flow
                continue
            seen = weights.transforms()
            crop = min(seen.crop_size[0] / seen.resize_size[0], 1.0)
            dataset = DatasetConfig(
                "folder", kind="folder", mean=tuple(seen.mean), std=tuple(seen.std), eval_crop=crop,
                eval_interpolation="bilinear" if seen.interpolation.value == "bilinear" else "bicubic",
            )  # fmt: skip
            file = _file_of(weights.url)
            found.setdefault(file, (f"{name}.{weights.name}", dataset, len(classes)))
    return found


def _of_torchvision(name: str, classes: int | None) -> Published | None:
    known = _torchvisions_files().get(name)
    if known is None or classes not in (None, known[2]):
        return None
    own = known[0].partition(".")[0]
    return Published(
        known[0], own if timm.is_model(own) else None, known[1], f"mean, std and crop are torchvision's for {known[0]}"
    )
