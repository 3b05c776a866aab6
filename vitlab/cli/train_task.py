"""The work of run.py after Hydra's composition: a study, another task, or one rank of a torchrun.

The command of a study prints the plan first, and at the end the outcome of every cell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence

from vitlab.cli.outputs import require_output_dir
from vitlab.cli.page_writer import PageWriter
from vitlab.config import FROM_ROOT, Config, named_after_folder
from vitlab.core.errors import UserError
from vitlab.study import snapshot
from vitlab.study.contents import Contents, read_contents
from vitlab.study.estimate import plan_lines
from vitlab.study.identity import Request, identity, name_cells, study_name
from vitlab.study.mixture import Compose
from vitlab.study.plan import Plan, PlannedCell, build_plan, counted, study_content
from vitlab.study.preflight import Named, check_plan, check_requests, require_present, require_startable, resolved
from vitlab.study.progress import MARKS, View
from vitlab.study.record import failure_line
from vitlab.study.studies import write_study
from vitlab.study.uploads import describe_uploads, tag_runs

RunCells = Callable[[Plan, View], dict[str, str]]
"""Runs a plan's cells somewhere; returns identity → outcome."""


def run_study(
    requests: Sequence[Request],
    run: RunCells,
    prove: Callable[[Named], None] | None = None,
    compose: Compose | None = None,
    about: Callable[[Plan], list[str]] | None = None,
    *,
    freezes: bool = False,
) -> int:
    """Plan and train the requested cells; returns the exit code: 1 where a cell failed, 130 where it was interrupted.

    `prove` is how this machine tries whether cells can start (`require_startable`); None where `run` gives them to
    other machines. `compose` composes the overrides of an earlier command today. `about` gives
    further lines of a plan, or refuses it. `freezes`: `run` trains each cell on the snapshot that the plan names.
    Raises ConfigError before anything starts.
    """
    for config in {r.config.cell.dataset: r.config for r in requests}.values():
        require_output_dir(config)
    if "RANK" in os.environ and "SLURM_JOB_ID" not in os.environ:
        return _run_rank(resolved(requests))
    for line in _names_taken(requests):
        print(line)
    requests = check_requests(requests)
    config = requests[0].config
    frozen = freezes and config.study.code == "frozen"
    plan = build_plan(
        requests, study_name(config, requests), trains_here=prove is not None, compose=compose, frozen=frozen
    )
    plan = check_plan(plan)
    describe_plan(plan, about(plan) if about else ())
    if config.study.dry_run:
        return 0
    if plan.todo and prove:
        require_present(plan)
    with snapshot.frozen(plan) if frozen else contextlib.nullcontext(plan) as plan:
        if plan.todo and prove:
            require_startable(plan, prove)
        write_study(plan.output_dir, plan.study, study_content(plan, config))
        outcomes: dict[str, str] = {}
        for cell in plan.todo:
            if cell.again and cell.state != "missing":
                print(f"archived {plan.record(cell).archive()}")
        with PageWriter(plan.output_dir, plan.study, config.plugins, goes_on=bool(plan.todo)) as page:
            if plan.todo:
                with View(plan) as view, page.saying(view.say):
                    outcomes = run(plan, view)
            if config.wandb.mode != "disabled":
                tag_runs([plan.record(cell) for cell in plan.cells if not cell.selected], plan.study)
            return summarise(plan, outcomes)


def run_task(requests: Sequence[Request]) -> int:
    """Run a task other than training and print its closing lines; returns the exit code. Raises UserError for a sweep
    of configurations."""
    config = only_configuration(requests)
    require_output_dir(config)
    for line in load_task(TASKS[config.task])(config):
        print(line)
    return 0


def only_configuration(requests: Sequence[Request]) -> Config:
    """The configuration of a task that is not a study. Raises UserError for several, with what to type instead."""
    config = requests[0].config
    if len(requests) > 1:
        text = f"task={config.task} takes one configuration, not a sweep of {len(requests)}"
        names = list(dict.fromkeys(request.config.labels.get("augment", "") for request in requests))
        if config.task == "preview" and len(names) == len(requests):
            text += (
                f"; it draws several conditions on one sheet: in place of augment={','.join(names)} type "
                f"preview.conditions='[{','.join(names)}]'"
            )
        raise UserError(text)
    return config


def run_one(config: Config) -> str:
    """Train or continue one cell in this process: what a stock launcher of Hydra's calls. Returns the outcome."""
    from vitlab.study.cell import run_cell

    (request,) = resolved([Request((), config)])
    return run_cell(request.config, study=study_name(request.config, [request]), name=name_cells([request])[0])


def _run_rank(requests: Sequence[Request]) -> int:
    """This process is one of a torchrun: they train one cell together."""
    if len(requests) > 1:
        raise UserError(
            f"torchrun trains one cell, and this command means {len(requests)}; for a sweep let vitlab start the "
            f"processes: python run.py -m … devices={os.environ.get('WORLD_SIZE', 8)}"
        )
    from vitlab.study.cell import cell_of, run_cell

    study, name = study_name(requests[0].config, requests), name_cells(requests)[0]
    config = dataclasses.replace(requests[0].config, devices=int(os.environ["WORLD_SIZE"]))
    if os.environ["RANK"] != "0":
        return 130 if run_cell(config, study=study, name=name) == "interrupted" else 0
    plan = check_plan(build_plan(requests, study, older_names=False))
    write_study(plan.output_dir, study, study_content(plan, config))
    cell = next(c for c in plan.cells if c.id == identity(cell_of(config)))
    if cell.again and cell.state != "missing":
        print(f"archived {plan.record(cell).archive()}")
    plan = dataclasses.replace(plan, cells=(dataclasses.replace(cell, selected=True),))
    with PageWriter(plan.output_dir, study, config.plugins) as page, View(plan) as view, page.saying(view.say):
        outcome = run_cell(config, study=study, name=name, report=lambda event: view.event(cell.id, event))
    return summarise(plan, {cell.id: outcome})


def _names_taken(requests: Sequence[Request]) -> list[str]:
    """A line for each data set that was given no name and takes its folder's."""
    lines = {}
    for request in requests:
        dataset, label = request.config.cell.dataset, request.config.labels.get("dataset")
        unnamed = dataclasses.replace(dataset, name=FROM_ROOT)
        typed = any(override.startswith("dataset.name=") for override in request.overrides)
        if label == "folder" and not typed and dataset.name == named_after_folder(unnamed).name:
            where = dataset.root or dataset.pack or dataset.class_list
            lines[f"data set {dataset.name!r}: named after {where} (dataset.name=NAME gives it another name)"] = None
    return list(lines)


TASKS = {
    "evaluate": "vitlab.cli.evaluate_task:run_evaluate",
    "explain": "vitlab.cli.explain_task:run_explain",
    "export": "vitlab.cli.export_task:run_export",
    "fractaldb": "vitlab.cli.fractal_task:run_fractaldb",
    "pack": "vitlab.cli.pack_task:run_pack",
    "preview": "vitlab.cli.preview_task:run_preview",
}
"""Task → where its function is; imported only when it runs."""


def load_task(place: str) -> Callable[[Config], list[str]]:
    """The function at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def describe_plan(plan: Plan, further: Sequence[str] = ()) -> None:
    """Print a plan, and after a dry run how to carry it out. Of a large study only the lines on the whole are shown."""
    lines = plan_lines(plan, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    dry = plan.cells[0].config.study.dry_run
    cells = counted(len(plan.cells), "cell")
    print(f"study {plan.study}: {cells}, {len(plan.todo)} to train, records in {plan.output_dir}/")
    for line in lines if dry or len(plan.cells) <= 40 else lines[len(plan.cells) :]:
        print(line)
    for line in further:
        print(line)
    for note in plan.notes:
        print(f"note: {note}")
    if dry:
        print(f"dry run: nothing was trained. To train: {command(without='study.dry_run')}")


def summarise(plan: Plan, outcomes: dict[str, str]) -> int:
    """Print the outcome of every cell and the likely next command; returns the exit code."""
    bad, damaged, shown = 0, [], set()
    for cell in plan.cells:
        found = read_contents(plan.record(cell), thorough=False) if plan.todo else plan.found(cell)
        outcome = found.state if found.state in ("finished", "damaged") else outcomes.get(cell.id, found.state)
        if outcome == "interrupted" and found.state in ("missing", "failed"):
            outcome = "not started"  # the study was, before this cell's turn
        about = f"{_figure(found)}{_changed(found)}" if outcome == "finished" else ""
        print(f"{MARKS.get(outcome, '·')} {cell.name}  {cell.id}  {outcome}{about}")
        if outcome in ("failed", "killed", "blocked"):
            bad += 1
            _show_failure(plan, cell, outcome, shown)
        elif outcome == "damaged":
            damaged.append(cell.id)
            for fault in found.faults if cell.state != "damaged" else ():  # else the plan has named them
                print(f"    {fault}")
    for line in describe_uploads([plan.record(cell) for cell in plan.cells], plan.output_dir):
        print(line)
    if "submitted" in outcomes.values():
        again = command(without=("study.rerun", "study.detach"))
        print(f"left to Slurm; the state: squeue --me; to see its end and submit what is missing: {again}")
        return 1 if bad else 0
    if "interrupted" in outcomes.values():
        print(f"interrupted; everything is saved. To continue: {command(without='study.rerun')}")
        return 130
    again = command(without=("study.rerun", "study.retry_failed"))
    if bad:
        print(f"{bad} of {counted(len(plan.cells), 'cell')} did not finish.")
        print(f"To try them again: {again} study.retry_failed=true")
    if damaged:
        print(f"{len(damaged)} of {counted(len(plan.cells), 'cell')} cannot be used: damaged.")
        print(f"To train them again: {again} study.rerun='[{','.join(damaged)}]'")
    if bad or damaged:
        return 1
    if "running elsewhere" in outcomes.values():
        print("cells that another process is training were left to it")
    where = "" if str(plan.output_dir) == "runs" else f" output_dir={plan.output_dir}"
    print(f"wrote {plan.output_dir}/<cell>/result.json, metrics.jsonl, last.pt, …; next: python analyze.py{where}")
    return 0


def _figure(found: Contents) -> str:
    result = found.result or {}
    last = result.get("last")
    if not last:
        return ""
    bad = [words for split in (result.get("bad_images") or {}).values() for words in split]
    left_out = f"  (bad images left out: {len(bad)}, the first: {bad[0]})" if bad else ""
    return f"  top-1 {last['top1']:.2f} (last epoch), best {result['best']['top1']:.2f}{left_out}"


def _changed(found: Contents) -> str:
    """A remark if the code changed after submission."""
    origin = found.provenance or {}
    return "  (code changed since it was submitted)" if origin.get("code_changed_since_submission") else ""


def _show_failure(plan: Plan, cell: PlannedCell, outcome: str, shown: set[str]) -> None:
    """Print why a cell did not finish; of a bug the traceback, unless it is among those that are `shown` already."""
    record = plan.record(cell)
    failure = record.read_intact("failure.json")
    if outcome == "blocked":
        print(f"    {plan.blocked_by(cell)}")
    elif failure:
        print(f"    {failure_line(failure)}")
        frames = failure.get("traceback", "").strip()
        for line in record.log_tail(3) if failure["type"] == "Killed" else ():  # it could not record the reason itself
            print(f"    | {line}")
        for line in ["the traceback is the one above"] if frames in shown else frames.splitlines():
            print(f"    | {line}")
        shown |= {frames} - {""}
        print(f"    log: {record.folder / 'log.txt'}")


def command(without: str | tuple[str, ...] = ()) -> str:
    """The command that the user typed, to be typed again, without the words that begin so."""
    words = [word for word in sys.argv if not (without and word.startswith(without))]
    return f"{program(os.environ)} {shlex.join(words)}"


def program(known: Mapping[str, str]) -> str:
    """What precedes run.py in a command, by the environment: `python`, or torchrun with its processes."""
    if "TORCHELASTIC_RUN_ID" not in known:
        return "python"
    one_machine = known["LOCAL_WORLD_SIZE"] == known["WORLD_SIZE"]
    return f"torchrun --nproc-per-node={known['WORLD_SIZE']}" if one_machine else "torchrun …"
