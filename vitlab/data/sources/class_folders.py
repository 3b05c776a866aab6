"""Trees of image files: one folder per class, in each of train/ and val/ or in one tree without a split.

Labels in containers become the same classes: which class each is, and what the image's file is called in its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.data.sources.containers import LooseFiles, Names, SplitFiles
from vitlab.data.sources.listing import Listing, glance, is_hidden, is_image, list_tree

EVALUATED = ("val", "valid", "validation", "test")
"""Names of the split that is evaluated on: the first of these that is there, or the one of `dataset.eval_split`."""
TRAINED = "train"
_SYNSET = re.compile(r"n\d{8}")
_SYNSET_BEHIND = re.compile(r"(.+)_(n\d{8})(\.\w+)")
"""How the hub's ImageNet calls its files: n01440764_10026_n01440764.JPEG, ILSVRC2012_val_00000293_n01440764.JPEG."""


@dataclass(frozen=True)
class EvalSplit:
    """Which of the splits that are there is evaluated on, by its name there; None: none of them."""

    name: str | None
    others: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """What to say of a choice that the user may not expect; empty where there is no other."""
        if not self.others:
            return ""
        with_key = " or ".join(f"dataset.eval_split={name}" for name in self.others)
        return f"evaluated on {self.name}; on {' or '.join(self.others)} with {with_key}"


def choose_eval_split(dataset: DatasetConfig, there: Iterable[str], where: str) -> EvalSplit:
    """The split to evaluate on among those that are `there`. Raises ConfigError where the one asked for is not."""
    found = [name for name in EVALUATED if name in set(there)]
    if dataset.num_eval == 0:
        return EvalSplit(None)
    if dataset.val_fraction > 0:  # not evaluated on; recorded as a part of what the data set holds
        return EvalSplit(EVALUATED[0] if EVALUATED[0] in found else None)
    if dataset.eval_split and dataset.eval_split not in found:
        ways = [f"dataset.eval_split={name}" for name in found] or ["dataset.val_fraction=0.1 dataset.eval_split=null"]
        raise ConfigError("dataset.eval_split", f"there is no {dataset.eval_split} split in {where}", ways)
    name = dataset.eval_split or next(iter(found), None)
    return EvalSplit(name, tuple(other for other in found if other != name))


class ClassFolders:
    """`train` holds a folder per class, or is None where only evaluating is asked for; `val` may lack classes."""

    def __init__(self, root: Path, train: Path | None, val: Path | None, remark: str = "") -> None:
        self.root, self.train, self.val, self.remark = root, train, val, remark
        self.one_tree = train == root
        self.form = "one tree of class folders" if self.one_tree else "class folders"
        if not self.one_tree and val is not None and val.name != EVALUATED[0]:
            self.form += f" in train/ and {val.name}/"

    def classes(self) -> list[str]:
        return class_folder_names(self.train or self._folder("eval"))

    def has(self, split: str) -> bool:
        return (self.train if split == "train" else self.val) is not None

    def files(self, split: str, *, again: bool = False) -> SplitFiles:
        """The images of "train" or "eval". Raises ConfigError for a class of val/ that train/ lacks."""
        folder, names = self._folder(split), self._class_folders(split)
        return self._as_split(folder, names, list_tree(folder, names, again=again))

    def glance(self, split: str) -> tuple[SplitFiles, int, int]:
        """What is quickly known of a split, of how many of its classes, and how many it has."""
        folder, names = self._folder(split), class_folder_names(self._folder(split))
        listing, known = glance(folder, names)
        outside = [entry.name for entry in os.scandir(folder) if entry.is_file() and not is_hidden(entry.name)]
        for name in outside if not self.one_tree or folder != self.root else ():
            extension = "../" + Path(name).suffix.lower()
            listing.left_out[extension] = listing.left_out.get(extension, 0) + 1
        seen = sorted({file.partition("/")[0] for file in listing.files}) if known < len(names) else names
        return self._as_split(folder, seen, listing), known, len(names)

    def _folder(self, split: str) -> Path:
        folder = self.train if split == "train" else self.val
        assert folder is not None, f"asked for {split}, which {self.root} lacks"
        return folder

    def _class_folders(self, split: str) -> list[str]:
        names, known = class_folder_names(self._folder(split)), self.classes()
        if unknown := sorted(set(names) - set(known)):
            raise ConfigError("dataset.root", f"{self.val} has class {unknown[0]!r}, which {self.train} lacks")
        return names

    def _as_split(self, folder: Path, names: list[str], listing: Listing) -> SplitFiles:
        places = {name: i for i, name in enumerate(self.classes())}
        labels = np.array([places.get(name, -1) for name in names], dtype=np.int64)[listing.labels]
        files = Names(listing.files)
        return SplitFiles(files, labels, listing.sizes, LooseFiles(folder, files), listing.left_out)


def class_folder_names(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted. Raises ConfigError if there is none."""
    names = subfolders(folder)
    if not names:
        raise ConfigError("dataset.root", f"{folder} holds no class folder; expected {folder}/CLASS/IMAGE")
    return names


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))


def list_images(folder: Path) -> list[str]:
    """Names of the image files in `folder`, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name))


def recognise_class_folders(dataset: DatasetConfig, root: Path, *, evaluating: bool) -> ClassFolders | None:
    """The class folders at `root`, or below it in a folder of the data set's name; None where there are none.

    `evaluating`: the second split alone is enough. Raises ConfigError for a tree that lacks something.
    """
    if not (root / TRAINED).is_dir() and (root / dataset.name / TRAINED).is_dir():
        root = root / dataset.name  # a folder of several data sets, each under its name
    split = choose_eval_split(dataset, subfolders(root), repr(str(root)))
    val = root / split.name if split.name else None
    if (root / TRAINED).is_dir():
        if dataset.num_eval != 0 and dataset.val_fraction == 0:
            _check_val(root, val)
        return ClassFolders(root, root / TRAINED, val, split.remark)
    if evaluating and val is not None:
        return ClassFolders(root, None, val, split.remark)
    if dataset.num_eval == 0 and dataset.val_fraction == 0:
        return ClassFolders(root, root, None)  # FractalDB's: one tree, and nothing to evaluate on
    return _one_tree(dataset, root)


def _one_tree(dataset: DatasetConfig, root: Path) -> ClassFolders | None:
    names = subfolders(root)
    if set(names) & {TRAINED, *EVALUATED} or not any(_holds_image(root / name) for name in names):
        return None
    if dataset.val_fraction == 0 and root.name not in (TRAINED, *EVALUATED):
        raise ConfigError(
            "dataset.root",
            f"no train/ in {str(root)!r}: it is one tree of {len(names):,} class folders without a split; say which "
            "part of the images to evaluate on",
            ["dataset.val_fraction=0.1", "dataset.num_eval=0"],
        )
    return ClassFolders(root, root, None) if dataset.val_fraction else None


def _holds_image(folder: Path) -> bool:
    """Whether there is an image in `folder`; one level below it is looked at too."""
    inner = (folder / name for name in subfolders(folder))
    return any(is_image(name) for place in (folder, *inner) for name in os.listdir(place))


def _check_val(root: Path, val: Path | None) -> None:
    if val is None:
        raise ConfigError(
            "dataset.root", f"no val/ in {str(root)!r}; add it, or set images aside with dataset.val_fraction=0.1"
        )
    if not subfolders(val) and (images := list_images(val)):
        raise ConfigError(
            "dataset.root",
            f"{val} is flat ({len(images)} images and no class folder); sort the images into "
            "one folder per class (for ImageNet, with the published valprep.sh)",
        )


def class_of_label(labels: Sequence[str], paths: Sequence[str], where: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label → place of its class, and the class names, from the labels (whole numbers or names) of all images.

    The classes are called as the folders, or the synsets, in the images' paths where these go with the labels one to
    one, and are then in the order of those names, as class folders are. Numbers are otherwise their own names.
    Raises ConfigError for a label that is neither.
    """
    distinct = dict(zip(labels, paths, strict=True))
    if named := _names_in_paths(labels, paths):
        order = sorted(set(named.values()))
        return {label: order.index(name) for label, name in named.items()}, tuple(order)
    numbers = [label for label in distinct if label.isdecimal()]
    if not numbers:
        order = sorted(distinct)
        return {label: i for i, label in enumerate(order)}, tuple(order)
    most = max(map(int, numbers))
    wrong = next((label for label in distinct if not label.isdecimal()), None)
    wrong = str(most) if wrong is None and most >= max(len(labels), 1) else wrong
    if wrong is not None:
        raise ConfigError(
            "dataset.root",
            f"the label {wrong!r} of {distinct[wrong]} in {where} is out of range; labels are whole numbers from 0 on, "
            "one for each class",
        )
    return {label: int(label) for label in numbers}, tuple(str(i) for i in range(most + 1))


def _names_in_paths(labels: Sequence[str], paths: Sequence[str]) -> dict[str, str] | None:
    """Label → class, where a folder of the paths at some depth, or a synset in the files' names, tells it."""
    split = [path.split("/") for path in paths]
    for depth in range(max(min(map(len, split), default=1) - 1, 0)):
        if found := _one_to_one(labels, [parts[depth] for parts in split]):
            return found
    return _one_to_one(labels, [synset_of(parts[-1]) for parts in split])


def _one_to_one(labels: Sequence[str], names: Sequence[str]) -> dict[str, str] | None:
    pairs = set(zip(labels, names, strict=True))
    found = dict(pairs)
    return found if len(pairs) == len(found) == len(set(found.values())) and "" not in found.values() else None


def synset_of(name: str) -> str:
    """The WordNet synset in the name of an ImageNet file: in front, or behind; "" where there is none."""
    if behind := _SYNSET_BEHIND.fullmatch(name):
        return behind[2]
    return name[:9] if _SYNSET.fullmatch(name[:9]) else ""


def own_name(path: str, class_name: str) -> str:
    """What an image's file would be called in its class's folder: what follows the class in the path, else its last
    part, without a synset behind it."""
    parts = path.split("/")
    if class_name in parts[:-1]:
        return "/".join(parts[parts.index(class_name) + 1 :])
    behind = _SYNSET_BEHIND.fullmatch(parts[-1])
    return behind[1] + behind[3] if behind and behind[2] == class_name else parts[-1]
