"""Which cells a command means, where each stands, and in which order what is missing has to run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import Config, ConfigError, experiment
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, NewerError
from vitlab.data.order import num_steps
from vitlab.study.capacity import Capacity, capacity
from vitlab.study.contents import Contents, read_contents
from vitlab.study.identity import Request, identity, name_cells, name_pretrainings
from vitlab.study.mixture import Compose, attempts, drifted, mixtures
from vitlab.study.provenance import device_kind, settings
from vitlab.study.record import Record, State, name_of_record
from vitlab.study.snapshot import FOLDER, begun_on, describe_continued, version_of
from vitlab.study.studies import Entry, joined, others, read_study

if TYPE_CHECKING:
    from vitlab.study.trial import Trial


@dataclass(frozen=True)
class PlannedCell:
    """A cell of the study, once, however many requests mean it."""

    id: str
    name: str
    config: Config
    overrides: tuple[str, ...]
    state: State
    needs: str | None = None
    """Identity of the pre-training that has to be finished first."""
    aliases: tuple[str, ...] = ()
    """Names of other requests that resolve to this very cell."""
    selected: bool = False
    """Whether this command trains it."""
    again: bool = False
    """Whether it is to be trained again whatever its record holds (study.rerun)."""
    faults: tuple[UserError, ...] = ()
    """What is damaged of its record."""
    code: str | None = None
    """The snapshot that it has begun on, and goes on with."""

    @property
    def stage(self) -> int:
        return 0 if self.config.study.part == "pretraining" else 1


@dataclass(frozen=True)
class Plan:
    study: str
    output_dir: Path
    cells: tuple[PlannedCell, ...]
    notes: tuple[str, ...]
    """What a person should know before paying: drift, mixed code, mixed devices."""
    trains_here: bool = True
    """Whether this machine is the one that trains, or only the one that submits."""
    code: Path | None = None
    """The snapshot of today's code; None where cells run the code of the user's folder."""
    known: tuple[Entry, ...] = ()
    """What the list of the study holds already, of which the cells that are not planned stay."""
    contents: Mapping[str, Contents] = field(default_factory=dict, repr=False, compare=False)
    """Identity → what the cell's record held when the plan was made."""

    @functools.cached_property
    def todo(self) -> tuple[PlannedCell, ...]:
        """The cells to train, pre-training first."""
        return tuple(sorted((c for c in self.cells if c.selected), key=lambda c: c.stage))

    @functools.cached_property
    def blocked(self) -> frozenset[str]:
        """Identities of the cells to train whose pre-training is not finished, and which nobody trains."""
        todo = {c.id for c in self.todo}
        return frozenset(c.id for c in self.todo if c.needs not in todo and self.blocked_by(c))

    @functools.cached_property
    def capacity(self) -> Capacity:
        """How many cells train at once on this machine, asked once: GPUs may become busy."""
        from vitlab.study.sharing import best_number

        return capacity(self.cells[0].config, lambda: best_number(self))

    @functools.cached_property
    def trial(self) -> Trial:
        """What a trial of the first cell to train finds on this machine, made once."""
        from vitlab.study.trial import run_trial

        return run_trial(self.todo[0].config)

    def state_of(self, identity: str) -> State:
        """The state of a cell's record now; `damaged` where the plan found it so and does not train it again."""
        if any(c.id == identity and c.state == "damaged" and not c.selected for c in self.cells):
            return "damaged"
        return self.record_of(identity).state()

    def blocked_by(self, cell: PlannedCell) -> str:
        """Why a cell cannot start now: its pre-training and where that stands; empty where it can."""
        state = "finished" if cell.needs is None else self.state_of(cell.needs)
        verb = "" if state == "failed" else "is "
        return "" if state == "finished" else f"its pre-training {cell.needs} {verb}{state}"

    def code_of(self, cell: PlannedCell) -> Path | None:
        """The snapshot that a cell is trained on; None for the code of the user's folder."""
        return self.code and (self.code.with_name(cell.code) if cell.code else self.code)

    def found(self, cell: PlannedCell) -> Contents:
        """What a cell's record held when the plan was made."""
        return self.contents.get(cell.id) or read_contents(self.record(cell), thorough=False)

    def record(self, cell: PlannedCell) -> Record:
        return self.record_of(cell.id)

    def record_of(self, identity: str) -> Record:
        return Record(self.output_dir / identity)


def planned_steps(cell: PlannedCell) -> int:
    """Optimizer steps of the whole cell, or of the pre-training that stands in its place."""
    content = cell.config.cell
    if cell.config.study.part == "pretraining":
        assert content.pretraining is not None, "only planned where there is one"
        content = content.pretraining
    return num_steps(content)


def build_plan(
    requests: Sequence[Request],
    study: str,
    trains_here: bool = True,
    compose: Compose | None = None,
    *,
    older_names: bool = True,
    frozen: bool = False,
) -> Plan:
    """The plan for all requested cells and the pre-trainings they start from.

    `trains_here` is False where this machine only submits, so that its own device says nothing. `compose` composes the
    overrides of cells that the study knew, to see what has changed since. `older_names` looks for finished records
    under the names of the rule before, except where `study.rerun` trains cells again. With `frozen` cells continue on
    the code that they have begun with. Damaged records are noted, and their cells neither used nor trained unless
    `study.rerun` names them. Raises ConfigError where it names a cell that is not in the study; NewerError for a record
    of a newer schema.
    """
    first = requests[0].config
    output_dir = Path(first.output_dir)
    names = name_cells(requests)
    older = functools.partial(name_of_record, output_dir=output_dir)
    named = older if older_names and first.study.rerun is None else identity
    starts = name_pretrainings(requests, named)
    merged: dict[str, PlannedCell] = {}
    contents: dict[str, Contents] = {}
    for request, name in zip(requests, names, strict=True):
        before = request.config.cell.pretraining
        needs = None
        if before is not None:
            needs = named(before)
            if needs not in merged:
                study_of_part = dataclasses.replace(request.config.study, part="pretraining")
                config = dataclasses.replace(request.config, study=study_of_part)
                overrides = (*request.overrides, "study.part=pretraining")
                contents[needs] = found = read_contents(Record(output_dir / needs), thorough=False)
                merged[needs] = PlannedCell(needs, starts[needs], config, overrides, found.state, faults=found.faults)
        key = named(request.config.cell)
        if key in merged:
            cell = merged[key]
            if name != cell.name:
                merged[key] = dataclasses.replace(cell, aliases=(*cell.aliases, name))
            continue
        contents[key] = found = read_contents(Record(output_dir / key), thorough=False)
        merged[key] = PlannedCell(key, name, request.config, request.overrides, found.state, needs, faults=found.faults)
    cells = _select(list(merged.values()), first)
    if frozen:
        cells = [dataclasses.replace(c, code=begun_on(c, output_dir)) if c.selected else c for c in cells]
    notes, known = _known(study, output_dir)
    kept = () if first.study.replace else known
    faults = [(cell.name, fault) for cell in cells if not cell.again for fault in cell.faults]
    for _, fault in faults:
        if isinstance(fault, NewerError):
            raise fault
    notes += [f"{name}: {fault}" for name, fault in faults]
    notes += [
        *_idle(requests, names),
        *drifted(cells, known, output_dir, compose),
        *_added(study, [_entry(cell) for cell in cells], kept),
        *_mixture(cells, contents, output_dir, trains_here),
        *describe_continued(cells, output_dir, first.plugins),
    ]
    return Plan(study, output_dir, tuple(cells), tuple(notes), trains_here, known=tuple(kept), contents=contents)


def _select(cells: list[PlannedCell], config: Config) -> list[PlannedCell]:
    """Mark what this command trains: what is missing or interrupted, and what the user asks to repeat."""
    rerun = config.study.rerun
    wanted = {c.id for c in cells} if rerun == "all" else set([rerun] if isinstance(rerun, str) else rerun or ())
    if unknown := wanted - {c.id for c in cells}:
        raise ConfigError(
            "study.rerun",
            f"{sorted(unknown)[0]!r} is no cell of this study; its cells: {', '.join(c.id for c in cells)}",
        )

    def selected(cell: PlannedCell) -> bool:
        if cell.id in wanted:
            return True
        return cell.state in ("missing", "interrupted", "running") or (
            cell.state == "failed" and config.study.retry_failed
        )

    chosen = {c.id: dataclasses.replace(c, selected=selected(c), again=c.id in wanted) for c in cells}
    needed = {c.needs for c in chosen.values() if c.selected}
    pretraining_only = [c.id for c in chosen.values() if c.stage == 0 and c.id not in needed and c.id not in wanted]
    return [dataclasses.replace(c, selected=False) if c.id in pretraining_only else c for c in chosen.values()]


def study_content(plan: Plan, config: Config) -> dict[str, Any]:
    """What output_dir/studies/NAME.json says: which cells, under which names."""
    planned = [
        _entry(cell) | ({"code": code.name} if cell.selected and (code := plan.code_of(cell)) else {})
        for cell in plan.cells
    ]
    return {"table": config.study.table, "cells": joined(plan.known, planned)}


def _entry(cell: PlannedCell) -> dict[str, Any]:
    part = cell.config.study.part
    entry = {"id": cell.id, "name": cell.name, "part": part, "needs": cell.needs, "aliases": list(cell.aliases)}
    entry |= {"labels": dict(cell.config.labels), "overrides": list(cell.overrides)}
    return entry | {"experiment": experiment(cell.config.cell)}


def _idle(requests: Sequence[Request], names: Sequence[str]) -> list[str]:
    """Values that were typed for all cells and act in some of them."""
    notes = []
    for key, only in {key: only for request in requests for key, only in request.config.idle.items()}.items():
        without = list(dict.fromkeys(n for r, n in zip(requests, names, strict=True) if key in r.config.idle))
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        notes.append(f"{key} {only}: it is left out of {', '.join(without[:3])}{more}")
    return notes


def _known(study: str, output_dir: Path) -> tuple[list[str], list[Entry]]:
    """What the study's list holds; of one that cannot be read, a note instead."""
    try:
        return [], (read_study(output_dir, study) or {"cells": []})["cells"]
    except DamagedError as error:
        if Path(error.path).is_dir():  # it could not be written again
            raise
        return [f"{error.path}: {error.problem}; this command writes it again"], []


def _added(study: str, planned: Sequence[Entry], known: Sequence[Entry]) -> list[str]:
    """Which cells of the study are not in the plan: they stay in its list and its table."""
    stay = others(known, planned)
    if not stay:
        return []
    new = len({entry["id"] for entry in planned} - {entry["id"] for entry in known})
    what = f"this adds {counted(new, 'cell')} to study {study}" if new else f"this is a part of study {study}"
    names = [f"{entry['name']} ({entry['id']})" for entry in stay[:3]] + ["…"] * (len(stay) > 3)
    return [
        f"{what} ({counted(len(stay), 'other')} {'stays' if len(stay) == 1 else 'stay'}: {', '.join(names)}); to take "
        "those out of its list: study.replace=true; to make another study: study.name=NAME"
    ]


def _mixture(cells: Sequence[PlannedCell], found: Mapping[str, Contents], folder: Path, trains_here: bool) -> list[str]:
    """Whether finished and coming cells would mix code, packages, kinds of device, threads or compilation."""
    coming = [cell.config for cell in cells if cell.selected]
    kept = [cell for cell in cells if not cell.again and cell.state in ("finished", "interrupted")]
    known = [a for cell in kept for a in attempts(found[cell.id].provenance)]
    if not coming or not known:
        return []
    device = device_kind(coming[0].device) if trains_here else None
    compiles = {config.cell.recipe.compile and not str(device).endswith("CPU") for config in coming}
    first = coming[0]
    here = [settings(device, first.devices, first.threads, compiled, first.plugins) for compiled in compiles]
    codes = {cell.code for cell in cells if cell.selected}
    older = {code: version_of(folder / FOLDER / code) if code else {} for code in codes}
    mixed = mixtures([*known, *(now | older[code] for now in here for code in codes)])
    if not mixed:
        return []
    return [f"this study would mix {'; '.join(mixed)}. study.rerun=all trains its cells again, with what is here"]


def counted(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {noun}" + "s" * (number != 1)
