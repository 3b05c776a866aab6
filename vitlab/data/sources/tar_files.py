"""Tar files of images: where each image begins and what its label is; WebDataset's shards, and class folders in tars.

Nothing is unpacked: a tar is a row of headers of 512 bytes, each followed by a file's bytes, so an image is read by its
offset as from a file of its own.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.device import usable_cores
from vitlab.core.errors import reason
from vitlab.core.processes import worker_pool
from vitlab.core.terminal import progress_bar
from vitlab.data.sources.class_folders import EVALUATED, TRAINED, subfolders
from vitlab.data.sources.containers import state_of
from vitlab.data.sources.index import Found, Index, Indexed, index_of, require_numbered
from vitlab.data.sources.listing import is_hidden, is_image

LARGE = 1 << 28
"""Bytes of tars from which on they are scanned by several processes."""
_BLOCK = 512
_KEY = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
"""WebDataset's: the files of one sample have one name up to the first dot of the last part."""
_JSON_LABELS, _JSON_FILES = ("label", "cls", "class", "target"), ("filename", "file_name", "path")
_INFO = ("_info.json", "info.json")
_SPLITS = (TRAINED, *EVALUATED)


@dataclass
class Members:
    """The images of one tar, in its order."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """What the .cls or .json file next to an image says; "" where there is none."""
    given: list[str] = field(default_factory=list)
    """The file name that the .json next to an image gives; "" where there is none."""
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Tar:
    """A tar file, or one within another, from `start` on."""

    path: str
    start: int = 0
    name: str = ""
    """Of the inner one."""

    @property
    def shown(self) -> str:
        return f"{self.path}: {self.name}" if self.name else self.path


def scan_tars(tars: Sequence[Tar], label: str) -> list[Members]:
    """The images of each tar. Raises ConfigError for one that is cut short, damaged or compressed."""
    workers = min(usable_cores(), len(tars))
    large = sum(os.path.getsize(path) for path in {tar.path for tar in tars}) > LARGE
    if not large:
        return [scan_tar(tar) for tar in tars]
    found = []
    with progress_bar(label, len(tars)) as advance, worker_pool(workers) as pool:
        for members in pool.map(scan_tar, tars, chunksize=max(1, min(8, len(tars) // (4 * workers)))):
            found.append(members)
            advance()
    return found


def scan_tar(tar: Tar) -> Members:
    """The images of one tar. Raises ConfigError."""
    found = Members()
    labels: dict[str, tuple[str, str]] = {}
    extra: dict[str, str] = {}
    plain: set[str] = set()
    with open(tar.path, "rb") as stream:
        for member in regular_members(tar, stream):
            path = member.name.removeprefix("./")
            parts = path.split("/")
            if any(map(is_hidden, parts)):
                continue
            key, extension = _split(path)
            if is_image(parts[-1]):
                if "." not in extension:
                    plain.add(key)
                found.names.append(path)
                found.offsets.append(member.offset_data)
                found.sizes.append(member.size)
            elif extension in ("cls", "json"):
                stream.seek(member.offset_data)
                _note(labels, key, extension, stream.read(member.size), f"{tar.shown}: {path}")
                extra[f"{key}.{extension}"] = f".{extension}"
            else:
                found.left_out[Path(path).suffix.lower()] += 1
    kept = []
    for i, path in enumerate(found.names):
        key, extension = _split(path)
        if key in labels and "." in extension and key in plain:  # a mask or a depth map of the image
            found.left_out[f".{extension}"] += 1
            continue
        kept.append(i)
        label, given = labels.get(key, ("", ""))
        found.labels.append(label)
        found.given.append(given)
        extra.pop(f"{key}.cls", None)
        extra.pop(f"{key}.json", None)
    found.left_out.update(extra.values())
    if len(kept) < len(found.names):
        found.names, found.offsets, found.sizes = (
            [values[i] for i in kept] for values in (found.names, found.offsets, found.sizes)
        )
    return found


def _split(path: str) -> tuple[str, str]:
    """WebDataset's key of a member and the rest of its name: `a/b.seg.png` → `a/b`, `seg.png`."""
    match = _KEY.fullmatch(path)
    return (match[1], match[2].lower()) if match else (path, "")


def _note(labels: dict[str, tuple[str, str]], key: str, extension: str, content: bytes, where: str) -> None:
    """Take the label, or the file's name, from what is stored next to an image; the .cls counts before the .json."""
    label, given = labels.get(key, ("", ""))
    try:
        text = content.decode()
        if extension == "cls":
            label = text.strip()
        elif isinstance(about := json.loads(text), dict):
            said = next((about[name] for name in _JSON_LABELS if isinstance(about.get(name), int | str)), "")
            label = label or str(said)
            given = next((about[name] for name in _JSON_FILES if isinstance(about.get(name), str)), given)
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError("dataset.root", f"{where} is no label ({error})") from error
    labels[key] = label, given


def regular_members(tar: Tar, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every regular file of a tar, as tarfile describes it. Raises ConfigError where the tar is not whole."""
    last, size = "its beginning", os.fstat(stream.fileno()).st_size
    stream.seek(tar.start)
    if stream.read(2) == b"\x1f\x8b":
        raise ConfigError("dataset.root", f"{tar.shown} is compressed, so nothing can be read from its middle; "
                          f"unpack it once: gunzip {Path(tar.path).name}")  # fmt: skip
    stream.seek(tar.start)
    try:
        with tarfile.open(fileobj=stream, mode="r:", errorlevel=2) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"] = []  # a million of them would be kept
                last = member.name
                if member.issparse():
                    raise ConfigError("dataset.root", f"{tar.shown}: {last} is a sparse file; pack it plainly")
                if member.isreg():
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    yield member
            stream.seek(archive.offset)
            block = stream.read(_BLOCK)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _not_whole(tar, last, str(error)) from error
    except OSError as error:
        raise ConfigError("dataset.root", f"{tar.shown} cannot be read ({reason(error)})") from error
    if len(block) < _BLOCK:
        raise _not_whole(tar, last, "the mark of a tar's end is missing")
    if block.strip(b"\0"):
        raise _not_whole(tar, last, "what follows is no header")


def _not_whole(tar: Tar, last: str, why: str) -> ConfigError:
    return ConfigError("dataset.root", f"{tar.shown} is cut short or damaged at {last} ({why}); get it again")


def files_below(root: Path, ending: str) -> list[Path]:
    """The files with that ending in `root` or one folder below it, sorted; `root` itself where it is one."""
    if root.is_file():
        return [root] if root.name.lower().endswith(ending) else []
    folders = [root, *(root / name for name in subfolders(root))]
    found = (f for folder in folders for f in folder.iterdir() if f.name.lower().endswith(ending))
    return sorted(f for f in found if not is_hidden(f.name) and f.is_file())


def split_of(file: str) -> str | None:
    """The split that a file's path names: `data/imagenet1k-train-0000.tar` → train; None where it names none."""
    for part in reversed(file.split("/")):
        if found := [word for word in re.split(r"[^a-z]+", part.lower()) if word in _SPLITS]:
            return found[-1]
    return None


def recognise_tars(dataset: DatasetConfig, root: Path) -> Indexed | None:
    """The tars in `root`, or one folder below; None where there are none. Raises ConfigError for a missing shard."""
    if not (tars := files_below(root, ".tar")):
        return None
    top = root if root.is_dir() else root.parent
    names = [tar.relative_to(top).as_posix() for tar in tars]
    info = next((file for name in _INFO if (file := top / name).is_file()), None)
    lengths = _require_whole(info, names) if info else {}
    require_numbered(names)
    known = [*tars, *([info] if info else [])]
    return Indexed(dataset, root, known, lambda: _build(tars, names, lengths, root))


def _require_whole(info: Path, names: list[str]) -> dict[str, int]:
    """Shard → its images, as timm's _info.json says. Raises ConfigError where a shard that it names is missing."""
    try:
        splits = json.loads(info.read_text(encoding="utf-8")).get("splits") or {}
        named = {f: int(n) for s in splits.values() for f, n in zip(s["filenames"], s["shard_lengths"], strict=True)}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return {}  # of another program
    there = {name.rpartition("/")[2] for name in names}
    if missing := [name for name in named if name.rpartition("/")[2] not in there]:
        raise ConfigError("dataset.root", f"{missing[0]} is missing, which {info} names ({len(missing)} of "
                          f"{len(named)} shards are); complete them")  # fmt: skip
    return named


def _build(tars: list[Path], names: list[str], lengths: dict[str, int], root: Path) -> Index:
    states = [state_of(tar) for tar in tars]
    scanned = scan_tars([Tar(str(tar)) for tar in tars], f"indexing the tars of {root}")
    by_name = [split_of(name) for name in names]
    splits: dict[str, Found] = {}
    whole = Found()
    for i, members in enumerate(scanned):
        expected = lengths.get(names[i].rpartition("/")[2], len(members.names))
        if expected != len(members.names):
            raise ConfigError("dataset.root", f"{tars[i]} holds {len(members.names):,} images, and _info.json says "
                              f"{expected:,}; get it again")  # fmt: skip
        if members.left_out:
            splits.setdefault(by_name[i] or TRAINED, Found()).left_out.update(members.left_out)
        for row, path in enumerate(members.names):
            in_path, below = _split_in(path)
            split = by_name[i] or in_path or TRAINED
            found = splits.setdefault(split, Found())
            for part in (found, whole):
                part.paths.append(_with_given(below if in_path == split else path, members.given[row]))
                part.labels.append(members.labels[row])
            found.places.append((i, members.offsets[row], members.sizes[row]))
    if not whole.paths:
        raise ConfigError("dataset.root", f"the {len(tars)} tars of {root} hold no image")
    labelled = any(whole.labels)
    if not labelled:
        _label_by_folder(splits, whole.paths, root)
    form = "tar shards (WebDataset)" if labelled else "tars of class folders"
    return index_of(splits, states, root, form)


def _split_in(path: str) -> tuple[str | None, str]:
    """The split that a folder of a member's path names, and the path below it."""
    parts = path.split("/")
    for i, part in enumerate(parts[:-1]):
        if part.lower() in _SPLITS:
            return part.lower(), "/".join(parts[i + 1 :])
    return None, path


def _with_given(path: str, given: str) -> str:
    """A member's path with the file name that its .json gives."""
    return given if "/" in given else f"{path.rpartition('/')[0]}/{given}".lstrip("/") if given else path


def _label_by_folder(splits: dict[str, Found], paths: list[str], root: Path) -> None:
    """Label each image by the first folder below those that all `paths` share. Raises ConfigError for one in none."""
    folders = [path.split("/")[:-1] for path in paths]
    low, high = min(folders), max(folders)
    most = min(map(len, folders)) - 1  # the class of data that have one alone is left
    shared = next((i for i in range(max(most, 0)) if low[i] != high[i]), max(most, 0))
    for found in splits.values():
        found.paths = ["/".join(path.split("/")[shared:]) for path in found.paths]
        for path in found.paths:
            if "/" not in path:
                raise ConfigError("dataset.root", f"{path} in the tars of {root} has no label: no .cls or .json of its "
                                  "key, and no class folder")  # fmt: skip
        found.labels = [path.partition("/")[0] for path in found.paths]
