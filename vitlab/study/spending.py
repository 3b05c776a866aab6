"""What a study has taken of its devices and is likely to take, from its list and its records: nothing is composed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitlab.config import CellConfig, build
from vitlab.core.errors import UserError
from vitlab.study.cost import Throughput, device_seconds, nearest, seconds_of, throughput, throughput_so_far
from vitlab.study.record import Record, records
from vitlab.study.status import Standing, StudyStatus
from vitlab.study.studies import Entry

_COMING = ("running", "queued", "interrupted", "not begun")
"""States of cells that will be trained, or trained on."""


@dataclass(frozen=True)
class Spending:
    """Device-seconds of one cell."""

    spent: float | None
    """None where its record does not say."""
    to_come: float | None
    """None where no cell of its model has trained an epoch; 0 for a cell that has ended."""
    devices: float = 1
    """How many it has at a time; less than one where it shares one."""


class _Speeds:
    """What cells tell of the speed of their models; many cells have the same answer."""

    def __init__(self, known: Sequence[Throughput]) -> None:
        self._known = known
        self._found: dict[tuple[object, ...], Throughput | None] = {}

    def nearest(self, content: CellConfig | None) -> Throughput | None:
        """The one that tells most of what a cell takes; None where none has its model."""
        if content is None:
            return None
        key = content.model, content.dataset.name, content.recipe.precision
        if key not in self._found:
            self._found[key] = nearest(content, self._known, None)
        return self._found[key]


@dataclass
class Accounts:
    """Computes what studies below `output_dir` take; what a finished cell tells is read once."""

    output_dir: Path
    _finished: dict[str, Throughput | None] = field(default_factory=dict)
    _contents: dict[str, CellConfig | None] = field(default_factory=dict)

    def of(self, study: StudyStatus) -> dict[str, Spending]:
        """Identity → what each cell of a study has taken, and what is to come.

        What is to come of a cell follows from its own epochs, else from the speed of the finished cell that is nearest
        to it, else from one of its model that is trained.
        """
        ended = [self._speed_of(Record(self.output_dir / c.entry["id"])) for c in study.cells if c.state == "finished"]
        known = _Speeds([speed for speed in ended if speed])
        going = _Speeds([speed for cell in study.cells if (speed := self._so_far(cell))])
        waiting = [self._content(c.entry) for c in study.cells if c.state in _COMING and not c.row]
        if any(not known.nearest(content) and not going.nearest(content) for content in waiting):
            known = _Speeds([speed for record in records(self.output_dir) if (speed := self._speed_of(record))])
        return {cell.entry["id"]: self._spending(cell, known, going) for cell in study.cells}

    def _spending(self, cell: Standing, known: _Speeds, going: _Speeds) -> Spending:
        if cell.state == "finished":
            speed = self._speed_of(Record(self.output_dir / cell.entry["id"]))
            return Spending(speed.result["device_seconds"] if speed else None, 0.0)
        devices, row = self._devices(cell), cell.row or {}
        seconds = row.get("seconds")
        spent = device_seconds(row, devices) if isinstance(seconds, int | float) else None if row else 0.0
        devices = spent / seconds if spent and seconds else devices
        if cell.state not in _COMING:
            return Spending(spent, 0.0, devices)
        content = self._content(cell.entry)
        if cell.seconds_left is not None:
            return Spending(spent, cell.seconds_left * devices, devices)
        done = row.get("epoch", 0)
        if spent and cell.epochs:
            return Spending(spent, spent / done * max(0, cell.epochs - done), devices)
        base = known.nearest(content) or going.nearest(content)
        if content is None or base is None:
            return Spending(spent, None, devices)
        to_come = seconds_of(content, 1 - min(1.0, done / content.recipe.epochs), base)
        return Spending(spent, to_come, base.devices if cell.state == "not begun" else devices)

    def _speed_of(self, record: Record) -> Throughput | None:
        if record.id not in self._finished:
            if not (record.folder / "result.json").exists():
                return None
            self._finished[record.id] = throughput(record)
        return self._finished[record.id]

    def _so_far(self, cell: Standing) -> Throughput | None:
        content = self._content(cell.entry) if cell.row else None
        if content is None or cell.row is None:
            return None
        record = Record(self.output_dir / cell.entry["id"])
        return throughput_so_far(record, content, cell.row, self._devices(cell))

    def _devices(self, cell: Standing) -> int:
        """How many devices a cell that has begun trains on."""
        if cell.state == "not begun":
            return 1
        return (Record(self.output_dir / cell.entry["id"]).read_intact("provenance.json") or {}).get("devices") or 1

    def _content(self, entry: Entry) -> CellConfig | None:
        """The cell that an entry of a study's list means; None where another version of vitlab wrote it."""
        if entry["id"] not in self._contents:
            self._contents[entry["id"]] = _built(entry)
        return self._contents[entry["id"]]


def _built(entry: Entry) -> CellConfig | None:
    try:
        cell: CellConfig = build(CellConfig, entry.get("experiment") or {}, "")
        cell = cell.pretraining or cell if entry["part"] == "pretraining" else cell
        return cell if cell.dataset.train_images else None
    except (UserError, AssertionError):
        return None
