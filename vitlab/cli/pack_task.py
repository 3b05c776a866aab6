"""`task=pack`: resize a data set once and write it as a pack, in parallel; after an interruption it continues."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vitlab.cli.outputs import is_pack, read_places, require_folder
from vitlab.config import Config, ConfigError, DatasetConfig, build
from vitlab.core.archives import save_arrays
from vitlab.core.files import DiskError, in_units, locked, make_folder, remove_parts, write_text, written_whole
from vitlab.core.integrity import DamagedError, file_digest, misfit, read_mapping, sealed
from vitlab.core.processes import worker_pool
from vitlab.data.crop import resize_crops
from vitlab.data.decode import BadImageError
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.files_pack import write_files
from vitlab.data.sources.folder import FileSource
from vitlab.data.sources.pack import FORMAT, SHARD, fingerprint_of, pixel_choices, shard_file
from vitlab.data.sources.registry import Source, load_split
from vitlab.data.sources.survey import describe_survey


@dataclass(frozen=True)
class PackConfig:
    """The keys of `pack` in conf/task/pack.yaml."""

    path: str | None = None
    """A new folder, or one that an interrupted task=pack left."""
    format: Literal["raw", "files"] = "raw"
    """`raw`: pixels, resized once; `files`: the files as they are, byte for byte, in tars that are read by offset."""
    shorter_side: int = field(default=256, metadata={"low": 1})
    """Pixels (raw); smaller images stay as they are."""


@dataclass(frozen=True)
class _Job:
    """One shard to write: the images of `source`, which are the `number`-th SHARD of the split."""

    source: Source
    folder: Path
    split: str
    number: int
    shorter_side: int
    skip_bad: bool
    pixels: Mapping[str, str]
    """The result of `pixel_choices` for the data set."""


def run_pack(config: Config) -> list[str]:
    """Write the pack that `config.options` ask for, of the run's data set; returns the lines to print.

    Shards that are there and whole by their digest are kept, so a second run completes or verifies. Raises
    ConfigError for options that cannot be carried out, UserError for a bad image.
    """
    options: PackConfig = build(PackConfig, config.options, "pack")
    if not options.path:
        raise ConfigError("pack.path", "give a folder for the pack, pack.path=FOLDER")
    folder = Path(options.path)
    require_folder("pack.path", folder, "pack", is_pack, read_places(config))
    dataset = resolve_class_list(config.cell.dataset, config.output_dir)
    if dataset.pack:
        raise ConfigError("dataset.pack", "task=pack reads the images themselves; leave dataset.pack out")
    if dataset.kind == "fractal":
        raise ConfigError("dataset", f"{dataset.name} is rendered as it is asked for, and needs no pack")
    about_files = describe_survey(dataset)  # before anything is written: it may refuse them
    splits = {split: load_split(dataset, split) for split in ("train", "eval") if split == "train" or dataset.num_eval}
    if options.format == "files":
        return [*about_files, *_pack_files(splits, dataset, folder, config)]
    shards = write_pack(splits, dataset, folder, options, config.workers)
    size = sum(shard["bytes"] for parts in shards.values() for shard in parts)
    counts = " + ".join(str(len(source)) for source in splits.values())
    bad = sum(shard["bad"] for parts in shards.values() for shard in parts)
    left_out = f", {bad} bad ones left out" * bool(bad)
    return [
        *about_files,
        f"pack of {dataset.name}: {counts} images, {in_units(size)} in {folder}{left_out}",
        f"train from it: python run.py dataset={config.labels.get('dataset', dataset.name)} dataset.pack={folder}",
    ]


def _pack_files(splits: Mapping[str, Source], dataset: DatasetConfig, folder: Path, config: Config) -> list[str]:
    """Write a pack of files; returns the lines to print. Raises ConfigError for data that are no files."""
    names = {"train": "train", "eval": dataset.eval_split or "val"}
    files = {names[split]: source for split, source in splits.items() if isinstance(source, FileSource)}
    if not files:
        raise ConfigError("pack.format", f"{dataset.name} is held in memory and has no image files to pack; give raw")
    size = write_files(files, dataset, folder, config.workers)
    counts = " + ".join(f"{len(source):,}" for source in files.values())
    name = config.labels.get("dataset", dataset.name)
    name += "" if name == dataset.name else f" dataset.name={dataset.name}"
    return [
        f"pack of the files of {dataset.name}: {counts} images, {in_units(size)} in {folder}",
        f"train from it: python run.py dataset={name} dataset.root={folder}",
    ]


def write_pack(
    splits: Mapping[str, Source], dataset: DatasetConfig, folder: Path, options: PackConfig, workers: int
) -> dict[str, list[dict[str, Any]]]:
    """Write or complete the pack of these splits; returns the manifest's entries for each split's shards.

    Raises UserError for a bad image (unless `dataset.bad_images` is skip), a disk that cannot be written, or another
    process that packs into `folder`.
    """
    try:
        with locked(make_folder(folder) / ".lock") as alone:
            if not alone:
                raise ConfigError("pack.path", f"another process packs into {folder}; wait for its end")
            return _write_alone(splits, dataset, folder, options, workers)
    except DiskError as error:
        raise ConfigError("pack.path", str(error)) from error


def _write_alone(
    splits: Mapping[str, Source], dataset: DatasetConfig, folder: Path, options: PackConfig, workers: int
) -> dict[str, list[dict[str, Any]]]:
    remove_parts(folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    pixels, skip = pixel_choices(dataset), dataset.bad_images == "skip"
    shards = {
        split: _write_split(source, folder, split, options, workers, skip, pixels) for split, source in splits.items()
    }
    about: dict[str, Any] = {"format": FORMAT, "dataset": dataset.name, "shorter_side": options.shorter_side}
    about |= {"classes": splits["train"].classes, "splits": shards} | ({"pixels": pixels} if pixels else {})
    about["fingerprint"] = fingerprint_of(about)
    write_text(folder / "manifest.json", json.dumps(about, indent=1))
    return shards


def _write_split(
    source: Source, folder: Path, split: str, options: PackConfig, workers: int, skip: bool, pixels: dict[str, str]
) -> list[dict[str, Any]]:
    """Write all shards of a split, and its index; returns the manifest's entry of each shard."""
    jobs = (
        _Job(source.select(np.arange(at, min(at + SHARD, len(source)))), folder, split, at // SHARD,
             options.shorter_side, skip, pixels)
        for at in range(0, len(source), SHARD)
    )  # fmt: skip
    if workers > 1 and len(source) > SHARD:
        with worker_pool(workers) as pool:
            shards = [future.result() for future in [pool.submit(_write_shard, job) for job in jobs]]
    else:
        shards = [_write_shard(job) for job in jobs]
    sizes = np.array([size for shard in shards for size in shard.pop("sizes")], dtype=np.int32).reshape(-1, 2)
    save_arrays(folder / f"{split}.npz", compressed=False, sizes=sizes, labels=source.labels)
    return shards


def _write_shard(job: _Job) -> dict[str, Any]:
    """Write one shard unless it is there: {file, bytes, sha256, bad, sizes}.

    Raises ConfigError where the folder's shard was made of other images or at another size.
    """
    torch.set_num_threads(1)
    file = shard_file(job.folder, job.split, job.number)
    about_file = file.with_suffix(".json")
    origin = " ".join([f"{job.source.fingerprint()} at {job.shorter_side}", *job.pixels.values()])
    known = None
    with contextlib.suppress(DamagedError):  # then the shard is written again
        known = read_mapping(about_file, "")
    if known is not None and not misfit(known, {"origin": str, "sha256": str, "sizes": list, "bad": dict}):
        if known["origin"] != origin:
            raise ConfigError("pack.path", f"{about_file} holds other images, sizes or pixels; give a new folder")
        if file.is_file() and file_digest(file) == known["sha256"]:
            return _summary(file, known)
    sizes, bad, digest = [], {}, hashlib.sha256()
    with written_whole(file) as stream:
        for index in range(len(job.source)):
            try:
                pixels = shrink(job.source.image(index), job.shorter_side)
            except BadImageError as error:
                if not job.skip_bad:
                    raise BadImageError(f"{error}; fix it, or leave such images out: dataset.bad_images=skip") from None
                bad[str(index)] = str(error)
                pixels = np.zeros((0, 0, 3), np.uint8)
            stream.write(content := pixels.tobytes())
            digest.update(content)
            sizes.append(pixels.shape[:2])
    known = {"origin": origin, "sha256": digest.hexdigest(), "sizes": sizes, "bad": bad}
    write_text(about_file, json.dumps(sealed(known)))
    return _summary(file, known)


def _summary(file: Path, known: dict[str, Any]) -> dict[str, Any]:
    return {
        "file": file.name, "bytes": file.stat().st_size, "sha256": known["sha256"], "bad": len(known["bad"]),
        "images": len(known["sizes"]), "sizes": known["sizes"],
    }  # fmt: skip


def shrink(image: np.ndarray, shorter_side: int) -> np.ndarray:
    """`image` (H, W, 3) with its shorter side at most `shorter_side`, antialiased bicubic, aspect kept."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= shorter_side:
        return image
    size = (max(1, round(height * shorter_side / shorter)), max(1, round(width * shorter_side / shorter)))
    resized = resize_crops([image], np.array([[0, 0, height, width]]), size, "bicubic")
    return resized[0].permute(1, 2, 0).contiguous().numpy()
