"""Cells of this machine that train at the same time: which of them start together, and what they share.

Cells that see the same crops share one reading process; so do, over a whole study, those that evaluate on the same
images the memory of these. Either is about speed only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitlab.config import DatasetConfig
from vitlab.core.device import free_memory, usable_cores
from vitlab.core.files import in_units, make_folder
from vitlab.core.integrity import DamagedError
from vitlab.data.order import (
    CHUNK,
    Crops,
    chunks_ahead,
    crops_of_cell,
    epoch_samples,
    evaluated_as,
    pixel_bytes,
    readers_for,
    window_for,
)  # fmt: skip
from vitlab.data.ring import JOINED, EvaluationMemory, Given, Present, Ring
from vitlab.study.cell import cell_of
from vitlab.study.plan import Plan, PlannedCell
from vitlab.study.snapshot import importing_from

NEARLY = 0.9
"""A cell that has done this share of its steps is waited for, so that the next cells can start together."""
OWN = "own"
"""The mark of a cell that reads for itself."""
_TRIES = 10
"""Reading processes of one group, one after another, before its cells are left to read for themselves."""


@dataclass
class _Group:
    """Cells that started together and share a reading process."""

    mark: str
    ring: Ring
    cells: list[PlannedCell]
    reader: Any
    tries: int = 1
    alive: set[str] = field(default_factory=set)


def crops_shared_by(cell: PlannedCell) -> Crops | None:
    """What a cell has to have in common with others to share a reading process; None where it shares none."""
    shares = reads_files(cell_of(cell.config).dataset) and cell.config.study.share_loader
    return crops_of_cell(cell_of(cell.config)) if shares else None


def reads_files(data: DatasetConfig) -> bool:
    """Whether images are read while a cell trains, and are not in memory."""
    return data.image_size is None or data.pack is not None or data.kind == "folder"


def require_shared_memory(plan: Plan) -> None:
    """Raises ConfigError where the cells' workers cannot hand over what they read."""
    together = plan.capacity.per_device > 1 and groups_of(plan.todo)
    at_once = 1 if together else min(plan.capacity.cells, len(plan.todo))
    for cell in plan.todo:
        config, content = cell.config, cell_of(cell.config)
        if config.workers and reads_files(content.dataset):
            chunks_ahead(config.workers, content.model.image_size, at_once * config.devices)


def groups_of(cells: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """Those of `cells` that can share a reading process with another one, by what they have in common."""
    found: dict[Crops, list[PlannedCell]] = {}
    for cell in cells:
        if (crops := crops_shared_by(cell)) is not None:
            found.setdefault(crops, []).append(cell)
    return [group for group in found.values() if len(group) > 1]


def best_number(plan: Plan) -> int:
    """What `study.cells_per_device=auto` is here: what a trial of the first cell to train finds."""
    if not plan.todo or not plan.trains_here:
        return 1
    return plan.trial.best(max(map(len, groups_of(plan.todo)), default=1), len(plan.todo))


def window_of(cells: Sequence[PlannedCell]) -> tuple[int, int]:
    """Samples of an epoch that a group reads, and the chunks of its window."""
    contents = [cell_of(cell.config) for cell in cells]
    length = max(epoch_samples(content.dataset.train_images, content.recipe) for content in contents)
    return length, window_for(max(content.recipe.batch_size for content in contents), length)


def window_bytes(cells: Sequence[PlannedCell]) -> int:
    """The memory that the window of a group takes."""
    return pixel_bytes(window_of(cells)[1] * CHUNK, cell_of(cells[0].config).model.image_size)


def window_words(cells: Sequence[PlannedCell]) -> str:
    """How large the window of a group is: `1,024 images, 154 MB`."""
    return f"{window_of(cells)[1] * CHUNK:,} images, {in_units(window_bytes(cells))}"


def evaluation_sets(cells: Sequence[PlannedCell]) -> dict[tuple[Any, int], int]:
    """What `study.keep_evaluation` keeps in memory for these cells: (data set, side of the images) → images."""
    found = {}
    for cell in cells:
        content = cell_of(cell.config)
        data = content.dataset
        held_out = (data.num_train or 0) - round((data.num_train or 0) * (1 - data.val_fraction))
        count = held_out if data.val_fraction else data.num_eval or 0
        if count and reads_files(data) and cell.config.study.keep_evaluation:
            found[evaluated_as(data), content.model.image_size] = count
    return found


class Sharing:
    """What the cells of a plan share while they run; use as a context manager, which ends what it has started."""

    def __init__(self, plan: Plan, context: Any, view: Any) -> None:
        self.plan, self.context, self.view = plan, context, view
        self.groups: list[_Group] = []
        self.evaluation: tuple[EvaluationMemory, ...] = ()
        shares = plan.cells[0].config.study.cells_per_device is not None
        self.present = Present(plan.capacity.places) if shares else None
        self._begun = 0

    def __enter__(self) -> Sharing:
        sets = evaluation_sets(self.plan.todo)
        needed = sum(pixel_bytes(count, side) for (_, side), count in sets.items())
        try:
            if needed > free_memory():
                raise OSError(f"{in_units(needed)} are needed, {in_units(free_memory())} are free")
            self.evaluation = tuple(EvaluationMemory(data, side, count) for (data, side), count in sets.items())
        except OSError as error:
            self.view.say(f"study.keep_evaluation: no memory ({error}); images to evaluate on are decoded each time")
        return self

    def __exit__(self, *_: object) -> None:
        for group in self.groups:
            _end(group.reader)
        self.groups = []

    def choose(self, ready: Sequence[PlannedCell], free: int, progress: Mapping[str, Any]) -> list[list[PlannedCell]]:
        """Which of the ready cells start now in `free` slots, by groups that start together.

        None while all of a group that has begun to end are about to: the next group is then larger.
        """
        if any(len(group) > 1 for group in groups_of(ready)) and self._about_to_end(progress):
            return []
        chosen: list[list[PlannedCell]] = []
        left = list(ready)
        while left and free:
            first, apart = self._start_of(left[0]), _epochs_apart(left[0])
            same = [cell for cell in left if _near(first, self._start_of(cell), apart)] or [left[0]]
            chosen.append(same[:free])
            free -= len(chosen[-1])
            left = [cell for cell in left if all(cell is not taken for taken in chosen[-1])]
        return chosen

    def begin(self, cells: Sequence[PlannedCell]) -> list[Given]:
        """What each of the cells, which start together, is given."""
        share = 1 / self.plan.capacity.together(len(self.plan.todo))
        devices = cells[0].config.devices
        common = Given(evaluation=self.evaluation, device_share=share, present=self.present)
        at_once = min(self.plan.capacity.cells, len(self.plan.todo)) * devices
        alone = [replace(common, at_once=at_once)] * len(cells)
        crops = crops_shared_by(cells[0])
        if len(cells) < 2 or crops is None:
            return alone
        length, window = window_of(cells)
        words = f"{', '.join(cell.name for cell in cells)}: one loader, a window of {window_words(cells)}"
        try:
            if 2 * pixel_bytes(window * CHUNK, crops.image_size) > free_memory():
                raise OSError(f"{in_units(free_memory())} of memory are free")
            ring = Ring(crops, length, len(cells) * devices, window)
        except OSError as error:
            self.view.say(f"{words}: cannot be ({error}); each reads for itself")
            return alone
        self._begun += 1
        group = _Group(letters(self._begun), ring, list(cells), self._start_reader(ring, cells))
        group.alive = {cell.id for cell in cells}
        self.groups.append(group)
        self.view.say(f"{words} [{group.mark}]")
        return [replace(common, ring=ring, member=number * devices) for number in range(len(cells))]

    def count(self, slots: Iterable[int]) -> None:
        """Say in which slots cells train now: a cell's device-seconds are its part of the device's time."""
        if self.present is not None:
            found = Counter(map(self.plan.capacity.place_of, slots))
            self.present.cells[:] = [found[place] for place in range(len(self.present.cells))]

    def watch(self) -> None:
        """Replace reading processes that have died, and tell the view who shares what."""
        for group in self.groups:
            code = group.reader.exitcode
            if code and group.tries < _TRIES and not group.ring.is_over():
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                self.view.say(f"the loader [{group.mark}] ended ({name}, {self._log}); another takes its place")
                group.tries += 1
                group.reader = self._start_reader(group.ring, group.cells)
            for number, cell in enumerate(group.cells):
                joined = group.ring.state_of(number * cell.config.devices) == JOINED
                self.view.loader(cell.id, group.mark if joined else OWN)

    def end(self, cell: PlannedCell) -> None:
        """Say that the process of a cell has ended."""
        for group in list(self.groups):
            if cell.id in group.alive:
                group.alive.remove(cell.id)
                first = next(i for i, c in enumerate(group.cells) if c.id == cell.id) * cell.config.devices
                for member in range(first, first + cell.config.devices):
                    group.ring.leave(member)
                if not group.alive:
                    _end(group.reader)
                    self.groups.remove(group)

    def _about_to_end(self, progress: Mapping[str, Any]) -> bool:
        """Whether some cells of a group have ended and all others are near their end."""
        ending = [group for group in self.groups if len(group.alive) < len(group.cells)]
        left = [progress[key] for group in ending for key in group.alive if key in progress]
        return bool(left) and all(one.step >= NEARLY * max(1, one.total_steps) for one in left)

    def _start_of(self, cell: PlannedCell) -> tuple[Crops, int] | None:
        """The crops of a cell and the epochs behind it; None where it can start together with no other."""
        crops = crops_shared_by(cell) if self.plan.code_of(cell) == self.plan.code else None
        try:
            return None if crops is None else (crops, len(self.plan.record(cell).rows()))
        except DamagedError:
            return None

    @property
    def _log(self) -> Path:
        return make_folder(self.plan.output_dir) / "loader.log"

    def _start_reader(self, ring: Ring, cells: Sequence[PlannedCell]) -> Any:
        config = cells[0].config
        readers = readers_for(len(cells) * config.devices, config.workers, usable_cores())
        process = self.context.Process(
            target=_reading_process, args=(ring, config.plugins, readers, self._log), name="loader"
        )
        with importing_from(self.plan.code):
            process.start()
        return process


def _near(one: tuple[Crops, int] | None, other: tuple[Crops, int] | None, most: int) -> bool:
    """Whether cells can start together: of the same crops, and at most so many epochs apart."""
    return one is not None and other is not None and one[0] == other[0] and abs(one[1] - other[1]) <= most


def _epochs_apart(cell: PlannedCell) -> int:
    """How many epochs apart cells of a group can be that have saved at the same moment: as many as their window is
    long, rounded up. Only of small data sets that is more than one."""
    length, window = window_of([cell])
    return -(-window // -(-length // CHUNK))


def _end(process: Any) -> None:
    process.join(2)  # it ends by itself once all members have
    process.kill()
    process.join()


def letters(number: int) -> str:
    """The mark of a loader: 1 → a, 26 → z, 27 → aa; none for 0."""
    mark = ""
    while number:
        number, letter = divmod(number - 1, 26)
        mark = chr(ord("a") + letter) + mark
    return mark


def _reading_process(ring: Ring, plugins: tuple[str, ...], readers: int, log: Path) -> None:
    """The life of a reading process; what it prints goes to `log`, which is there only if there was anything."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    stream = log.open("a", buffering=1, encoding="utf-8")
    os.dup2(stream.fileno(), sys.stdout.fileno())
    os.dup2(stream.fileno(), sys.stderr.fileno())
    sys.stdout = sys.stderr = stream
    from vitlab.data.shared import read_for_all

    read_for_all(ring, plugins, readers)
    with contextlib.suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
