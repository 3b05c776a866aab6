"""Tar files of images: WebDataset's shards, and class folders packed as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vitlab.config import ConfigError, DatasetConfig
from vitlab.data.sources.class_folders import EVALUATED, TRAINED, subfolders
from vitlab.data.sources.containers import state_of
from vitlab.data.sources.index import Found, Index, Indexed, index_of, require_numbered
from vitlab.data.sources.listing import is_hidden
from vitlab.data.sources.tar_members import Tar, scan_tars

_INFO = ("_info.json", "info.json")
_SPLITS = (TRAINED, *EVALUATED)


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
