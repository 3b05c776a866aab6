"""A pack of files: a data set's image files, byte for byte, in tars that are read by offset.

    PATH/files.json             classes, the shards' bytes and digests; written last
    PATH/train.npz, val.npz     names, labels, and where each file lies
    PATH/train-00000.tar …      CLASS/NAME of SHARD images in the order of the source's disk, with a .json of each

What is read from it is what is read from the folder: it is a container, and no other data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.archives import load_arrays, save_arrays
from vitlab.core.files import DiskError, locked, make_folder, remove_parts, require_space, write_text, written_whole
from vitlab.core.integrity import DamagedError, file_digest, misfit, read_mapping, sealed
from vitlab.core.processes import worker_pool
from vitlab.core.terminal import progress_bar
from vitlab.data.sources.containers import Names, Ranges, SplitFiles, state_of
from vitlab.data.sources.index import Index, Indexed

if TYPE_CHECKING:
    from vitlab.data.sources.folder import FileSource

SHARD = 1024
"""Images of one tar."""
MANIFEST = "files.json"
FORMAT = 1
_END = bytes(1024)
"""What ends a tar."""
_AGAIN = "complete it with the command that made it (task=pack pack.format=files)"
_SHARD = {"file": str, "bytes": int, "images": int, "sha256": str}
_SHAPE = {"format": int, "dataset": str, "classes": [str], "splits": dict}
_ARRAYS = ("names", "labels", "sizes", "offsets", "file_of")


class FilesPack(Indexed):
    """The layout of a pack of files, which brings its index along."""

    kept = False


def recognise_files_pack(dataset: DatasetConfig, root: Path) -> FilesPack | None:
    """The pack of files at `root`; None where there is none. Raises ConfigError for one that is not whole."""
    if not (root / MANIFEST).is_file():
        return None
    try:
        about = read_mapping(root / MANIFEST, _AGAIN) or {}
    except DamagedError as error:
        raise ConfigError("dataset.root", str(error)) from error
    problem = misfit(about, _SHAPE) or misfit(about["splits"], {split: [_SHARD] for split in about["splits"]})
    if problem or about["format"] != FORMAT:
        raise ConfigError(
            "dataset.root", f"{root / MANIFEST} is of no pack of files ({problem or 'another format'}); {_AGAIN}"
        )
    shards = [root / shard["file"] for parts in about["splits"].values() for shard in parts]
    lengths = [shard["bytes"] for parts in about["splits"].values() for shard in parts]
    for file, length in zip(shards, lengths, strict=True):
        size = file.stat().st_size if file.is_file() else None
        if size != length:
            held = "missing" if size is None else f"{size:,} bytes long"
            raise ConfigError("dataset.root", f"{file} is {held}, it was {length:,} bytes; {_AGAIN}")
    return FilesPack(dataset, root, [root / MANIFEST, *shards], lambda: _load(root, about))


def _load(root: Path, about: Mapping[str, Any]) -> Index:
    splits = {}
    for split, shards in about["splits"].items():
        try:
            flat, labels, sizes, offsets, file_of = load_arrays(root / f"{split}.npz", _ARRAYS, _AGAIN).values()
        except DamagedError as error:
            raise ConfigError("dataset.root", str(error)) from error
        names = Names(flat=flat)
        files = [state_of(root / shard["file"]) for shard in shards]
        splits[split] = SplitFiles(names, labels, sizes, Ranges(files, file_of, offsets, sizes, names))
    counts = " + ".join(str(len(shards)) for shards in about["splits"].values())
    return Index(tuple(about["classes"]), splits, f"a pack of files, {counts} tars")


@dataclass(frozen=True)
class _Job:
    """One tar to write: all images of `source`."""

    source: FileSource
    file: Path
    origin: str


def write_files(splits: Mapping[str, FileSource], dataset: DatasetConfig, folder: Path, workers: int) -> int:
    """Write or complete the pack of files of these splits; returns its bytes. Tars that are whole by their digest are
    kept.

    Raises ConfigError for a disk that cannot be written, or another process that packs into `folder`.
    """
    try:
        with locked(make_folder(folder) / ".lock") as alone:
            if not alone:
                raise ConfigError("pack.path", f"another process packs into {folder}; wait for its end")
            remove_parts(folder)
            _require_room(splits, folder)
            (folder / MANIFEST).unlink(missing_ok=True)
            shards = {split: _write_split(split, source, folder, workers) for split, source in splits.items()}
            classes = next(iter(splits.values())).classes
            about = {"format": FORMAT, "dataset": dataset.name, "classes": classes, "splits": shards}
            write_text(folder / MANIFEST, json.dumps(sealed(about), indent=1))
    except DiskError as error:
        raise ConfigError("pack.path", str(error)) from error
    return sum(shard["bytes"] for parts in shards.values() for shard in parts)


def _require_room(splits: Mapping[str, FileSource], folder: Path) -> None:
    needed = 0
    for source in splits.values():
        held = sum(state.bytes for state in set(source.content.states()))
        needed += int(source.sizes.sum()) or held
    require_space(folder, needed - sum(file.stat().st_size for file in folder.glob("*.tar")))


def _write_split(split: str, source: FileSource, folder: Path, workers: int) -> list[dict[str, Any]]:
    """All tars of a split, and its index; returns what the manifest says of each tar."""
    order, count = source.content.stored(), len(source)
    parts = [order[at : at + SHARD] for at in range(0, count, SHARD)]
    origin = json.dumps(sorted([state.bytes, state.modified] for state in set(source.content.states())))
    jobs = (
        _Job(part := source.select(rows), folder / f"{split}-{i:05}.tar", _digest(f"{part.fingerprint()} {origin}"))
        for i, rows in enumerate(parts)
    )
    with progress_bar(f"packing the files of {split}", len(parts)) as advance:
        if workers > 1 and len(parts) > 1:
            with worker_pool(workers) as pool:
                done = [pool.submit(_write_tar, job) for job in jobs]
                written = [(future.result(), advance())[0] for future in done]
        else:
            written = [(_write_tar(job), advance())[0] for job in jobs]
    offsets, sizes, file_of = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int32)
    for number, (rows, tar) in enumerate(zip(parts, written, strict=True)):
        offsets[rows], sizes[rows], file_of[rows] = tar.pop("offsets"), tar.pop("sizes"), number
    save_arrays(
        folder / f"{split}.npz", compressed=False, names=source.files.flat, labels=source.labels, sizes=sizes,
        offsets=offsets, file_of=file_of,
    )  # fmt: skip
    return written


def _write_tar(job: _Job) -> dict[str, Any]:
    """Write one tar unless it is there: {file, bytes, images, sha256, offsets, sizes}. Raises ConfigError where the
    folder's tar was made of other images."""
    notes, known = job.file.with_suffix(".json"), None
    with contextlib.suppress(DamagedError):  # then it is written again
        known = read_mapping(notes, "")
    if known is not None and not misfit(known, {"origin": str, "sha256": str, "sizes": list, "offsets": list}):
        if known["origin"] != job.origin:
            raise ConfigError("pack.path", f"{notes} was made of other images; give a new folder")
        if job.file.is_file() and file_digest(job.file) == known["sha256"]:
            return _summary(job.file, known)
    offsets, sizes, digest, at = [], [], hashlib.sha256(), 0
    with written_whole(job.file) as stream:

        def write(content: bytes) -> None:
            nonlocal at
            stream.write(content)
            digest.update(content)
            at += len(content)

        for index, name in enumerate(job.source.files):
            content = job.source.content.read(index)
            header = tarfile.TarInfo(name)
            header.size = len(content)
            write(header.tobuf(tarfile.PAX_FORMAT))
            offsets.append(at)
            sizes.append(len(content))
            write(content)
            write(bytes(-len(content) % 512))
        write(_END)
    known = {"origin": job.origin, "sha256": digest.hexdigest(), "offsets": offsets, "sizes": sizes}
    write_text(notes, json.dumps(sealed(known)))
    return _summary(job.file, known)


def _summary(file: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "file": file.name, "bytes": file.stat().st_size, "images": len(known["sizes"]), "sha256": known["sha256"],
        "offsets": known["offsets"], "sizes": known["sizes"],
    }  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
