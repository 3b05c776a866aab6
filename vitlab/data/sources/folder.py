"""Image files as people have them: which layout `dataset.root` has, and the labelled images of one of its splits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.files import text_of
from vitlab.core.plugins import register_dataset
from vitlab.data.decode import AS_STORED, Reading, decode_bytes, reading_of
from vitlab.data.sources.claims import compare_claims
from vitlab.data.sources.class_folders import EVALUATED, TRAINED, recognise_class_folders, subfolders
from vitlab.data.sources.containers import SplitFiles
from vitlab.data.sources.files_pack import recognise_files_pack
from vitlab.data.sources.imagenet_files import recognise_archives, recognise_kaggle
from vitlab.data.sources.index import Indexed
from vitlab.data.sources.label_table import recognise_table
from vitlab.data.sources.listing import EXTENSIONS
from vitlab.data.sources.parquet_files import recognise_parquet
from vitlab.data.sources.tar_files import recognise_tars

KNOWN_NAMES = {"imagenet1k": "ImageNet", "fractaldb1k": "FractalDB-1k"}
"""Our name → the folder that the book's code looks for below its --data-path."""


class Layout(Protocol):
    """How a data set's images lie on the disk. Splits are "train" and "eval"."""

    root: Path
    one_tree: bool
    """Whether the root itself holds the class folders."""

    @property
    def form(self) -> str:
        """What was recognised, for people."""
        ...

    @property
    def remark(self) -> str:
        """What else to say of it; empty: nothing."""
        ...

    def classes(self) -> list[str]:
        """The class names in the order of the labels. Raises ConfigError where there is none."""
        ...

    def has(self, split: str) -> bool: ...

    def files(self, split: str, *, again: bool = False) -> SplitFiles:
        """The images of a split; `again`: no cache is believed. Raises ConfigError for anything that is wrong."""
        ...

    def glance(self, split: str) -> tuple[SplitFiles, int, int]:
        """What is quickly known of a split, of how many of its classes, and how many it has."""
        ...


class FileSource:
    """Labelled image files. `prefix` tells the splits apart in a fingerprint."""

    def __init__(
        self, found: SplitFiles, classes: tuple[str, ...], reading: Reading = AS_STORED, prefix: str = ""
    ) -> None:
        self.files, self.labels, self.sizes, self.content = found.names, found.labels, found.sizes, found.content
        self.classes, self.reading, self.prefix = classes, reading, prefix

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        return decode_bytes(self.content.read(index), self.content.where(index), self.reading)

    def select(self, rows: np.ndarray) -> FileSource:
        part = SplitFiles(self.files.select(rows), self.labels[rows], self.sizes[rows], self.content.select(rows))
        return FileSource(part, self.classes, self.reading, self.prefix)

    def fingerprint(self) -> str:
        """Digest of the files' relative names and sizes; their contents are not read."""
        digest = hashlib.sha256()
        for file, size in zip(self.files, self.sizes.tolist(), strict=True):
            digest.update(f"{self.prefix}{file}\0{size}\0".encode(errors="surrogateescape"))  # any bytes make a name
        return digest.hexdigest()[:16]


@register_dataset("folder")
def load_folder(dataset: DatasetConfig, split: str) -> FileSource:
    """The images of one split of whatever layout `dataset.root` has.

    Raises ConfigError where it is missing, empty, or does not have the classes it should.
    """
    layout = recognise(dataset, evaluating=split == "eval")
    classes = layout.classes()
    where = str(layout.root if layout.one_tree or isinstance(layout, Indexed) else layout.root / TRAINED)
    compare_claims(dataset, {"num_classes": len(classes)}, where)
    found = layout.files(split)
    counts = np.bincount(found.labels, minlength=len(classes))
    if split == "train" and not counts.all():
        empty = classes[int(counts.argmin())]
        kinds = f"({', '.join(EXTENSIONS)})"
        if isinstance(layout, Indexed):
            raise ConfigError("dataset.root", f"class {empty!r} has no image {kinds} to train on in {layout.root}")
        raise ConfigError("dataset.root", f"class folder {where}/{empty} holds no image {kinds}")
    compare_claims(dataset, {f"num_{split}": len(found.names)}, where if split == "train" else str(layout.root))
    bare = layout.one_tree and dataset.num_eval == 0 and dataset.val_fraction == 0
    prefix = "" if bare else "train/" if split == "train" else "val/"
    return FileSource(found, tuple(map(text_of, classes)), reading_of(dataset), prefix)


def find_root(dataset: DatasetConfig, *, evaluating: bool = False) -> Path:
    """Where the images of `dataset.root` lie: itself, or the folder of the data set's name in it. Raises ConfigError as
    `recognise` does."""
    return recognise(dataset, evaluating=evaluating).root


def recognise(dataset: DatasetConfig, *, evaluating: bool = False) -> Layout:
    """The layout of `dataset.root` (`evaluating`: the split to evaluate on is enough).

    Raises ConfigError with what is wrong and a guess.
    """
    name = dataset.name
    if dataset.table:
        return recognise_table(dataset)
    if not dataset.root:
        raise ConfigError("dataset.root", f"{name} needs a folder that holds train/ and val/; give dataset.root=FOLDER")
    root = Path(dataset.root)
    if not root.exists():
        raise ConfigError(
            "dataset.root", f"there is no folder {dataset.root!r}; {name} needs one that holds train/ and val/"
        )
    found: Layout | None = recognise_files_pack(dataset, root)
    found = found or recognise_archives(dataset, root) or recognise_kaggle(dataset, root)
    if found is None and not subfolders(root / TRAINED):
        found = recognise_tars(dataset, root) or recognise_parquet(dataset, root)
    if found is None and root.is_file():
        raise ConfigError("dataset.root", f"{dataset.root!r} is neither a folder nor a tar or parquet file of images")
    if found is None:
        found = recognise_class_folders(dataset, root, evaluating=evaluating)
    if found is None:
        raise ConfigError("dataset.root", f"no train/ in {dataset.root!r}; {_guess(name, root)}")
    return found


def _guess(name: str, root: Path) -> str:
    if root.name in (TRAINED, *EVALUATED):
        return f"did you mean dataset.root={root.parent}?"
    below = [root / n for n in (KNOWN_NAMES.get(name, name), name) if (root / n / TRAINED).is_dir()]
    below = below or [child for child in sorted(root.iterdir()) if (child / TRAINED).is_dir()]
    if below:
        return f"did you mean dataset.root={below[0]}?"
    return "expected train/CLASS/IMAGE and val/CLASS/IMAGE in it"
