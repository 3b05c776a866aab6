"""Whether the cells of a plan were trained on the data that are on the disk now: asked before anything trains.

A finished cell counts as done, and an interrupted one is continued, only with the files that its record names. Data
that this machine does not see cannot be compared; the plan says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import UserError
from vitlab.data.sources.known import describe_changes, known_data, other_name
from vitlab.data.sources.on_disk import inventories
from vitlab.study.cell import cell_of
from vitlab.study.data_record import data_changes
from vitlab.study.estimate import counted
from vitlab.study.plan import Plan, PlannedCell

MANY = 8
"""Cells from which on a message proposes study.rerun=all in place of their identities."""


def check_data(plan: Plan) -> Plan:
    """The plan, with a note for each data set that could not be compared.

    Raises ConfigError where cells were begun with other data than those on the disk, or where the name of a data set
    stands for others in this output_dir, naming the images that differ and what to do.
    """
    groups: dict[Hashable, list[PlannedCell]] = {}
    for cell in plan.cells:
        groups.setdefault(_files_of(cell_of(cell.config).dataset), []).append(cell)
    notes = [note for cells in groups.values() for note in _check(plan, cells)]
    return dataclasses.replace(plan, notes=(*plan.notes, *notes, *_outdated(plan)))


def _outdated(plan: Plan) -> list[str]:
    """A note for each pre-training that was trained again, or is about to be, after cells had started from it."""
    names = {c.id: c.name for c in plan.cells}
    again = {c.id for c in plan.cells if c.again}
    found: dict[str, list[PlannedCell]] = {}
    for cell in plan.cells:
        if cell.needs and not cell.again and cell.state in ("finished", "running", "interrupted"):
            start = (plan.record(cell).read_intact("provenance.json") or {}).get("start") or {}
            now = (plan.record_of(cell.needs).read_intact("result.json") or {}).get("finished_at")
            if cell.needs in again or (now and start.get("finished_at") not in (None, now)):
                found.setdefault(cell.needs, []).append(cell)
    return [
        f"{counted(len(cells), 'cell')} from an earlier training of {names.get(needs, needs)}; to train again: "
        f"study.rerun={_rerun(plan, {c.id for c in cells})}"
        for needs, cells in found.items()
    ]


def _files_of(dataset: DatasetConfig) -> Hashable:
    """Equal for data sets that are read from the same files: compared once."""
    splits = dataset.num_eval != 0, dataset.val_fraction > 0
    return dataset.name, dataset.kind, dataset.root, dataset.pack, dataset.fractal, dataset.verify, splits


def _check(plan: Plan, cells: Sequence[PlannedCell]) -> list[str]:
    """Compare the records of cells of one data set; returns notes."""
    dataset, folder = cell_of(cells[0].config).dataset, plan.output_dir
    begun = [c for c in cells if not c.again and (c.selected or c.state in ("finished", "running"))]
    origins = {c.id: plan.record(c).read_intact("provenance.json") for c in begun if c.state != "missing"}
    compared = [c for c in begun if (origins.get(c.id) or {}).get("data")]
    named = {} if any(c.again for c in cells) else known_data(folder, dataset)
    if not compared and not named:
        return []
    try:
        now = inventories(dataset)
    except (UserError, OSError) as error:
        them = f" with {counted(len(compared), 'cell')} that started from it" if compared else ""
        return [f"{dataset.name} was not compared{them}: {error}"]
    changed: dict[tuple[str, ...], list[PlannedCell]] = {}
    for cell in compared:
        if lines := data_changes(origins[cell.id], cell_of(cell.config).dataset, folder, now):
            changed.setdefault(tuple(lines), []).append(cell)
    if changed:
        _refuse(plan, dataset, changed)
    if lines := describe_changes(folder, named, now):
        raise ConfigError(
            f"{_prefix(cells)}dataset.root",
            f"{dataset.name!r} means other images in {folder}; nothing was started\n"
            + "".join(f"    {line}\n" for line in lines)
            + f"  Restore the data; or {other_name(dataset, folder, _prefix(cells))}; or let the name mean these from "
            "now on, and train all cells of this study on them: study.rerun=all",
        )
    unread = [c for c in compared if dataset.verify == "contents" and not _has_contents(origins[c.id])]
    if not unread:
        return []
    return [f"{counted(len(unread), 'cell')} recorded without the bytes of {dataset.name}: only sizes agree"]


def _has_contents(provenance: dict | None) -> bool:
    data = (provenance or {}).get("data")
    return isinstance(data, dict) and all(part.get("contents") for part in data.values())


def _refuse(plan: Plan, dataset: DatasetConfig, changed: dict[tuple[str, ...], list[PlannedCell]]) -> None:
    text = ""
    for lines, group in changed.items():
        names = ", ".join(f"{c.name} ({c.id}, {c.state})" for c in group[:3])
        more = f" and {len(group) - 3} more" if len(group) > 3 else ""
        text += f" since {names}{more} {'was' if len(group) == 1 else 'were'} begun\n"
        text += "".join(f"    {line}\n" for line in lines)
    cells = [cell for group in changed.values() for cell in group]
    ended = {c.id for c in cells if c.state != "running"}
    again = f"; or train again on these: study.rerun={_rerun(plan, ended)}" if ended else ""
    raise ConfigError(
        f"{_prefix(cells)}dataset.root",
        f"the data of {dataset.name!r} have changed{text}  Nothing was started. Restore the data; or "
        f"{other_name(dataset, plan.output_dir, _prefix(cells))}{again}",
    )


def _rerun(plan: Plan, ended: set[str]) -> str:
    """The value of study.rerun that trains these cells again, beside those that are to be already: `all` where that is
    shorter and means no more."""
    begun = {c.id for c in plan.cells if c.state != "missing"}
    wanted = [c.id for c in plan.cells if c.again or c.id in ended or c.needs in ended]
    return "all" if begun <= set(wanted) and len(wanted) >= MANY else f"'[{','.join(wanted)}]'"


def _prefix(cells: Sequence[PlannedCell]) -> str:
    return "pretrain." if cells[0].config.study.part == "pretraining" else ""
