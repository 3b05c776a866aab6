"""The catalogue of data sets by name, in `output_dir/datasets`: classes, counts, and which files they have.

What a folder holds is read once, recorded, and from then on known without the data.

datasets/NAME.json             classes, num_train, num_eval; per kind and split the fingerprint of its files
datasets/files/FINGERPRINT.npz the list of those files, so that a difference can be named
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.files import make_folder, text_of, write_text
from vitlab.core.integrity import (
    DamagedError,
    Fingerprint,
    fingerprints_from,
    misfit,
    plain_fingerprints,
    read_mapping,
    sealed,
)
from vitlab.data.sources.claims import compare_claims
from vitlab.data.sources.inventory import Inventory, item_differences, load_items, save_items
from vitlab.data.sources.on_disk import inventories

SHOWN = 3
"""Images that a message names."""
_NOUNS = {"train": "training", "eval": "evaluation"}


_KNOWN = {
    "name?": str, "classes?": [str], "num_train?": int, "num_eval?": int,
    "data?": lambda kinds: isinstance(kinds, Mapping) and all(map(plain_fingerprints, kinds.values())),
}  # fmt: skip


_KEYS = ("classes", "num_train", "num_eval")
_LIST = {"classes": [str], "num_train": int, "num_eval": int}


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
    named = [] if before is None else item_differences(before, new.items())
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


def resolve_class_list(
    dataset: DatasetConfig, output_dir: str, rerun: bool | None = None, prefix: str = ""
) -> DatasetConfig:
    """`dataset` with its counts filled in; itself where it has them.

    They come from `dataset.class_list`, else from `output_dir/datasets/NAME.json` where the data are not mounted,
    else from the folder, and are then recorded there. Raises ConfigError where nothing tells, or where the record
    and the folder disagree; `rerun` (study.rerun=all) lets the folder's count, None: there is no study to train again.
    `prefix` is what the keys of `dataset` begin with.
    """
    if dataset.kind == "fractal" and dataset.root:  # files made elsewhere: another data set than the one we render
        dataset = dataclasses.replace(
            dataset, kind="folder", name=f"{dataset.name}_files", fractal=None, num_classes=None, num_train=None
        )
    if dataset.kind != "folder" or None not in (dataset.num_classes, dataset.num_train, dataset.num_eval):
        return dataset
    known = {key: value for key, value in read_known(output_dir, dataset.name).items() if key in _KEYS}
    found = False
    if dataset.pack:
        content = _of_pack(Path(dataset.pack))
    elif dataset.class_list:
        content = _read(Path(dataset.class_list))
    elif dataset.root and Path(dataset.root).exists():
        content, found = _scan(dataset), True
        if known and known != content and not rerun:
            accept = "; or let the name mean these from now on: study.rerun=all" if rerun is not None else ""
            raise ConfigError(
                "dataset.root",
                f"{dataset.root!r} is not what is recorded as {dataset.name!r} in {output_dir}\n"
                + "".join(f"    {line}\n" for line in _differences(dataset, output_dir, known, content))
                + f"  Restore it; or {other_name(dataset, output_dir, prefix)}{accept}",
            )
    elif known:
        content = known
    else:
        raise ConfigError(
            "dataset.root",
            f"{dataset.root!r} is no folder, and nothing is recorded of {dataset.name!r} yet; give "
            "dataset.root=FOLDER with train/CLASS/IMAGE and val/CLASS/IMAGE in it, or dataset.class_list=FILE",
        )
    counts = _counts(content)
    compare_claims(dataset, counts, dataset.pack or dataset.class_list or dataset.root or "the recorded class list")
    if found:  # only now: a refused folder must not stand in the right one's way
        write_known(output_dir, dataset.name, **content)
    return dataclasses.replace(dataset, **counts)


def _differences(dataset: DatasetConfig, output_dir: str, known: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """What the folder has and the record has not, and the other way round; image by image where they were listed."""
    was, now = set(known["classes"]), set(content["classes"])
    lines = [
        f"{len(names)} of its classes {'is' if len(names) == 1 else 'are'} {what} ({_some(names)})"
        for what, names in (("new", now - was), ("gone", was - now))
        if names
    ]
    with contextlib.suppress(ConfigError):  # images that cannot be compared one by one are counted
        if images := describe_changes(output_dir, known_data(output_dir, dataset), inventories(dataset)):
            return lines + images
    for key, noun in (("num_train", "training"), ("num_eval", "evaluation")):
        if known[key] != content[key]:
            lines.append(f"{known[key]:,} {noun} images are recorded, it has {content[key]:,}")
    return lines


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_mapping(file, "")
        problem = "there is no such file" if content is None else misfit(content, _LIST)
    except DamagedError as error:
        content, problem = None, error.problem
    if content is None or problem:
        raise ConfigError(
            "dataset.class_list",
            f"{file} is no class list ({problem}); it is JSON with classes, num_train and num_eval",
        )
    return {key: content[key] for key in _KEYS}


def _scan(dataset: DatasetConfig) -> dict[str, Any]:
    from vitlab.data.sources.folder import recognise

    layout = recognise(dataset)
    return {
        "classes": [text_of(name) for name in layout.classes()],
        "num_train": len(layout.files("train").names),
        "num_eval": len(layout.files("eval").names) if layout.has("eval") else 0,
    }


def count_folder(dataset: DatasetConfig) -> dict[str, int]:
    """num_classes, num_train and num_eval of the tree at `dataset.root`. Raises ConfigError where it is none."""
    return _counts(_scan(dataset))


def _counts(content: dict[str, Any]) -> dict[str, int]:
    return {"num_classes": len(content["classes"]), "num_train": content["num_train"], "num_eval": content["num_eval"]}


def _of_pack(folder: Path) -> dict[str, Any]:
    from vitlab.data.sources.pack import read_manifest

    manifest = read_manifest(folder)
    counts = {split: sum(shard["images"] for shard in shards) for split, shards in manifest["splits"].items()}
    return {"classes": manifest["classes"], "num_train": counts["train"], "num_eval": counts.get("eval", 0)}
