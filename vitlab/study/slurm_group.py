"""One Slurm job of several cells: what it runs on the node, a small study of its own on one device.

The cells are processes of their own, as on a machine without Slurm, and share a loader where they see the same crops.
A cell that fails takes no other down; all save at the limit, and the job goes on with those that are not finished.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vitlab.study.slurm_job import (
    SAVED_AND_CONTINUE,
    about_job,
    exit_code,
    note_signals,
    requeue,
    wait_for_predecessor,
)

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

    from vitlab.study.plan import PlannedCell

FAILED = 1


@dataclass(frozen=True)
class GroupJob:
    """Cells that one job trains at once, their study and folder, and the fingerprint of the submitted code."""

    cells: tuple[PlannedCell, ...]
    study: str
    output_dir: Path
    code: str

    def __call__(self) -> dict[str, str]:
        """Train the cells that are not finished; returns the outcomes, or raises SystemExit with the exit code.

        In a further allocation those that have failed in an earlier one are left as they are.
        """
        from vitlab.core.terminal import prepare_output

        prepare_output()
        signals = note_signals()
        from vitlab.study.launch_local import run_locally
        from vitlab.study.plan import Plan
        from vitlab.study.progress import View
        from vitlab.study.provenance import code_fingerprint

        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        changed = code_fingerprint() != self.code
        if changed:
            print("vitlab: the code has changed since these cells were submitted", flush=True)
        plan = Plan(self.study, self.output_dir, self.cells, ())
        if restarts:
            for cell in self.cells:
                wait_for_predecessor(plan.record(cell), signals)
        ended = ("finished", "failed") if restarts else ("finished",)
        kept = tuple(dataclasses.replace(c, selected=plan.record(c).state() not in ended) for c in self.cells)
        plan = dataclasses.replace(plan, cells=kept)

        class JobView(View):
            def event(self, identity: str, event: Any) -> None:
                about_job(plan.record_of(identity), event, restarts, changed)
                super().event(identity, event)

        lines = SimpleNamespace(
            write=sys.stdout.write, flush=sys.stdout.flush, isatty=lambda: False
        )  # srun has a terminal
        with JobView(plan, lines) as view:
            outcomes = run_locally(plan, view) if plan.todo else {}
        if "interrupted" in outcomes.values():
            code = exit_code("interrupted", signals())
            if code == SAVED_AND_CONTINUE:
                requeue()
            raise SystemExit(code)
        states = [plan.record(cell).state() for cell in self.cells]
        if any(state != "finished" for state in states):
            raise SystemExit(FAILED)
        return outcomes

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again for a signal that comes before `__call__` listens: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def for_the_node(cells: list[PlannedCell]) -> tuple[PlannedCell, ...]:
    """The cells as their job trains them: all at once, on the one device that it has."""
    return tuple(
        dataclasses.replace(
            cell, selected=True, needs=None, code=None,
            config=dataclasses.replace(
                cell.config,
                study=dataclasses.replace(cell.config.study, cells_per_device=len(cells), cells_at_once="auto"),
            ),
        )
        for cell in cells
    )  # fmt: skip
