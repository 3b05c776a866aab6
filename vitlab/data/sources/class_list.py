"""How many classes and images a folder has: read once, recorded, and from then on known without the data."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.files import text_of
from vitlab.core.integrity import DamagedError, misfit, read_mapping
from vitlab.data.sources.claims import compare
from vitlab.data.sources.known import describe_changes, known_data, other_name, read_known, write_known
from vitlab.data.sources.on_disk import inventories


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
    compare(dataset, counts, dataset.pack or dataset.class_list or dataset.root or "the recorded class list")
    if found:  # only now: a refused folder must not stand in the right one's way
        write_known(output_dir, dataset.name, **content)
    return dataclasses.replace(dataset, **counts)


_KEYS = ("classes", "num_train", "num_eval")
_LIST = {"classes": [str], "num_train": int, "num_eval": int}


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
