"""Trees of image files: one folder per class in each of train/ and val/."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.files import text_of
from vitlab.core.plugins import register_dataset
from vitlab.data.decode import AS_STORED, Reading, decode, reading_of
from vitlab.data.sources.claims import compare
from vitlab.data.sources.listing import EXTENSIONS, is_image, list_tree

KNOWN_NAMES = {"imagenet1k": "ImageNet", "fractaldb1k": "FractalDB-1k"}
"""Our name → the folder that the book's code looks for below its --data-path."""


class FileSource:
    """Labelled image files; `files` are relative to `root`, `labels` and `sizes` in bytes are (N,) int64."""

    def __init__(
        self, root: Path, files: list[str], labels: np.ndarray, sizes: np.ndarray, classes: tuple[str, ...],
        reading: Reading = AS_STORED,
    ) -> None:  # fmt: skip
        self.root, self.files, self.labels, self.sizes, self.classes = root, files, labels, sizes, classes
        self.reading = reading

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        return decode(self.root / self.files[index], self.reading)

    def select(self, rows: np.ndarray) -> FileSource:
        files = [self.files[i] for i in rows]
        return FileSource(self.root, files, self.labels[rows], self.sizes[rows], self.classes, self.reading)

    def fingerprint(self) -> str:
        """Digest of the files' relative names and sizes; their contents are not read."""
        digest = hashlib.sha256()
        for file, size in zip(self.files, self.sizes.tolist(), strict=True):
            digest.update(f"{file}\0{size}\0".encode(errors="surrogateescape"))  # any bytes make a name
        return digest.hexdigest()[:16]


@register_dataset("folder")
def load_folder(dataset: DatasetConfig, split: str) -> FileSource:
    """The files of one split of a class-folder tree.

    Raises ConfigError where the tree is missing, empty, or does not have the classes it should.
    """
    root = find_root(dataset, evaluating=split == "eval")
    trained_on = train_folder(dataset, root)
    if split == "eval" and not trained_on.is_dir():
        trained_on = root / "val"  # all that evaluating needs; who trains has been refused
    train = class_folders(trained_on)
    folder = trained_on if split == "train" else root / "val"
    names = train if split == "train" else class_folders(folder)
    if unknown := sorted(set(names) - set(train)):
        raise ConfigError("dataset.root", f"{folder} has class {unknown[0]!r}, which {trained_on} lacks")
    compare(dataset, {"num_classes": len(train)}, str(trained_on))
    listing = list_tree(folder, names)
    counts = np.bincount(listing.labels, minlength=len(names))
    if split == "train" and not counts.all():
        empty = folder / names[int(counts.argmin())]
        raise ConfigError("dataset.root", f"class folder {empty} holds no image ({', '.join(EXTENSIONS)})")
    below = folder.relative_to(root)
    files = [f"{below.as_posix()}/{file}" for file in listing.files] if below.parts else listing.files
    compare(dataset, {f"num_{split}": len(files)}, str(folder))
    place = np.array([train.index(name) for name in names], dtype=np.int64)  # val/ may lack classes
    classes = tuple(map(text_of, train))
    return FileSource(root, files, place[listing.labels], listing.sizes, classes, reading_of(dataset))


def find_root(dataset: DatasetConfig, *, evaluating: bool = False) -> Path:
    """`dataset.root`, or the folder of the data set's name in it, that holds train/ with class folders (`evaluating`:
    or val/ alone).

    Raises ConfigError with what is wrong and a guess.
    """
    name = dataset.name
    if not dataset.root:
        raise ConfigError("dataset.root", f"{name} needs a folder that holds train/ and val/; give dataset.root=FOLDER")
    root = Path(dataset.root)
    if not root.is_dir():
        raise ConfigError(
            "dataset.root", f"there is no folder {dataset.root!r}; {name} needs one that holds train/ and val/"
        )
    if not (root / "train").is_dir() and (root / name / "train").is_dir():
        root = root / name  # a folder of several data sets, each under its name
    val_alone = evaluating and dataset.val_fraction == 0 and (root / "val").is_dir()
    if not train_folder(dataset, root).is_dir() and not val_alone:
        below = [root / n for n in (KNOWN_NAMES.get(name, name), name) if (root / n / "train").is_dir()]
        if not below:
            below = [child for child in sorted(root.iterdir()) if (child / "train").is_dir()]
        hint = (
            f"did you mean dataset.root={below[0]}?"
            if below
            else "expected train/CLASS/IMAGE and val/CLASS/IMAGE in it"
        )
        if root.name in ("train", "val"):
            hint = f"did you mean dataset.root={root.parent}?"
        raise ConfigError("dataset.root", f"no train/ in {dataset.root!r}; {hint}")
    if dataset.num_eval != 0 and dataset.val_fraction == 0:
        _check_val(root)
    return root


def train_folder(dataset: DatasetConfig, root: Path) -> Path:
    """Where the training classes are: train/, or the root itself for a tree that has nothing else (FractalDB's)."""
    bare = dataset.num_eval == 0 and dataset.val_fraction == 0 and not (root / "train").is_dir()
    return root if bare else root / "train"


def _check_val(root: Path) -> None:
    val = root / "val"
    if not val.is_dir():
        raise ConfigError(
            "dataset.root", f"no val/ in {str(root)!r}; add it, or set images aside with dataset.val_fraction=0.1"
        )
    if not any(child.is_dir() for child in val.iterdir()) and list_images(val):
        raise ConfigError(
            "dataset.root",
            f"{val} is flat ({len(list_images(val))} images and no class folder); sort the images into "
            "one folder per class (for ImageNet, with the published valprep.sh)",
        )


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted. Raises ConfigError if there is none."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ConfigError("dataset.root", f"{folder} holds no class folder; expected {folder}/CLASS/IMAGE")
    return names


def list_images(folder: Path) -> list[str]:
    """Names of the image files in `folder`, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name))
