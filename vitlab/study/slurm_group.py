"""One Slurm job of several cells: which they are, and what it runs on the node, a small study of its own on one device.

The cells are processes of their own, as on a machine without Slurm, and share a loader where they see the same crops.
A cell that fails takes no other down; all save at the limit, and the job goes on with those that are not finished.

`cells_per_job=auto`: how many cells train at once is found by a trial on the node. How many a job holds has to be known
before, when it is submitted: as many as the trial of an earlier job with such a model and node found, or, before there
is one, a small number that is within what the job has.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vitlab.config import experiment
from vitlab.core.errors import UserError
from vitlab.core.files import make_folder, write_text
from vitlab.core.integrity import digest_of, sealed
from vitlab.study.cell import cell_of
from vitlab.study.estimate import alone_and_shared, planned_images, shown_groups
from vitlab.study.plan import Plan, PlannedCell, counted
from vitlab.study.provenance import device_kind
from vitlab.study.sharing import groups_of
from vitlab.study.slurm_job import (
    SAVED_AND_CONTINUE,
    about_job,
    exit_code,
    note_signals,
    requeue,
    this_job,
    wait_for_predecessor,
)
from vitlab.study.slurm_options import SlurmOptions
from vitlab.study.slurm_queue import loaders_file
from vitlab.study.trial import keep_trial, kept_trial

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

FAILED = 1
UNMEASURED = 4
"""Cells that a job of `cells_per_job=auto` holds at most, before a trial on such a node: should only one at a time suit
it, the others wait that long."""


@dataclass(frozen=True)
class GroupJob:
    """Cells that one job trains at once, their study and folder, and the fingerprint of the submitted code."""

    cells: tuple[PlannedCell, ...]
    study: str
    output_dir: Path
    code: str
    trial: Path | None = None
    """Where to keep the trial that says how many of them train at once; None: all do."""

    def __call__(self) -> dict[str, str]:
        """Train the cells that are not finished; returns the outcomes, or raises SystemExit with the exit code.

        In a further allocation those that have failed in an earlier one are left as they are.
        """
        from vitlab.core.terminal import prepare_output

        prepare_output()
        signals = note_signals()
        from vitlab.study.launch_local import run_locally
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
        if self.trial is not None and len(plan.todo) > 1:
            number = _number_here(plan, self.trial)
            plan = dataclasses.replace(plan, cells=tuple(_at_once(cell, number) for cell in plan.cells))

        class JobView(View):
            def event(self, identity: str, event: Any) -> None:
                about_job(plan.record_of(identity), event, restarts, changed)
                super().event(identity, event)

            def loader(self, identity: str, mark: str) -> None:
                if mark != self.cells[identity].loader:
                    super().loader(identity, mark)
                    marks = {key: progress.loader for key, progress in self.cells.items() if progress.loader}
                    with contextlib.suppress(UserError):  # of a full disk; only the view lacks it
                        make_folder(loaders.parent)
                        write_text(loaders, json.dumps(sealed(marks)))

        loaders = loaders_file(self.output_dir, this_job())
        lines = SimpleNamespace(
            write=sys.stdout.write, flush=sys.stdout.flush, isatty=lambda: False
        )  # srun has a terminal
        with JobView(plan, lines) as view:
            if signals():  # came before the launcher could listen, in the trial maybe
                outcomes = {cell.id: "interrupted" for cell in plan.todo}
            else:
                outcomes = run_locally(plan, view) if plan.todo else {}
        loaders.unlink(missing_ok=True)
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


def _number_here(plan: Plan, file: Path) -> int:
    """How many of a job's cells suit its device at once, by a trial, which is kept in `file`; it says why."""
    given = [os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE")]
    cores, megabytes = (int(text) if text.isdigit() else 0 for text in given)
    try:
        trial = plan.trial.within(cores or None, megabytes << 20 or None)
    except UserError as error:
        print(f"vitlab: one cell at a time, since the trial of hydra.launcher.cells_per_job=auto failed: {error}")
        return 1
    keep_trial(file, trial, device_kind(plan.todo[0].config.device))
    sharing = max(map(len, groups_of(plan.todo)), default=1)
    number = trial.best(sharing, len(plan.todo))
    print(
        f"hydra.launcher.cells_per_job=auto: {number} of {len(plan.todo)} cells at once ({trial.why(number, sharing)})"
    )
    return number


def suited(kind: Sequence[PlannedCell], options: SlurmOptions, output_dir: Path) -> tuple[int, str]:
    """How many of these cells, which are alike, one job holds under `cells_per_job=auto`, and why."""
    first = kind[0]
    model = _model_of(first)
    sharing = max(map(len, groups_of(kind)), default=1)
    if found := kept_trial(trial_file(first, options, output_dir)):
        trial, origin = found
        most = trial.best(sharing, len(kind))
        why = f"{most} cells of {model} in a job, by a trial on such a node ({origin}): {trial.why(most, sharing)}"
    else:
        bounds = {"before a trial on such a node": UNMEASURED}
        if options.cpus_per_task is not None:
            words = f"hydra.launcher.cpus_per_task={options.cpus_per_task}, threads={first.config.threads}"
            bounds[words] = max(1, options.cpus_per_task // first.config.threads)
        most, said = min(bounds.values()), min(bounds, key=lambda words: bounds[words])
        why = f"at most {most} cells of {model} in a job ({said}); on the node, a trial says how many at once"
    return most, f"hydra.launcher.cells_per_job=auto: {why}"


def trial_file(cell: PlannedCell, options: SlurmOptions, output_dir: Path) -> Path:
    """Where the trial is kept of such a cell on a node such as these options ask for."""
    config, content = cell.config, experiment(cell_of(cell.config))
    alike = {
        "model": content["model"], "dataset": content["dataset"]["name"],
        "recipe": {key: content["recipe"][key] for key in ("batch_size", "precision")},
        "cell": {key: getattr(config, key) for key in ("device", "device_batch", "workers", "threads")},
        "node": {
            key: getattr(options, key) for key in (
                "partition", "constraint", "gpus_per_node", "gpus_per_task", "gres", "cpus_per_task", "cpus_per_gpu",
                "mem_gb", "mem_per_gpu", "mem_per_cpu",
            )
        },
    }  # fmt: skip
    return output_dir.absolute() / "slurm" / "trials" / f"{digest_of(alike)[:16]}.json"


def kinds_of(cells: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """Cells that one job can hold under `cells_per_job=auto`: of the same crops, and the rest by model and data."""
    sharing = groups_of(cells)
    taken = {cell.id for group in sharing for cell in group}
    rest: dict[tuple[object, str], list[PlannedCell]] = {}
    for cell in cells:
        if cell.id not in taken:
            content = cell_of(cell.config)
            rest.setdefault((content.model, str(content.dataset.name)), []).append(cell)
    return [*sharing, *rest.values()]


def evenly(cells: Sequence[PlannedCell], most: int) -> list[list[PlannedCell]]:
    """As few jobs as hold all cells, up to `most` in each, as equal as can be: 4 and 3, or 3, 3 and 3."""
    jobs = -(-len(cells) // most)
    starts = [number * len(cells) // jobs for number in range(jobs + 1)]
    return [list(cells[start:end]) for start, end in itertools.pairwise(starts)]


def in_jobs(cells: list[PlannedCell], most: int) -> list[list[PlannedCell]]:
    """The cells of each job: those that see the same crops side by side. A pre-training, whose job others wait for, has
    a job of its own."""
    alone = [cell for cell in cells if cell.stage == 0 or most == 1]
    sharing = [cell for group in groups_of(cells) for cell in group]
    rest = sorted((c for c in cells if c not in alone), key=lambda c: sharing.index(c) if c in sharing else len(cells))
    return [[cell] for cell in alone] + [rest[at : at + most] for at in range(0, len(rest), most)]


def jobs_of(
    cells: Sequence[PlannedCell], options: SlurmOptions, output_dir: Path
) -> tuple[list[list[PlannedCell]], list[str]]:
    """The cells of each job, and why it holds so many under `cells_per_job=auto`."""
    if options.cells_per_job != "auto":
        return in_jobs(list(cells), options.cells_per_job), []
    jobs, reasons = [[cell] for cell in cells if cell.stage == 0], []
    for kind in kinds_of([cell for cell in cells if cell.stage]):
        most, why = suited(kind, options, output_dir)
        reasons += [why] if why not in reasons else []
        jobs += evenly(kind, most)
    return jobs, reasons


def group_lines(plan: Plan, options: SlurmOptions) -> list[str]:
    """What a plan tells of jobs that hold several cells: how many they are, which cells share a loader, and the time on
    the devices alone and shared, where a trial on such a node has been made."""
    todo = [cell for cell in plan.todo if cell.state != "running" and cell.id not in plan.blocked]
    if options.cells_per_job == 1 or len(todo) < 2:
        return []
    apart: dict[object, list[PlannedCell]] = {}
    for cell in todo:  # cells that wait for different jobs are not in one
        apart.setdefault((cell.stage, cell.needs, plan.code_of(cell)), []).append(cell)
    found = [jobs_of(cells, options, plan.output_dir) for cells in apart.values()]
    jobs = [job for some, _ in found for job in some]
    reasons = list(dict.fromkeys(why for _, some in found for why in some))
    together = [group for job in jobs for group in groups_of(job)]
    loaders = f"; one loader for {shown_groups(together)}" if together else ""
    where = f"{counted(len(jobs), 'job')} (hydra.launcher.cells_per_job={options.cells_per_job})"
    return [
        *reasons,
        f"Slurm: {counted(len(todo), 'cell')} in {where}{loaders}",
        _saved(jobs, options, plan.output_dir),
    ]


def _saved(jobs: Sequence[Sequence[PlannedCell]], options: SlurmOptions, output_dir: Path) -> str:
    """What cells that share a device save, by the trials on such nodes."""
    alone, shared, how, on_gpu = 0.0, 0.0, "", False
    for job in jobs:
        found = kept_trial(trial_file(job[0], options, output_dir))
        if found is None:
            return (
                f"what sharing a device saves is not known: no trial of {_model_of(job[0])} has been made on such a "
                "node; the first job of several cells with hydra.launcher.cells_per_job=auto makes one"
            )
        trial, origin = found
        sharing = max(map(len, groups_of(job)), default=1)
        number = trial.best(sharing, len(job)) if options.cells_per_job == "auto" else len(job)
        images = sum(map(planned_images, job))
        alone += images / trial.images_per_second(1, 1)
        shared += images / trial.images_per_second(number, sharing)
        how = how or f"{number} at once in a job ({trial.why(number, sharing)}; measured on {origin})"
        on_gpu = trial.on_gpu
    return alone_and_shared(alone, shared, how, on_gpu)


def _model_of(cell: PlannedCell) -> str:
    return cell.config.labels.get("model", cell_of(cell.config).model.name)


def for_the_node(cells: Sequence[PlannedCell]) -> tuple[PlannedCell, ...]:
    """The cells as their job trains them: all at once, on the one device that it has."""
    return tuple(
        _at_once(dataclasses.replace(cell, selected=True, needs=None, code=None), len(cells)) for cell in cells
    )


def _at_once(cell: PlannedCell, number: int) -> PlannedCell:
    study = dataclasses.replace(cell.config.study, cells_per_device=number, cells_at_once="auto")
    return dataclasses.replace(cell, config=dataclasses.replace(cell.config, study=study))
