"""A data set's large files, copied once to a disk of this node and read there: `dataset.stage`.

    STAGE/vitlab-NAME-DIGEST/DIGEST-FILE    a copy, with the modification time of its original, next to its .sums; or
                                            its .part, which whoever comes next continues (`staged_file`)
    STAGE/vitlab-NAME-DIGEST/.lock          held by the process that copies; it ends with its holder

A staged data set is the same data set: its files are listed and compared where `dataset.root` or `dataset.pack` says,
and only the images are read from the copies.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.config.paths import expanded
from vitlab.core.files import DiskError, clean_name, free_space, in_units, locked, make_folder, text_of
from vitlab.data.sources.containers import LooseFiles, Ranges, State, state_of
from vitlab.data.sources.pack import PackSource
from vitlab.data.sources.staged_file import StagedFile, original_of

LOOKS = 64
"""Blocks of copies made earlier that are compared with their checksums before they are used."""
_THREADS = 8
_POLL = 0.5
"""Seconds between two reports."""

Split = Literal["train", "eval"]
Copies = Mapping[State, State]
"""An original → its copy."""


@dataclass(frozen=True)
class Report:
    """How far staging is, for people."""

    text: str
    to: Literal["view", "screen", "log"] = "view"
    """`view`: shown until the next one; `screen`: a line there and in the log; `log`: a line there alone."""


def stage_folder(dataset: DatasetConfig) -> Path:
    """The folder of a data set's copies on this node; variables such as $TMPDIR are looked up here.

    Raises ConfigError where `dataset.stage` cannot be.
    """
    assert dataset.stage is not None, "asked for by the caller"
    stage = Path(expanded(dataset.stage, "dataset.stage"))
    if not stage.is_absolute():
        raise ConfigError("dataset.stage", f"{dataset.stage!r} is {str(stage)!r} here; give a whole path")
    origin, real = (Path(os.path.realpath(path)) for path in (dataset.pack or dataset.root or "", stage))
    if origin == real or (origin in real.parents and origin.is_dir()):
        where = "is the folder of the data set" if origin == real else f"lies in the data set, {origin}"
        raise ConfigError("dataset.stage", f"{stage} {where}; give a folder of a disk of the node's own")
    there = next(part for part in (stage, *stage.parents) if os.path.lexists(part))
    if not there.is_dir():
        raise ConfigError("dataset.stage", f"{there} is no folder; give a folder of a disk of the node's own")
    digest = hashlib.sha256(os.fsencode(origin)).hexdigest()[:8]
    folder = stage / f"vitlab-{clean_name(dataset.name)[:60]}-{digest}"
    there = folder if folder.is_dir() else there
    if not os.access(there, os.R_OK | os.X_OK) or not (folder.is_dir() or os.access(there, os.W_OK)):
        raise ConfigError("dataset.stage", f"{there} is not this user's to write in; {_OWN}")
    return folder


_OWN = "give a folder of your own, for instance dataset.stage=/scratch/NAME"


def require_large_files(dataset: DatasetConfig) -> None:
    """Raise ConfigError where the images are a file each, as far as this machine sees them."""
    if dataset.stage is not None and os.path.exists(dataset.pack or dataset.root or ""):
        _files(dataset, splits_of(dataset), Path())


def require_stageable(dataset: DatasetConfig) -> None:
    """Raise ConfigError where the data set cannot be staged on this machine. Nothing is written."""
    if dataset.stage is not None:
        folder = stage_folder(dataset)
        files = _files(dataset, splits_of(dataset), folder)
        _require_room(dataset, folder, [file for file in files if not file.is_whole()])


def splits_of(dataset: DatasetConfig) -> tuple[Split, ...]:
    """The splits that a training reads."""
    return ("train",) if dataset.num_eval == 0 or dataset.val_fraction else ("train", "eval")


def staged(dataset: DatasetConfig, splits: Sequence[Split], *, copying: bool = True) -> Generator[Report, None, Copies]:
    """Copy the files of these splits to `dataset.stage`, as far as they are not there; returns the copies.

    Yields about twice a second and may be closed at any time: what was copied is kept. One process of a node copies,
    the others wait for it; with `copying` False this one only waits. Raises ConfigError for a disk that is too small or
    cannot be written, UserError where the data set changes meanwhile.
    """
    if dataset.stage is None:
        return {}
    folder = stage_folder(dataset)
    files = _files(dataset, splits, folder)
    if copying and (damaged := (yield from _damaged(dataset, [file for file in files if file.is_whole()]))):
        yield from _alone(dataset, folder, files, damaged)
    while not all(file.is_whole() for file in files):
        for file in files:
            file.require_original()
        if copying:
            yield from _alone(dataset, folder, files, ())
        else:
            yield Report(f"waiting for the process that copies {dataset.name} to {folder}")
            time.sleep(_POLL)
    yield Report(f"{dataset.name} is read from {folder} ({_counted(files)})", "log")
    return {file.original: state_of(file.file) for file in files}


def _files(dataset: DatasetConfig, splits: Sequence[Split], folder: Path) -> list[StagedFile]:
    """The copies of the files that hold the images of these splits, there or not. Raises ConfigError where each image
    is a file of its own, or the data set is held in memory."""
    from vitlab.data.sources.registry import load_split

    originals: dict[State, None] = {}
    for split in splits:
        source: Any = load_split(dataset, split)
        holder = getattr(source, "content", source)
        if isinstance(holder, LooseFiles):
            where = dataset.root or dataset.table
            raise ConfigError(
                "dataset.stage",
                f"the {len(source):,} images in {where} are a file each, which takes longer to copy than to read; pack "
                "them once, byte for byte, with the same data set and task=pack pack.format=files pack.path=FOLDER, "
                "then stage that: dataset.root=FOLDER",
            )
        assert isinstance(holder, Ranges | PackSource), "a rule in config/effects.py leaves no others"
        originals |= dict.fromkeys(holder.held_in())
    found = []
    for state in originals:
        digest = hashlib.sha256(os.fsencode(os.path.realpath(state.path))).hexdigest()[:8]
        found.append(StagedFile(state, folder / f"{digest}-{clean_name(text_of(Path(state.path).name))}"))
    return found


def _require_room(dataset: DatasetConfig, folder: Path, files: Sequence[StagedFile]) -> None:
    needed, free = sum(file.missing() for file in files), free_space(folder)
    if needed > free:
        raise ConfigError(
            "dataset.stage",
            f"{_counted(files)} of {dataset.name} are to be copied to {folder.parent}, of which {in_units(needed)} are "
            f"not there yet, and {in_units(free)} are free; make room, name a folder of another disk, or leave "
            "dataset.stage out",
        )


def _damaged(dataset: DatasetConfig, files: Sequence[StagedFile]) -> Generator[Report, None, set[StagedFile]]:
    """Those of these whole copies of which a block is not what was copied: `LOOKS` blocks are read, or with
    `dataset.verify=contents` all."""
    blocks = [(file, block) for file in files for block in range(file.blocks)]
    if dataset.verify != "contents" and len(blocks) > LOOKS:
        chosen = np.random.default_rng().choice(len(blocks), LOOKS, replace=False)
        blocks = [blocks[i] for i in np.sort(chosen)]
    jobs = (functools.partial(_difference, file, block) for file, block in blocks)
    found: set[StagedFile] = set()
    if not blocks:
        return found
    done = 0
    for results in _in_threads(jobs):
        found |= {file for file in results if file is not None}
        done += len(results)
        yield Report(f"comparing the copy of {dataset.name}: {done:,} of {len(blocks):,} blocks")
    return found


def _difference(file: StagedFile, block: int) -> StagedFile | None:
    return file if file.differs(block) else None


def _alone(
    dataset: DatasetConfig, folder: Path, files: Sequence[StagedFile], damaged: Collection[StagedFile]
) -> Iterator[Report]:
    """Copy what is missing or damaged, while no other process does."""
    to: Literal["screen", "view"] = "screen"
    try:
        make_folder(folder)
        while True:
            with locked(folder / ".lock", wait=_POLL) as held:
                if held:
                    yield from _copy(dataset, folder, files, damaged)
                    return
            yield Report(f"waiting for another process, which copies {dataset.name} to {folder}", to)
            to = "view"
    except DiskError as error:
        raise ConfigError("dataset.stage", f"{error}; {_OWN}") from error


def _copy(
    dataset: DatasetConfig, folder: Path, files: Sequence[StagedFile], damaged: Collection[StagedFile]
) -> Iterator[Report]:
    _remove_outdated(folder)
    todo = [file for file in files if file in damaged or not file.is_whole()]
    if not todo:
        return  # whoever had the lock before has copied them
    _require_room(dataset, folder, todo)
    total, missing = sum(file.original.bytes for file in todo), sum(file.missing() for file in todo)
    notes = [f"{in_units(total - missing)} of them are there"] * (missing < total)
    notes += [f"{len(damaged)} copies are damaged"] * bool(damaged)
    if os.stat(folder).st_dev == os.stat(todo[0].original.path).st_dev:
        notes.append("both lie on one file system, so that reading gets no faster")
    yield Report(f"copying {_counted(todo)} of {dataset.name} to {'; '.join([str(folder), *notes])}", "screen")
    began, copied, done = time.monotonic(), 0, 0
    jobs = (functools.partial(file.settle, block) for file in todo for block in _begun(file))
    for results in _in_threads(jobs):
        copied += sum(fresh for fresh, _ in results)
        done += sum(length for _, length in results)
        rate = copied / max(time.monotonic() - began, 1e-3)
        yield Report(f"copying {dataset.name}: {in_units(done)} of {in_units(total)}, {in_units(rate)}/s")
    seconds = max(time.monotonic() - began, 1e-3)
    rate = in_units(copied / seconds)
    yield Report(
        f"copied {in_units(copied)} of {dataset.name} in {seconds:,.1f} s ({rate}/s) and read them back", "screen"
    )


def _begun(file: StagedFile) -> range:
    file.begin()
    return range(file.blocks)


def _remove_outdated(folder: Path) -> None:
    """Remove the copies whose originals have changed or gone. Only for the process that holds the lock."""
    for sums in folder.glob("*.sums"):
        known, copy = original_of(sums), sums.with_suffix("")
        try:
            current = known is not None and state_of(Path(known.path)) == known
        except OSError:
            current = False
        if not current:
            for file in (copy, copy.with_name(f"{copy.name}.part"), sums):
                file.unlink(missing_ok=True)


def _in_threads(jobs: Iterator[Callable[[], Any]]) -> Iterator[list[Any]]:
    """What the jobs return, as they end; yields about twice a second."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            running: set[Future[Any]] = set()
            results: list[Any] = []
            said = time.monotonic()
            while True:
                running |= {pool.submit(job) for job in itertools.islice(jobs, 4 * _THREADS - len(running))}
                if not running:
                    yield results
                    return
                ended, running = wait(running, _POLL, FIRST_COMPLETED)
                results += [job.result() for job in ended]
                if time.monotonic() - said > _POLL:
                    yield results
                    results, said = [], time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)


def _counted(files: Sequence[StagedFile]) -> str:
    noun = "file" if len(files) == 1 else "files"
    return f"{len(files):,} {noun}, {in_units(sum(file.original.bytes for file in files))}"
