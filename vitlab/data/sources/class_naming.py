"""Labels in containers: which class each is, and what the image's file would be called in a folder of its class."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vitlab.config import ConfigError

_SYNSET = re.compile(r"n\d{8}")
_SYNSET_BEHIND = re.compile(r"(.+)_(n\d{8})(\.\w+)")
"""How the hub's ImageNet calls its files: n01440764_10026_n01440764.JPEG, ILSVRC2012_val_00000293_n01440764.JPEG."""


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
