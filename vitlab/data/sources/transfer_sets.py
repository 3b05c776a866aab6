"""The data sets to which pre-trained models are transferred, as torchvision reads them from a local folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.plugins import register_dataset
from vitlab.data.decode import reading_of
from vitlab.data.sources.containers import LooseFiles, Names, SplitFiles
from vitlab.data.sources.folder import FileSource


@dataclass(frozen=True)
class _Published:
    """torchvision's reader of a set, the folder that it looks for, and which of its splits are ours."""

    reader: str
    folder: str
    train: tuple[str, ...] = ("train",)
    test: str = "test"


_SETS = {
    "flowers102": _Published("Flowers102", "flowers-102", ("train", "val")),
    "pets": _Published("OxfordIIITPet", "oxford-iiit-pet", ("trainval",)),
    "cars": _Published("StanfordCars", "stanford_cars"),
    "food101": _Published("Food101", "food-101"),
    "dtd": _Published("DTD", "dtd/dtd", ("train", "val")),
    "eurosat": _Published("EuroSAT", "eurosat", ("",), ""),
}
"""Kind → what it is. Where a validation part was published it is trained on too, as in DeiT's and FractalDB's tables;
EuroSAT has no split."""


def transfer_root(dataset: DatasetConfig) -> Path:
    """The folder that holds the set's own. Raises ConfigError with how to get it."""
    known, root = _SETS[dataset.kind], Path(dataset.root or "data")
    for place in (root, root.parent):
        if (place / known.folder).is_dir() and (place == root or root.name == known.folder.partition("/")[0]):
            return place
    split = "" if not known.test else ", split={!r}"
    calls = "; ".join(
        f"torchvision.datasets.{known.reader}({str(root)!r}{split.format(name)}, download=True)"
        for name in dict.fromkeys((*known.train, known.test))
    )
    raise ConfigError(
        "dataset.root",
        f"no folder {known.folder} in {str(root)!r}. Give its parent folder; where there is a network, "
        f'`python -c "import torchvision; {calls}"` gets it',
    )


def load_transfer_set(dataset: DatasetConfig, split: str) -> FileSource:
    """One split of a transfer set, in the order of class folders.

    Raises ConfigError where it is missing or not whole, or has no such split.
    """
    from torchvision import datasets

    known, root = _SETS[dataset.kind], transfer_root(dataset)
    if split != "train" and not known.test:
        raise ConfigError("dataset.val_fraction", f"{dataset.name} was published without a split; set images aside",
                          ["dataset.val_fraction=0.2"])  # fmt: skip
    files: list[Path] = []
    labels: list[int] = []
    classes: Sequence[str] = ()
    for name in known.train if split == "train" else (known.test,):
        options = {"split": name} if name else {}
        try:
            data = getattr(datasets, known.reader)(str(root), download=False, **options)
        except Exception as error:  # lists that are damaged make the readers raise nearly anything
            raise ConfigError("dataset.root", f"{root / known.folder} is no whole {known.reader} "
                              f"({str(error).splitlines()[0]}); get it again") from error  # fmt: skip
        found = _files_and_labels(data)
        files += [Path(file) for file, _ in found]
        labels += [int(label) for _, label in found]
        classes = getattr(data, "classes", ())
    names = tuple(classes) or tuple(str(i) for i in range(max(labels) + 1))
    base = root / known.folder
    return FileSource(_as_split(base, files, labels, names), names, reading_of(dataset), f"{split}/")


def _files_and_labels(data: Any) -> list[tuple[Any, Any]]:
    """What a reader of torchvision lists: pairs, or two lists, under the names that its readers use."""
    for name in ("_samples", "samples"):
        if hasattr(data, name):
            return list(getattr(data, name))
    files = next(getattr(data, name) for name in ("_image_files", "_images") if hasattr(data, name))
    return list(zip(files, data._labels, strict=True))


def _as_split(base: Path, files: list[Path], labels: list[int], classes: Sequence[str]) -> SplitFiles:
    below = [file.relative_to(base).as_posix() for file in files]
    try:
        with ThreadPoolExecutor(16) as pool:
            sizes = list(pool.map(os.path.getsize, files))
    except OSError as error:
        raise ConfigError("dataset.root", f"{error.filename} is missing, which the set's own list names; get the set "
                          "again") from error  # fmt: skip
    order = sorted(range(len(files)), key=lambda i: (labels[i], below[i]))
    return SplitFiles(
        Names(f"{classes[labels[i]]}/{below[i].rpartition('/')[2]}" for i in order), np.array(labels)[order],
        np.array(sizes, dtype=np.int64)[order], LooseFiles(base, Names(below[i] for i in order)),
    )  # fmt: skip


def _register(load: Callable[[DatasetConfig, str], FileSource]) -> None:
    for kind in _SETS:
        register_dataset(kind)(load)


_register(load_transfer_set)
