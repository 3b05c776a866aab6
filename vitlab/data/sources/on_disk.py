"""What the data set's files are at this moment, so that other data are never taken for the same.

By default (`dataset.verify=sizes`) the names and sizes of all files count, and the first and last bytes of a sample of
them. A file whose bytes change and whose size does not, outside that sample, is seen by `dataset.verify=contents`
alone, which reads every byte once and again where a file's size or modification time is another.

The listing of a large tree is kept in the cache while no class folder changes (`listing`). A file that is overwritten
in place changes no folder: it is then seen if it is among the `LOOKS` files that are drawn again for each comparison.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.files import DiskError, make_folder, write_text
from vitlab.core.integrity import FINGERPRINT, DamagedError, fingerprint_from, misfit, read_mapping, sealed
from vitlab.data.sources.arrays import ArraySource, cifar_root, fashion_folder
from vitlab.data.sources.containers import Content, LooseFiles, SplitFiles, file_name
from vitlab.data.sources.folder import recognise
from vitlab.data.sources.inventory import (
    HASH,
    Inventory,
    Items,
    as_hashes,
    cache_file,
    hash_files,
    hash_images,
    of_files,
    of_images,
    of_name,
    sample_rows,
)
from vitlab.data.sources.pack import AGAIN, load_pack, read_manifest
from vitlab.data.sources.parquet_files import require_random_reads

LOOKS = 20_000
"""Files whose sizes are asked of the disk where a cached listing is used."""
_ENDS = 1 << 16
"""Bytes of either end of a sampled file."""
_SETTLED = 2.0
"""Seconds after which a file's modification time is taken to tell every change."""
_VERSION = 1
"""Of the cached fingerprints of images in memory."""


def take_inventory(dataset: DatasetConfig, split: str) -> Inventory:
    """The images that one split ("train", "eval") has on the disk now, before any of them is set aside.

    Raises ConfigError or OSError where they cannot be listed, and for a pack whose bytes are not those of its manifest
    (`dataset.verify=contents`).
    """
    if dataset.pack:
        return _of_pack(dataset, split)
    if dataset.kind == "folder":
        return _of_folder(dataset, split)
    if dataset.fractal is not None:
        from vitlab.data.formula.cache import fingerprint

        return of_name(dataset.fractal.categories * dataset.fractal.instances, fingerprint(dataset.fractal))
    return _in_memory(dataset, split)


def inventories(dataset: DatasetConfig) -> dict[str, Inventory]:
    """`take_inventory` of the split trained on and, as "eval", of the one evaluated on, where there is one.

    With `val_fraction` both are the training split: which of its images are set aside follows from their labels.
    """
    found = {"train": take_inventory(dataset, "train")}
    if dataset.val_fraction:
        found["eval"] = found["train"]
    elif dataset.num_eval != 0:
        found["eval"] = take_inventory(dataset, "eval")
    return found


def _of_folder(dataset: DatasetConfig, split: str) -> Inventory:
    layout = recognise(dataset, evaluating=split == "eval")
    require_random_reads(layout)
    found = layout.files(split)
    if dataset.verify == "contents" or not _still_so(found):
        found = layout.files(split, again=True)
    chosen = found.content.select(sample_rows(len(found.names)))
    with ThreadPoolExecutor(16) as pool:
        sampled = as_hashes(list(pool.map(lambda i: _ends(chosen, i), range(len(chosen.stored())))))
    hashes = hash_images(found)[:, :HASH] if dataset.verify == "contents" else as_hashes([])
    return of_files(Items(list(found.names), found.sizes, sampled, np.ascontiguousarray(hashes)))


def _still_so(found: SplitFiles) -> bool:
    """Whether files drawn at random have the sizes that the listing gives them."""
    if not isinstance(found.content, LooseFiles):
        return True  # the index has been compared with its files
    count, paths, top = len(found.names), found.content.paths, found.content.root
    rows = np.random.default_rng().choice(count, min(count, LOOKS), replace=False)
    try:
        return all(os.stat(f"{top}/{file_name(paths[i])}").st_size == found.sizes[i] for i in rows)
    except FileNotFoundError:
        return False


def _ends(content: Content, index: int) -> bytes:
    with content.open(index) as stream:
        digest = hashlib.blake2b(stream.read(_ENDS), digest_size=HASH)
        stream.seek(max(stream.seek(0, os.SEEK_END) - _ENDS, 0))
        digest.update(stream.read(_ENDS))
    return digest.digest()


def _of_pack(dataset: DatasetConfig, split: str) -> Inventory:
    source, folder = load_pack(dataset, split), Path(dataset.pack or "")  # refuses missing and shorter files
    if dataset.verify == "contents":
        shards = read_manifest(folder)["splits"][split]
        for shard, value in zip(shards, hash_files(folder, [shard["file"] for shard in shards]), strict=True):
            if value.tobytes().hex() != shard["sha256"]:
                raise ConfigError(
                    "dataset.pack",
                    f"the bytes of {folder / shard['file']} are not those that the pack was made with; {AGAIN}",
                )
    return of_name(len(source), source.fingerprint())


def _in_memory(dataset: DatasetConfig, split: str) -> Inventory:
    """Images that are held in memory: read only where no earlier look at these very files is remembered."""
    files = _FILES[dataset.kind](dataset, split) if dataset.kind in _FILES else []
    stats = [(str(f.resolve()), (state := f.stat()).st_size, state.st_mtime_ns) for f in files]
    remembered = cache_file("fingerprints", json.dumps([_VERSION, dataset.kind, split, stats]), ".json")
    with contextlib.suppress(DamagedError):  # absent or damaged: the files tell
        known = read_mapping(remembered, "") if stats else None
        if known and not misfit(known, FINGERPRINT):
            return Inventory(fingerprint_from(known), lambda: _load(dataset, split).items())
    inventory = _load(dataset, split)
    if stats and max(modified for *_, modified in stats) < (time.time() - _SETTLED) * 1e9:
        text = json.dumps(sealed(inventory.fingerprint.plain()))
        with contextlib.suppress(DiskError):  # without a cache the images are read again
            make_folder(remembered.parent)
            write_text(remembered, text)
    return inventory


def _load(dataset: DatasetConfig, split: str) -> Inventory:
    from vitlab.data.sources.registry import load_split

    source = load_split(dataset, "train" if split == "train" else "eval")
    return (
        of_images(source.images, source.labels)
        if isinstance(source, ArraySource)
        else of_name(len(source), source.fingerprint())
    )


def _digits(dataset: DatasetConfig, split: str) -> list[Path]:
    spec = importlib.util.find_spec("sklearn")  # found without being imported, which takes half a second
    assert spec and spec.origin, "required by vitlab"
    return [Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"]


def _fashion(dataset: DatasetConfig, split: str) -> list[Path]:
    return sorted(fashion_folder(dataset).glob("train-*" if split == "train" else "t10k-*"))


def _cifar(dataset: DatasetConfig, split: str) -> list[Path]:
    folder = cifar_root(dataset) / ("cifar-10-batches-py" if dataset.kind == "cifar10" else "cifar-100-python")
    return sorted(f for f in folder.iterdir() if f.is_file())


def _torchvision(dataset: DatasetConfig, split: str) -> list[Path]:
    root = Path(dataset.root or "data")
    return sorted((root / "stl10_binary").glob("*.bin") if dataset.kind == "stl10" else root.glob("*_32x32.mat"))


_FILES: dict[str, Callable[[DatasetConfig, str], list[Path]]] = {
    "digits": _digits, "fashion_mnist": _fashion, "cifar10": _cifar, "cifar100": _cifar, "stl10": _torchvision,
    "svhn": _torchvision,
}  # fmt: skip
"""Kind → the files that its images are read from."""
