"""Cells as Slurm job arrays: submitted once (by submitit), watched while attached, found again by the next command."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitlab.config import ConfigError, check_run
from vitlab.core.errors import UserError
from vitlab.core.files import locked, make_folder
from vitlab.core.integrity import sealed
from vitlab.study.attempts import FILE as ATTEMPTS
from vitlab.study.plan import Plan, PlannedCell, counted
from vitlab.study.progress import View
from vitlab.study.provenance import EXPECTED, MANIFEST, ROOT, code_fingerprint
from vitlab.study.slurm_group import GroupJob, for_the_node, group_lines, jobs_of, trial_file
from vitlab.study.slurm_job import NO_CODE, SAVED_AND_CONTINUE, CellJob
from vitlab.study.slurm_options import SlurmOptions
from vitlab.study.slurm_queue import NO_SUCH_ARRAY, REFUSED, Queued, ask_limits, queue, submitted_jobs, watch_jobs

NOT_YET = "not submitted"
"""What became of a cell for which Slurm has no place yet."""
_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
KILLED = tuple(code for number in _SIGNALS for code in (int(number), 128 + number))
"""What srun's exit code is after a signal that no process handles."""
_ANY_NUMBER = 10**6
"""Of allocations that a cell may take."""


class TooManyError(UserError):
    """Slurm takes no more jobs, or not so many in an array."""


def run_on_slurm(plan: Plan, view: View, options: SlurmOptions) -> dict[str, str]:
    """Submit what is not in the queue yet, then watch it to its end; returns identity → outcome.

    With `study.detach` it returns at once. Raises ConfigError where there is no Slurm, or Slurm refuses the options.
    """
    from submitit import SlurmExecutor

    if SlurmExecutor.affinity() < 0:
        raise ConfigError(
            "hydra/launcher", "Slurm's srun is not on this machine; submit from a login node of a cluster"
        )
    cells = [replace(cell, config=_on_devices(cell, options)) for cell in plan.todo]
    queueing = Queueing(plan, view, options, cells)
    queueing.submit()
    jobs, pending = queueing.jobs, queueing.pending
    arrays = _arrays(jobs)
    if jobs:
        noun = "array" if len(arrays) == 1 else "arrays"
        of_jobs = f" of {count} jobs" if (count := len(set(jobs.values()))) < len(jobs) else ""
        view.say(f"Slurm has {len(jobs)} cells in {len(arrays)} {noun}{of_jobs}: {' '.join(arrays)}")
    attached = not plan.cells[0].config.study.detach
    if pending:
        then = "they are submitted as places become free" if attached else "this command, typed again, submits them"
        view.say(f"{counted(len(pending), 'cell')} more than Slurm takes from you now{queueing.limit_words}; {then}")
    outcomes = queueing.outcomes
    if not attached:
        return outcomes | dict.fromkeys(jobs, "submitted") | {cell.id: NOT_YET for cell in pending}
    try:
        return watch_jobs(queueing, plan, view, options.poll_seconds)
    except KeyboardInterrupt:
        view.say(f"left to Slurm; the same command looks again; to end the jobs: scancel {' '.join(_arrays(jobs))}")
        left = dict.fromkeys(jobs, "submitted") | {cell.id: NOT_YET for cell in queueing.pending}
        return outcomes | {key: told for key, told in left.items() if plan.record_of(key).state() != "finished"}


def plan_on_slurm(plan: Plan, options: SlurmOptions) -> list[str]:
    """What a dry run tells of its jobs. Raises ConfigError for settings that cannot be with Slurm."""
    study = plan.cells[0].config.study
    if (several := study.cells_per_device) is not None:
        raise ConfigError(
            "study.cells_per_device",
            f"got {several}, which is about cells that this machine trains; on Slurm leave it out, and give "
            f"hydra.launcher.cells_per_job={several}",
        )
    for cell in plan.todo:
        _on_devices(cell, options)
    return group_lines(plan, options) if study.dry_run else []


def _arrays(jobs: Mapping[str, str]) -> list[str]:
    return sorted({job.partition("_")[0] for job in jobs.values()}, key=int)


class Queueing:
    """The cells of a plan on their way into Slurm's queue, as many at a time as it takes."""

    def __init__(self, plan: Plan, view: View, options: SlurmOptions, cells: Sequence[PlannedCell]) -> None:
        self.plan, self.view, self.options = plan, view, options
        self.cells = list(cells)
        self.jobs: dict[str, str] = {}
        """Identity → job, of what is or was in the queue."""
        self.outcomes: dict[str, str] = {}
        """Identity → outcome, of what needs no job or can have none."""
        self._limits = ask_limits(options)
        self._said: set[str] = set()

    @property
    def pending(self) -> list[PlannedCell]:
        """The cells without a job, in the plan's order: pre-trainings first."""
        return [cell for cell in self.cells if cell.id not in self.jobs and cell.id not in self.outcomes]

    @property
    def limit_words(self) -> str:
        most = self._limits.at_once
        return "" if most is None else f" ({most} jobs at once, MaxSubmitJobs)"

    def submit(self) -> None:
        """Submit what fits. Raises ConfigError where Slurm refuses the jobs for another reason than their number."""
        if not self.pending:
            return
        with _submitting(self.plan.output_dir):
            known = submitted_jobs(self.plan.output_dir)
            now = queue() if known or self._limits.at_once is not None else {}
            if now is None and not self.jobs:
                raise UserError("Slurm's squeue does not answer; nothing was submitted: type the command again")
            if now is None:  # asked again in a moment
                return
            self._look({cell: job for cell, job in known.items() if job in now})
            for stage in (0, 1):
                ready = [cell for cell in self.pending if cell.stage == stage and self._may_start(cell, now)]
                for group, before in self._groups(ready, now):
                    now = self._submit(group, before, now)

    def _look(self, known: Mapping[str, str]) -> None:
        """Note what other commands have submitted or finished, and what cannot be trained."""
        ids = {cell.id for cell in self.cells} - set(self.outcomes)
        for cell in self.pending:
            if cell.id in known:
                self.jobs[cell.id] = known[cell.id]
                self.view.status(cell.id, "waiting", f"already in the queue as {known[cell.id]}")
            elif self.plan.record(cell).state() == "finished":  # by another command, since this one has planned
                self.outcomes[cell.id] = "finished"
            elif cell.needs not in ids and (why := self.plan.blocked_by(cell)):
                self.outcomes[cell.id] = "blocked"
                self.view.status(cell.id, "blocked", why)

    def _may_start(self, cell: PlannedCell, now: Mapping[str, Queued]) -> bool:
        """Whether a cell's pre-training is finished, or has a job that the cell's can wait for."""
        return cell.needs is None or self.jobs.get(cell.needs) in now or not self.plan.blocked_by(cell)

    def _groups(
        self, cells: list[PlannedCell], now: Mapping[str, Queued]
    ) -> Iterator[tuple[list[list[PlannedCell]], str]]:
        """The jobs of the cells that wait for the same job and run the same code, and that job."""
        groups: dict[tuple[str, Path | None], list[PlannedCell]] = {}
        for cell in cells:
            before = self.jobs.get(cell.needs or "", "")
            groups.setdefault((before if before in now else "", self.plan.code_of(cell)), []).append(cell)
        for (before, _), group in groups.items():
            yield self._together(group), before

    def _together(self, cells: list[PlannedCell]) -> list[list[PlannedCell]]:
        """The cells of each job."""
        jobs, reasons = jobs_of(cells, self.options, self.plan.output_dir)
        for why in reasons:
            if why not in self._said:
                self.view.say(why)
            self._said.add(why)
        return jobs

    def _submit(self, groups: list[list[PlannedCell]], before: str, now: Mapping[str, Queued]) -> dict[str, Queued]:
        """Submit as many of these jobs as there is room for; returns the queue with them."""
        taken = dict(now)
        waiting = sum(job.state == "PENDING" for job in now.values())
        room = self._limits.room(len(taken))
        if not self._limits.worth_it(room, waiting, len(groups)):
            return taken
        groups = groups[:room]
        most = len(groups)
        while groups:
            array = groups[: min(most, self._limits.array_of(len(groups)))]
            for cell in (cell for group in array for cell in group):
                self.plan.record(cell).remove("failure.json")  # of an attempt that this one follows
            try:
                jobs = _submit_array(array, before, self.plan, self.options)
            except TooManyError as error:  # the limits are others than those that were told, or none were
                if len(array) == 1 and not self.jobs:  # no place will become free
                    raise ConfigError("hydra.launcher", str(error)) from None
                if len(array) == 1:
                    self._limits = replace(self._limits, at_once=max(1, len(taken)))
                    break
                most = len(array) // 2
                if NO_SUCH_ARRAY in str(error):
                    self._limits = replace(self._limits, array=most)
                continue
            self.jobs |= jobs
            taken |= {job: Queued("PENDING", "") for job in jobs.values()}
            groups = groups[len(array) :]
        return taken


def _on_devices(cell: PlannedCell, options: SlurmOptions) -> Any:
    world = options.tasks * options.nodes
    if cell.config.devices not in (1, world):
        raise ConfigError(
            "devices",
            f"{cell.config.devices}, but the launcher starts tasks_per_node × nodes = {world} processes; "
            "leave devices out",
        )
    config = replace(cell.config, devices=world)
    check_run(config)
    return config


def _job_of(cells: list[PlannedCell], plan: Plan, code: str, options: SlurmOptions) -> CellJob | GroupJob:
    first = cells[0]
    if len(cells) == 1:
        return CellJob(first.config, first.name, plan.study, code)
    file = trial_file(first, options, plan.output_dir) if options.cells_per_job == "auto" else None
    return GroupJob(for_the_node(cells), plan.study, plan.output_dir, code, file)


def _line_of(cells: list[PlannedCell], batch: Path, number: int, plan: Plan) -> str:
    """The folder of a job's log, below that of the records, and the job's name."""
    if len(cells) == 1:
        return f"{cells[0].id} {plan.study}/{cells[0].name}\n"
    return f"slurm/{batch.name}/job-{number} {plan.study}/{cells[0].name}+{len(cells) - 1}\n"


def _submit_array(groups: list[list[PlannedCell]], before: str, plan: Plan, options: SlurmOptions) -> dict[str, str]:
    """An array with a job for each of the groups of cells; returns identity → job."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    folder = plan.output_dir.absolute() / "slurm"
    number = 1
    while (batch := folder / f"{plan.study}-{time.strftime('%Y%m%d-%H%M%S')}-{number}").exists():
        number += 1
    batch.mkdir(parents=True)
    lines = [_line_of(cells, batch, number, plan) for number, cells in enumerate(groups)]
    (batch / "names.txt").write_text("".join(lines), encoding="utf-8")
    if (code := plan.code_of(groups[0][0])) is not None:
        (batch / "code").write_text(code.name, encoding="utf-8")
    executor = SlurmExecutor(batch, max_num_timeout=_ANY_NUMBER)
    executor.update_parameters(
        **options.parameters(),
        job_name=f"{plan.study}/{groups[0][0].name}" if len(groups) == 1 else plan.study,
        array_parallelism=options.array_parallelism or len(groups),
        dependency=f"afterok:{before}" if before else None,
        setup=_setup(batch, plan.output_dir.absolute(), options, code),
        teardown=_teardown(groups[0][0].config.study.attempts),
        srun_args=["--output=all", "--kill-on-bad-exit=1"],  # into the log of the cell, which the setup has opened
        stderr_to_stdout=True,
        wckey=None,
    )
    submitted_code = code_fingerprint(code or ROOT)
    try:
        with _outside_any_job(), contextlib.redirect_stderr(None), executor.batch():
            submitted = [executor.submit(_job_of(cells, plan, submitted_code, options)) for cells in groups]
    except FailedJobError as error:
        shutil.rmtree(batch)
        said = str(error).strip().replace("sbatch: error: ", "")
        raise TooManyError(said) if REFUSED.search(said) else ConfigError("hydra.launcher", said) from None
    jobs = {cell.id: job.job_id for cells, job in zip(groups, submitted, strict=True) for cell in cells}
    (batch / "jobs.json").write_text(json.dumps(sealed(jobs)), encoding="utf-8")
    return jobs


def _setup(batch: Path, output_dir: Path, options: SlurmOptions, code: Path | None) -> list[str]:
    """The lines of the batch script before srun. A snapshot is compared with its own list at every start."""
    root, folder, records = (shlex.quote(str(path)) for path in (code or ROOT, batch, output_dir))
    frozen = []
    if code is not None:
        frozen = [
            f'[ "$(sha256sum 2>&1 < {root}/{MANIFEST} | cut -c1-16)" = {code.name} ] &&'
            f" (cd {root} && sha256sum --quiet --check {MANIFEST}) || {{",
            f"    echo vitlab: the code of this study, {root}, is damaged or gone: nothing was trained on other code.",
            "    echo Restore it, or type the command of the study again, with study.code=live for today\\'s code.",
            f"    exit {NO_CODE}",
            "}",
            f"export {EXPECTED}={code.name}",
        ]
    return [
        f'read -r cell name < <(sed -n "$((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p" {folder}/names.txt)',
        f'mkdir -p {records}/"$cell"; attempts={records}/"$cell"/{ATTEMPTS}',
        '[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || [ ! -e "$attempts" ] || echo \'{"reset": true}\' >>"$attempts"',
        f'exec >>{records}/"$cell"/log.txt 2>&1',
        # the last task of an array has the array's own number as SLURM_JOB_ID, and would speak for all of them
        'job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        'scontrol update JobId="$job" JobName="$name"',
        "trap : TERM",
        *frozen,
        *options.setup,
        f"export PYTHONSAFEPATH=1 PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONUNBUFFERED=1 SUBMITIT_LOG_LEVEL=WARNING",
        # srun no longer inherits it
        'if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi',
    ]


def _teardown(attempts: int) -> list[str]:
    """The lines after it: what has saved, or was killed, goes on in another allocation of the same job.

    A cell counts its attempts when it begins, and ends as failed; here those are counted that die before they begin.
    """
    line = '{"killed": "exit code %s", "at": "%s", "host": "%s", "job": "%s"}'
    return [
        "code=$?",
        'case "$code" in',
        # saved before its limit, or asked to before Python could listen
        f'    {SAVED_AND_CONTINUE}|{128 + signal.SIGUSR2}) scontrol requeue "$job" && sleep 60;;',
        f"    {'|'.join(str(code) for code in KILLED)})",
        f"""        printf '{line}\\n' "$code" "$(date '+%F %T')" "$(hostname -s)" "$job" >>"$attempts\"""",
        """        dead=$(tac "$attempts" | sed '/"begun"\\|"reset"/q' | grep -c '"killed"')""",
        f'        [ "$dead" -lt {max(2, attempts)} ] && scontrol requeue "$job" && sleep 60;;',
        "esac",
        'exit "$code"',
    ]


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """A job that is submitted inside must not inherit the shape of one that this process may run in."""
    from submitit.helpers import clean_env

    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration is not None:
            os.environ["SLURM_CONF"] = configuration
        yield


@contextlib.contextmanager
def _submitting(output_dir: Path) -> Iterator[None]:
    """Held while looking at the queue and submitting, so that two commands do not submit a cell twice."""
    with locked(make_folder(output_dir / "slurm") / "lock", wait=math.inf):
        yield
