"""What is known of each data set under its name, in `output_dir/datasets`: classes, counts, and which files it has.

datasets/NAME.json             classes, num_train, num_eval; per kind and split the fingerprint of its files
datasets/files/FINGERPRINT.npz the list of those files, so that a difference can be named
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.config import DatasetConfig
from vitlab.core.files import make_folder, write_text
from vitlab.core.integrity import (
    DamagedError,
    Fingerprint,
    fingerprints_from,
    misfit,
    plain_fingerprints,
    read_mapping,
    sealed,
)
from vitlab.data.sources.inventory import Inventory, differences, load_items, save_items

SHOWN = 3
"""Images that a message names."""
_NOUNS = {"train": "training", "eval": "evaluation"}


_KNOWN = {
    "name?": str, "classes?": [str], "num_train?": int, "num_eval?": int,
    "data?": lambda kinds: isinstance(kinds, Mapping) and all(map(plain_fingerprints, kinds.values())),
}  # fmt: skip


def known_file(output_dir: str | Path, name: str) -> Path:
    return Path(output_dir) / "datasets" / f"{name}.json"


def read_known(output_dir: str | Path, name: str) -> dict[str, Any]:
    """The content of `datasets/NAME.json`; empty where there is none. Raises DamagedError for a damaged file."""
    file, remedy = known_file(output_dir, name), "remove it, and it is written again"
    content = read_mapping(file, remedy)
    if content is None:
        return {}
    if problem := misfit(content, _KNOWN):
        raise DamagedError(file, f"damaged ({problem})", remedy)
    if content.pop("name", name) != name:
        raise DamagedError(file, "of another data set", remedy)
    return content


def write_known(output_dir: str | Path, name: str, **content: Any) -> None:
    """Set keys of `datasets/NAME.json`, whole or not at all; a file that holds them already is left alone."""
    file = known_file(output_dir, name)
    before = read_known(output_dir, name)
    if (after := before | content) != before:
        make_folder(file.parent)
        write_text(file, json.dumps(sealed({"name": name} | after)))


def known_data(output_dir: str | Path, dataset: DatasetConfig) -> dict[str, Fingerprint]:
    """Split → the fingerprint under which a data set of this name and kind was last trained on.

    Empty for a pack or a FractalDB, whose images follow from the identity alone.
    """
    if dataset.pack or dataset.fractal is not None:
        return {}
    found = fingerprints_from(read_known(output_dir, dataset.name).get("data", {}).get(dataset.kind))
    return {split: value for split, value in found.items() if split == "train" or not dataset.val_fraction}


def remember_data(output_dir: str | Path, dataset: DatasetConfig, taken: Mapping[str, Inventory]) -> None:
    """Record that the name of `dataset` means these images now, and which they are."""
    for inventory in taken.values():
        save_items(Path(output_dir) / "datasets" / "files", inventory)
    if not dataset.pack and dataset.fractal is None:
        own = {s: i.fingerprint.plain() for s, i in taken.items() if s == "train" or not dataset.val_fraction}
        kinds = read_known(output_dir, dataset.name).get("data", {})
        write_known(output_dir, dataset.name, data=kinds | {dataset.kind: kinds.get(dataset.kind, {}) | own})


def describe_changes(
    output_dir: str | Path, recorded: Mapping[str, Fingerprint], now: Mapping[str, Inventory]
) -> list[str]:
    """A line for each split whose images are not the recorded ones: how many differ, and the first `SHOWN`."""
    lines, seen = [], set()
    for split, old in recorded.items():
        new = now.get(split)
        if new is None or old.agrees(new.fingerprint) or (old, new.fingerprint) in seen:
            continue
        seen.add((old, new.fingerprint))
        lines.append(_describe_change(Path(output_dir) / "datasets" / "files", _NOUNS[split], old, new))
    return lines


def _describe_change(folder: Path, noun: str, old: Fingerprint, new: Inventory) -> str:
    before = load_items(folder, old)
    named = [] if before is None else differences(before, new.items())
    if not named:
        return (
            f"{old.images:,} {noun} images then, {new.fingerprint.images:,} now, with other fingerprints (which images "
            "differ is not known)"
        )
    of = max(old.images, new.fingerprint.images)
    more = f", and {len(named) - SHOWN:,} more" if len(named) > SHOWN else ""
    return f"{len(named):,} of {of:,} {noun} images differ: {', '.join(named[:SHOWN])}{more}"


def other_name(dataset: DatasetConfig, output_dir: str | Path, prefix: str = "") -> str:
    """How to give other data a name that no data set has yet: an override that is accepted."""
    number = 2
    while known_file(output_dir, name := f"{dataset.name}_{number}").exists():
        number += 1
    where = ""
    if dataset.kind == "folder" and dataset.root and not dataset.pack:
        from vitlab.data.sources.folder import find_root

        found = find_root(dataset, evaluating=True)
        where = "" if found == Path(dataset.root) else f" {prefix}dataset.root={found}"
    return f"give these a name of their own: {prefix}dataset.name={name}{where}"
