"""Cells that mean something else than when their study was last planned, though the same was typed for them: a default
or the code has changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import CellConfig, experiment
from vitlab.core.errors import UserError
from vitlab.study.identity import differences, identity
from vitlab.study.record import Record

if TYPE_CHECKING:
    from vitlab.study.plan import PlannedCell

Compose = Callable[[Sequence[str]], CellConfig]
"""The cell that overrides mean with today's code and defaults; raises UserError where they mean none."""


def drifted(
    cells: Iterable[PlannedCell], known: Sequence[dict[str, Any]], output_dir: Path, compose: Compose | None
) -> list[str]:
    """A note for each cell of the study, as it was `known`, whose own overrides mean another cell today.

    What the user typed for a cell last time is composed again; where that still is the recorded cell, another value was
    typed this time, which is no drift. Without `compose`, cells for which other overrides were typed are left out.
    """
    before = {entry["name"]: entry for entry in known}
    notes = []
    for cell in cells:
        entry = before.get(cell.name)
        if entry is None or entry["id"] == cell.id or cell.config.study.part != "cell":
            continue
        now = cell.config.cell
        if list(entry.get("overrides", ())) != list(cell.overrides):
            try:
                now = compose(entry.get("overrides", ())) if compose else None
            except UserError:  # those words mean no cell any more, and nobody typed them now
                now = None
        recorded = Record(output_dir / entry["id"]).read_intact("config.yaml")
        if now is None or not recorded or identity(now) == entry["id"]:
            continue
        changes = differences(recorded["experiment"], experiment(now)) or ["the code's semantics"]
        notes.append(f"{cell.name} was {entry['id']} and is now {identity(now)}: {'; '.join(changes)}")
    return notes
