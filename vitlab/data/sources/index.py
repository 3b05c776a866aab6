"""The index of a data set whose images lie in larger files: built once, kept in the cache, compared with the files."""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.archives import load_arrays, save_arrays
from vitlab.core.files import DiskError, make_folder
from vitlab.core.integrity import DamagedError
from vitlab.data.sources.class_folders import TRAINED, choose_eval_split, class_of_label, own_name
from vitlab.data.sources.containers import Content, Names, Ranges, SplitFiles, State, state_of, walk_order
from vitlab.data.sources.inventory import cache_file

_SETTLED = 2.0
"""Seconds after which a file's modification time is taken to tell every change."""
_VERSION = 1
"""Of the cached indices."""


@dataclass(frozen=True, eq=False)
class Index:
    """Every split of a data set, by its name there: "train", "val", "test", …"""

    classes: tuple[str, ...]
    splits: dict[str, SplitFiles]
    form: str


@dataclass
class Found:
    """The images of one split as a container has them, image by image."""

    paths: list[str] = field(default_factory=list)
    """What each is called there."""
    labels: list[str] = field(default_factory=list)
    """Whole numbers or class names."""
    places: list[tuple[int, int, int]] = field(default_factory=list)
    """File, offset, bytes."""
    left_out: Counter[str] = field(default_factory=Counter)


class Indexed:
    """The layout of a data set that has an index, which is read or built when first needed."""

    one_tree = False
    kept = True
    """Whether the index is kept in the cache."""
    variant = ""
    """What else tells this index from others of the same files."""

    def __init__(
        self, dataset: DatasetConfig, root: Path, files: Sequence[Path], build: Callable[[], Index],
        make_content: Callable[..., Content] = Ranges,
    ) -> None:  # fmt: skip
        """`files` decide what the index holds: with another size or time of any of them it is built again."""
        self.dataset, self.root, self._build, self.make_content = dataset, root, build, make_content
        self.states = tuple(state_of(file) for file in files)

    @functools.cached_property
    def index(self) -> Index:
        builder = _Builder(self._build, self.make_content, self.kept)
        return _remembered(str(self.root.resolve()), self.variant, self.states, builder)

    @functools.cached_property
    def _eval(self):
        return choose_eval_split(self.dataset, self.index.splits, str(self.root))

    @property
    def form(self) -> str:
        return self.index.form

    @property
    def remark(self) -> str:
        return self._eval.remark

    def classes(self) -> list[str]:
        return list(self.index.classes)

    def has(self, split: str) -> bool:
        return self._name(split) in self.index.splits

    def files(self, split: str, *, again: bool = False) -> SplitFiles:
        """The images of "train" or "eval"; the index has been compared with its files, so `again` changes nothing.

        Raises ConfigError where there is no such split.
        """
        name = self._name(split)
        if name not in self.index.splits:
            there = ", ".join(self.index.splits)
            aside = "; set images aside for evaluation with dataset.val_fraction=0.1" if split == "eval" else ""
            raise ConfigError("dataset.root", f"no {name or 'val'} split in {str(self.root)!r} (it has {there}){aside}")
        return self.index.splits[name]

    def glance(self, split: str) -> tuple[SplitFiles, int, int]:
        return self.files(split), len(self.index.classes), len(self.index.classes)

    def _name(self, split: str) -> str | None:
        return TRAINED if split == "train" else self._eval.name


class _Builder:
    """What makes an index; equal to any other, so that it is no part of what is remembered."""

    def __init__(self, build: Callable[[], Index], make: Callable[..., Content], kept: bool) -> None:
        self.build, self.make, self.kept = build, make, kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Builder)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=4)
def _remembered(root: str, variant: str, states: tuple[State, ...], builder: _Builder) -> Index:
    key = [_VERSION, root, variant, sorted(state.path for state in states)]
    file = cache_file("indices", json.dumps(key), ".npz")
    if builder.kept and (known := _read(file, states, builder.make)) is not None:
        return known
    index = builder.build()
    if builder.kept and max(state.modified for state in states) < (time.time() - _SETTLED) * 1e9:
        try:
            make_folder(file.parent)
            _write(file, states, index)
        except DiskError as error:
            print(f"note: the index of {root} is not kept and is built again by each command: {error} (the environment "
                  "variable VITLAB_CACHE names another folder for it)", file=sys.stderr)  # fmt: skip
    return index


_PARTS = ("names", "labels", "sizes", "file_of", "offsets")


def _write(file: Path, states: tuple[State, ...], index: Index) -> None:
    about: dict[str, Any] = {
        "states": [[s.path, s.bytes, s.modified] for s in states], "form": index.form,
        "splits": {name: found.left_out for name, found in index.splits.items()},
    }  # fmt: skip
    arrays = {"classes": Names(index.classes).flat, "about": _bytes(json.dumps(about))}
    for name, found in index.splits.items():
        content = found.content
        assert isinstance(content, Ranges)
        if "files" not in arrays:
            arrays["files"] = _bytes(json.dumps([[s.path, s.bytes, s.modified] for s in content.files]))
        values = (found.names.flat, found.labels, found.sizes, content.file_of, content.offsets)
        arrays |= {f"{part} {name}": value for part, value in zip(_PARTS, values, strict=True)}
    save_arrays(file, compressed=False, **arrays)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)


def _text(array: np.ndarray) -> str:
    return array.tobytes().decode(errors="surrogateescape")


def _read(file: Path, states: tuple[State, ...], make: Callable[..., Content]) -> Index | None:
    """The index in the cache; None where there is none, a damaged one or one of other files."""
    try:
        about = json.loads(_text(load_arrays(file, ("about",), "")["about"]))
        if [State(*state) for state in about["states"]] != list(states):
            return None
        wanted = [f"{part} {name}" for name in about["splits"] for part in _PARTS]
        content = load_arrays(file, ("classes", "files", *wanted), "")
    except (DamagedError, ValueError, KeyError, TypeError):
        return None
    files = [State(*state) for state in json.loads(_text(content["files"]))]
    splits = {}
    for name, left_out in about["splits"].items():
        flat, labels, sizes, file_of, offsets = (content[f"{part} {name}"] for part in _PARTS)
        names = Names(flat=flat)
        splits[name] = SplitFiles(names, labels, sizes, make(files, file_of, offsets, sizes, names), left_out)
    return Index(tuple(Names(flat=content["classes"])), splits, about["form"])


UNLABELLED = ("", "-1")
"""Labels that mean that there is none."""


def index_of(
    splits: dict[str, Found], states: Sequence[State], root: Path, form: str, classes: Sequence[str] = (),
    make: Callable[..., Content] = Ranges, by_name: bool = False,
) -> Index:  # fmt: skip
    """The index of what was found in the files `states`; `classes`: their names in the order of the labels, where the
    container says them. Labels are their numbers, or with `by_name` they themselves.

    Raises ConfigError where an image has no label or one out of range, or two are the same, or the splits disagree.
    """
    hidden = [n for n, found in splits.items() if n != TRAINED and found.labels and set(found.labels) <= {*UNLABELLED}]
    splits = {name: found for name, found in splits.items() if name not in hidden and found.labels}
    for found in splits.values():
        for label, path, place in zip(found.labels, found.paths, found.places, strict=True):
            if label == "":
                raise ConfigError("dataset.root", f"{states[place[0]].path}: {path} has no label (no .cls or .json of "
                                  "its key); add it, or take the image out")  # fmt: skip
    by = splits.get(TRAINED) or next(iter(splits.values()))
    if classes:
        places = {name if by_name else str(i): i for i, name in enumerate(classes)}
    else:
        places, classes = class_of_label(by.labels, by.paths, str(root))
    made = {name: _as_split(name, found, places, classes, states, make) for name, found in splits.items()}
    counts = " + ".join(str(len({place[0] for place in found.places})) for found in splits.values())
    form += f", {counts} {'file' if len(states) == 1 else 'files'}"
    form += f"; {' and '.join(hidden)} without labels" if hidden else ""
    return Index(tuple(classes), made, form)


def _as_split(
    name: str, found: Found, places: dict[str, int], classes: Sequence[str], states: Sequence[State],
    make: Callable[..., Content],
) -> SplitFiles:  # fmt: skip
    """The images of a split in the order of class folders."""
    for label, path, place in zip(found.labels, found.paths, found.places, strict=True):
        if label not in places:
            where = f"{states[place[0]].path}: {path}"
            if not label.lstrip("-").isdecimal() or str(len(classes) - 1) not in places:
                raise ConfigError("dataset.root", f"{where} is of class {label!r} in {name}, which {TRAINED} lacks")
            raise ConfigError("dataset.root", f"the label {label!r} of {where} ({name}) is out of range; there are "
                              f"{len(classes)} classes, 0 to {len(classes) - 1}")  # fmt: skip
    labels = np.array([places[label] for label in found.labels], dtype=np.int64)
    names = [own_name(path, classes[int(label)]) for path, label in zip(found.paths, labels, strict=True)]
    if len(set(zip(labels.tolist(), names, strict=True))) < len(names) and len({*found.paths}) == len(names):
        names = found.paths  # images of one name in different folders
    order = sorted(range(len(names)), key=lambda i: (labels[i], walk_order(names[i])))
    for i, j in itertools.pairwise(order):
        if labels[i] == labels[j] and names[i] == names[j]:
            where = " and ".join(dict.fromkeys(states[found.places[k][0]].path for k in (i, j)))
            raise ConfigError(
                "dataset.root", f"{classes[labels[i]]}/{names[i]} is there twice, in {where}; take one out"
            )
    called = Names(f"{classes[labels[i]]}/{names[i]}" for i in order)
    where = np.array(found.places, dtype=np.int64).reshape(-1, 3)[order]
    file_of, offsets, sizes = where[:, 0].astype(np.int32), where[:, 1].copy(), where[:, 2].copy()
    left_out = dict(sorted(found.left_out.items()))
    return SplitFiles(called, labels[order], sizes, make(states, file_of, offsets, sizes, called), left_out)


def require_numbered(files: Iterable[str]) -> None:
    """Raise ConfigError where shards are numbered and one in between, or of the `-of-N` that they name, is missing."""
    groups: dict[tuple[str, str], dict[int, str]] = {}
    for file in files:
        stem = file.rpartition(".")[0]
        if found := re.match(r"(.*?)(\d+)-of-(\d+)", stem):
            groups.setdefault((found[1], found[3]), {})[int(found[2])] = file
        elif found := re.fullmatch(r"(.*?)(\d+)(\D*)", stem):
            groups.setdefault((found[1], ""), {})[int(found[2])] = file
    for (_, total), numbers in groups.items():
        first = 0 if total or 0 in numbers else 1
        last = int(total) - 1 if total else max(numbers)
        if not total and last - first + 1 > 2 * len(numbers):
            continue  # digits that number nothing
        if missing := [number for number in range(first, last + 1) if number not in numbers]:
            near = numbers[min(numbers, key=lambda n: abs(n - missing[0]))]
            raise ConfigError(
                "dataset.root",
                f"{len(missing)} of the numbered files {'is' if len(missing) == 1 else 'are'} missing: number "
                f"{missing[0]}, next to {near}; complete them",
            )
