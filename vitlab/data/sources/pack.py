"""A pack: a data set's images, resized once and laid raw, side by side, in memory-mapped files.

    PATH/manifest.json          what it is of, the files' digests, the fingerprint; written last
    PATH/train.npz, eval.npz    sizes (N, 2) int32 and labels (N,) of a split
    PATH/train-00000.bin …      uint8 pixels (h, w, 3) of SHARD images, one after the other, with a .json of each

Raw because decoding is what limits training from JPEG, and a crop reads only the bytes it needs.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.archives import load_arrays
from vitlab.core.integrity import DamagedError, misfit, read_mapping
from vitlab.data.sources.claims import compare_claims
from vitlab.data.sources.containers import BadImageError, State, is_still, state_of

SHARD = 1024
"""Images of one file."""
FORMAT = 1
_SHARD = {"file": str, "bytes": int, "images": int}
_MANIFEST = {"format": int, "fingerprint": str, "dataset": str, "classes": [str], "splits": dict, "pixels?": dict}
AGAIN = "make it again, or complete it, with task=pack"
AS_EVER = {"grey16": "range", "exif": "ignore"}
"""The keys of a data set that decide which pixels a file holds, as they are for a pack that says nothing of them."""


class PackSource:
    """The images of one split of a pack; `rows` (M,) are the places of this source's images in the split."""

    def __init__(
        self, folder: Path, split: str, sizes: np.ndarray, labels: np.ndarray, rows: np.ndarray,
        classes: tuple[str, ...], digest: str,
    ) -> None:  # fmt: skip
        self.folder, self.split, self.rows, self.classes, self.digest = folder, split, rows, classes, digest
        self.sizes, self.all_labels, self.labels = sizes, labels, labels[rows]
        lengths = sizes.astype(np.int64).prod(1) * 3
        self.starts = np.concatenate([[0], np.cumsum(lengths)])  # (N + 1,) bytes from the split's beginning
        self.copies: Mapping[str, State] = {}
        """The path of a shard → a copy of it, which is read in its place."""
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # each worker maps the files itself

    def image(self, index: int) -> np.ndarray:
        row = int(self.rows[index])
        height, width = (int(v) for v in self.sizes[row])
        shard = row // SHARD
        if not height:
            about = read_mapping(shard_file(self.folder, self.split, shard, ".json"), AGAIN) or {}
            reason = about.get("bad", {}).get(str(row % SHARD), f"image {row} is bad")
            raise BadImageError(f"{reason} (when {self.folder} was packed)")
        if shard not in self._maps:
            file = shard_file(self.folder, self.split, shard)
            made = self.copies.get(str(file))
            place = made.path if made is not None and is_still(made) else file
            self._maps[shard] = np.memmap(place, np.uint8, mode="r")
        start = self.starts[row] - self.starts[shard * SHARD]
        return self._maps[shard][start : start + height * width * 3].reshape(height, width, 3)

    def select(self, rows: np.ndarray) -> PackSource:
        part = copy.copy(self)
        part.rows, part.labels = self.rows[rows], self.labels[rows]
        return part

    def held_in(self) -> list[State]:
        """The shards that hold these images."""
        return [state_of(shard_file(self.folder, self.split, int(n))) for n in np.unique(self.rows // SHARD)]

    def read_from(self, copies: Mapping[State, State]) -> PackSource:
        """The same images, read from the copies of their shards; a pack with other shards has another fingerprint."""
        other = copy.copy(self)
        other.copies = {original.path: made for original, made in copies.items()}
        return other

    def fingerprint(self) -> str:
        return self.digest


def shard_file(folder: Path, split: str, number: int, suffix: str = ".bin") -> Path:
    return folder / f"{split}-{number:05}{suffix}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """A pack's manifest. Raises ConfigError where there is none, or none that can be read."""
    file = folder / "manifest.json"
    try:
        content = read_mapping(file, AGAIN)
    except DamagedError as error:
        raise ConfigError("dataset.pack", f"{file} is no manifest of a pack ({error.problem}); {AGAIN}") from error
    if content is None and (folder / "files.json").is_file():
        raise ConfigError("dataset.pack", f"{folder} holds files, as a folder does; give it as the root",
                          [f"dataset.root={folder} dataset.pack=null"])  # fmt: skip
    if content is None:
        raise ConfigError("dataset.pack", f"no manifest.json in {str(folder)!r}; {AGAIN}")
    if problem := misfit(content, _MANIFEST):
        raise ConfigError("dataset.pack", f"{file} is no manifest of a pack ({problem}); {AGAIN}")
    if content["format"] != FORMAT:
        raise ConfigError(
            "dataset.pack", f"{folder} has format {content['format']}, this vitlab reads {FORMAT}; {AGAIN}"
        )
    for split, shards in content["splits"].items():
        if problem := misfit({split: shards}, {split: [_SHARD]}):
            raise ConfigError("dataset.pack", f"{file} is no manifest of a pack ({problem}); {AGAIN}")
    if content["fingerprint"] != fingerprint_of(content):
        raise ConfigError("dataset.pack", f"{file} is damaged (its content has changed since it was written); {AGAIN}")
    return content


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """16 hexadecimal digits, of all else that a manifest holds."""
    about = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def pixel_choices(dataset: DatasetConfig) -> dict[str, str]:
    """What a manifest says of the keys in `AS_EVER`: those that differ."""
    return {key: getattr(dataset, key) for key, value in AS_EVER.items() if getattr(dataset, key) != value}


def load_pack(dataset: DatasetConfig, split: str) -> PackSource:
    """One split of the pack at `dataset.pack`.

    Raises ConfigError where it is of another data set, changed since the cell was planned, or not whole. The files'
    lengths are checked here, their digests by running task=pack again.
    """
    assert dataset.pack, "called for packs only"
    folder = Path(dataset.pack)
    manifest = read_manifest(folder)
    if manifest["dataset"] != dataset.name:
        raise ConfigError("dataset.pack", f"{folder} was made of {manifest['dataset']!r}, not of {dataset.name!r}")
    if dataset.pack_id not in (None, manifest["fingerprint"]):
        raise ConfigError(
            "dataset.pack",
            f"{folder} has fingerprint {manifest['fingerprint']}, this cell was planned with "
            f"{dataset.pack_id}; another pack is another cell",
        )
    for key, held in (AS_EVER | manifest.get("pixels", {})).items():
        if (asked := getattr(dataset, key)) != held:
            raise ConfigError(
                f"dataset.{key}",
                f"{folder} was packed with {held}, not with {asked}; give dataset.{key}={held}, or make "
                f"another pack with task=pack dataset.{key}={asked}",
            )
    if split not in manifest["splits"]:
        raise ConfigError("dataset.pack", f"{folder} has no {split} split; set images aside with dataset.val_fraction")
    try:
        index = load_arrays(folder / f"{split}.npz", ("sizes", "labels"), AGAIN)
    except DamagedError as error:
        raise ConfigError("dataset.pack", f"{error.path} cannot be read ({error.problem}); {AGAIN}") from error
    sizes, labels = index["sizes"], index["labels"]
    compare_claims(dataset, {"num_classes": len(manifest["classes"]), f"num_{split}": len(labels)}, str(folder))
    for shard in manifest["splits"][split]:
        file = folder / shard["file"]
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            held = "missing" if size is None else f"{size} bytes long"
            raise ConfigError("dataset.pack", f"{file} is {held}, it was {shard['bytes']} bytes; {AGAIN}")
    return PackSource(
        folder, split, sizes, labels, np.arange(len(labels)), tuple(manifest["classes"]),
        f"{manifest['fingerprint']}-{split}",
    )  # fmt: skip
