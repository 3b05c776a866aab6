"""Rules for output folders: a command never writes where it reads, nor into a folder that holds other files.

They are checked before anything is computed. A folder with earlier output of the same kind is accepted again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from vitlab.cli.values import typed
from vitlab.config import Config, ConfigError, DatasetConfig
from vitlab.core.picture_files import PICTURES, made_by_us

_CELL = re.compile(r"c[0-9a-f]{11}")
_OF_A_RUN = {"code", "studies", "datasets", "evaluate", "explain", "preview", "slurm", "wandb"}
_PACKED = re.compile(r"manifest\.json|files\.json|(train|eval|val\w*|test)-\d{5}\.(bin|tar|json|part)")
_FIGURES = re.compile(
    r"(position|filters|distance|rollout|generic|lrp|attnlrp|methods|faithfulness|two_objects)_.*\.(png|pdf|npy|csv|md)"
)


def require_output_dir(config: Config) -> None:
    """Raise ConfigError where `output_dir` is among the data, or is a folder of something else."""
    require_folder("output_dir", Path(config.output_dir), "runs", is_output_dir, read_places(config))


def require_folder(
    key: str, folder: Path, noun: str, is_ours: Callable[[Path], bool], reads: Mapping[str, Path]
) -> None:
    """Raise ConfigError where the folder that `key` names must not be written into.

    `noun` is what is written there, `is_ours` decides whether the folder holds earlier output of this kind, `reads`
    maps keys to the places that the command reads from: `folder` may not be one of them, inside one, or above one.
    """
    if clash := _clash(folder, reads):
        how, read, place = clash
        raise ConfigError(
            key, f"{str(folder)!r} {how} {read} ({place}), which this command reads; give another folder, for instance "
            + typed(key, _free(place.parent / f"{place.name}_{noun}", reads)),
        )  # fmt: skip
    if folder.exists() and not folder.is_dir():
        raise ConfigError(key, f"{str(folder)!r} is a file; give a folder, for instance "
                          + typed(key, _free(folder.with_name(f"{folder.name}_{noun}"), reads)))  # fmt: skip
    if (others := _entries(folder)) and not is_ours(folder):
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        raise ConfigError(
            key, f"{str(folder)!r} holds something else ({shown}); give a new folder, for instance "
            + typed(key, _free(folder / noun, reads)),
        )  # fmt: skip


def require_picture(key: str, file: Path, reads: Mapping[str, Path]) -> None:
    """Raise ConfigError where `file` would be written among files that are read, over a file that is not a picture of
    ours, or with an ending of another kind."""
    if file.suffix.lower() not in PICTURES:
        raise ConfigError(key, f"{str(file)!r} is no picture's name; end it in {', '.join(PICTURES)}")
    clash = _clash(file, reads)
    if clash and clash[0] != "is above":
        _, read, place = clash
        raise ConfigError(
            key, f"{str(file)!r} lies in {read} ({place}), which this command reads; write elsewhere, for instance "
            + typed(key, _free(place.parent / f"{place.name}_{file.stem}{file.suffix}", reads)),
        )  # fmt: skip
    if file.exists() and not made_by_us(file):
        raise ConfigError(
            key, f"{str(file)!r} is there and is no picture of vitlab's; give a new name, for instance "
            + typed(key, _free(file.with_name(f"{file.stem}_2{file.suffix}"), reads)),
        )  # fmt: skip


def read_places(config: Config) -> dict[str, Path]:
    """Key → folder that a run of this configuration reads its images from."""
    found = {}
    for prefix, dataset in (("", config.cell.dataset), ("pretrain.", config.cell.pretrain.dataset)):
        if dataset is not None:
            found |= {f"{prefix}{key}": place for key, place in _places(dataset).items()}
    return found


def _places(dataset: DatasetConfig) -> dict[str, Path]:
    found = {"dataset.pack": Path(dataset.pack)} if dataset.pack else {}
    if dataset.root and (dataset.kind == "folder" or dataset.fractal is not None):
        from vitlab.data.sources.folder import find_root  # brings numpy

        try:  # of a folder of several data sets, the one that is read
            found["dataset.root"] = find_root(dataset, evaluating=True)
        except ConfigError:  # reading it raises the error that explains
            found["dataset.root"] = Path(dataset.root)
    return found


def is_output_dir(folder: Path) -> bool:
    """Whether records lie in a folder, or nothing but what commands leave there."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    recorded = any(_CELL.fullmatch(name) for name in names) or any((folder / "studies").glob("*.json"))
    return recorded or set(_entries(folder)) <= _OF_A_RUN


def is_pack(folder: Path) -> bool:
    return any(_PACKED.fullmatch(entry.name) for entry in folder.iterdir())


def is_figures(folder: Path) -> bool:
    return any(_FIGURES.fullmatch(entry.name) for entry in folder.iterdir())


def is_tables(folder: Path) -> bool:
    """Whether one of the folder's JSON files is a table."""
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and {"schema_version", "caption", "rows", "detectable"} <= set(content):
                return True
    return False


def inside_a_record(folder: Path, output_dir: Path) -> bool:
    """Whether `folder` is where records lie: output_dir itself, a cell's folder, the lists of studies or data sets."""
    own, top = folder.resolve(), output_dir.resolve()
    if own == top:
        return True
    first = own.relative_to(top).parts[0] if own.is_relative_to(top) else ""
    return first in ("studies", "datasets", "slurm") or bool(_CELL.fullmatch(first))


def _clash(place: Path, reads: Mapping[str, Path]) -> tuple[str, str, Path] | None:
    own = place.resolve()
    for key, read in reads.items():
        other = read.resolve()
        if own == other:
            return "is", key, read
        if own.is_relative_to(other):
            return "lies in", key, read
        if other.is_relative_to(own):
            return "is above", key, read
    return None


def _entries(folder: Path) -> list[str]:
    """The names in a folder, without hidden files and lost+found."""
    names: Iterable[str] = (e.name for e in folder.iterdir()) if folder.is_dir() else ()
    return sorted(name for name in names if not name.startswith(".") and name != "lost+found")


def _free(wanted: Path, reads: Mapping[str, Path]) -> str:
    """`wanted`, or a similar name that is not taken and not near a place that is read."""
    while _clash(wanted, reads):
        wanted = wanted.resolve().parent.parent / wanted.name
    number, found = 2, wanted
    while found.exists():
        found, number = wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}"), number + 1
    return str(found)
