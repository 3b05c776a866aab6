"""What a configuration says of a data set: that it is there, and what it holds. Asked before anything trains.

`dataset.num_train=500` does not train on 500 images: it claims that there are 500. A claim that the data contradict is
refused, with the true value and the key that does what was meant.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from vitlab.config import ConfigError, DatasetConfig
from vitlab.config.choices import CONF
from vitlab.core.plugins import TRANSFER_SETS

COUNTS = ("num_classes", "num_train", "num_eval")
CLAIMS = (*COUNTS, "image_size")
_FIXED = ("digits", "cifar10", "cifar100", "stl10", "svhn", *TRANSFER_SETS)
"""Kinds that are one published archive each: what they hold is known without them."""


def check_claims(dataset: DatasetConfig, typed: Collection[str] = ()) -> None:
    """Raise ConfigError for a claim that is known to be wrong before the data are loaded.

    `typed` are the claims that the user typed: where any is, a tree of files that can be seen is counted.
    """
    if dataset.kind in _FIXED and not dataset.pack:
        compare_claims(dataset, _published(dataset.kind), dataset.name)
    elif dataset.kind == "fashion_mnist" and not dataset.pack:
        from vitlab.data.sources.arrays import fashion_counts

        compare_claims(dataset, fashion_counts(dataset), dataset.name)
    elif dataset.kind == "folder" and not dataset.pack and set(typed) & set(COUNTS):
        from vitlab.data.sources.catalogue import count_folder

        if dataset.root and Path(dataset.root).exists():
            compare_claims(dataset, count_folder(dataset), dataset.root)


def check_loaded(dataset: DatasetConfig, split: str, source: Any) -> None:
    """Raise ConfigError for a claim that is not so of a loaded split of the data set."""
    true = {"num_classes": len(source.classes), f"num_{split}": len(source)}
    shape = getattr(getattr(source, "images", None), "shape", None)
    if shape is not None and shape[1] == shape[2]:
        true["image_size"] = shape[1]
    compare_claims(dataset, true, dataset.name)


def compare_claims(dataset: DatasetConfig, true: Mapping[str, int], where: str) -> None:
    """Raise ConfigError where `dataset` says otherwise than `true`, the figures of the data at `where`."""
    for key, value in true.items():
        claimed = getattr(dataset, key)
        if claimed not in (None, value) and not (key == "num_eval" and claimed == 0):  # 0: not to be evaluated on
            raise ConfigError(f"dataset.{key}", wrong_claim(dataset, key, value, where))


_NOUNS = {"num_classes": "classes", "num_train": "training images", "num_eval": "evaluation images"}


def wrong_claim(dataset: DatasetConfig, key: str, true: int, where: str) -> str:
    """What is wrong with a claim, and the key that does what may have been meant."""
    claimed = getattr(dataset, key)
    if key == "image_size":
        return (
            f"the images of {where} are {true} pixels wide, not {claimed}; leave dataset.image_size out (the side of "
            "the model's input is model.image_size)"
        )
    text = f"{where} has {true:,} {_NOUNS[key]}, not {claimed:,}; "
    if key == "num_train" and claimed < true:
        each = max(1, round(claimed / (dataset.num_classes or 1)))
        text += (
            f"to train on fewer of them: dataset.train_fraction={claimed / true:.4g}, or "
            f"dataset.train_per_class={each}, without dataset.num_train"
        )
    elif dataset.kind in _FIXED:
        text += f"leave dataset.{key} out"
    elif key == "num_classes":
        text += "give the folder of the whole data set, or take any tree of images with dataset=folder"
    else:
        text += f"complete the data, or say that these are meant: dataset.{key}={true} (another data set, another cell)"
    if key == "num_eval":
        text += "; images set aside from the training ones are evaluated on with dataset.val_fraction=0.1"
    return text


@functools.cache
def _published(kind: str) -> Mapping[str, int]:
    """The counts in conf/dataset/KIND.yaml."""
    content = yaml.safe_load((CONF / "dataset" / f"{kind}.yaml").read_text(encoding="utf-8"))
    return {key: content[key] for key in CLAIMS if key in content}


def require_data(dataset: DatasetConfig) -> None:
    """Raise ConfigError where the folder of `dataset` is not there, or it cannot be staged on this machine; folders are
    looked at, no image is read.

    Packs are checked when a configuration is parsed; torchvision checks the files of STL-10 and SVHN as it reads them.
    """
    if dataset.stage is not None:
        from vitlab.data.sources.staging import require_stageable

        require_stageable(dataset)
    if dataset.pack:
        return
    if dataset.kind == "folder":
        from vitlab.data.sources.folder import recognise
        from vitlab.data.sources.parquet_files import require_random_reads

        require_random_reads(recognise(dataset))
    elif dataset.kind == "fashion_mnist":
        from vitlab.data.sources.arrays import fashion_folder

        fashion_folder(dataset)
    elif dataset.kind in ("cifar10", "cifar100"):
        from vitlab.data.sources.arrays import cifar_root

        cifar_root(dataset)
    elif dataset.kind in TRANSFER_SETS:
        from vitlab.data.sources.transfer_sets import transfer_root

        transfer_root(dataset)
    elif dataset.kind in ("stl10", "svhn"):
        from vitlab.data.sources.arrays import torchvision_root

        torchvision_root(dataset)
