"""The work of run.py after Hydra's composition: a study, another task, or one rank of a torchrun."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence

from vitlab.cli.outputs import require_output_dir
from vitlab.cli.page_writer import PageWriter
from vitlab.cli.summary import describe_plan, summarise
from vitlab.config import FROM_ROOT, Config, named_after_folder
from vitlab.core.errors import UserError
from vitlab.study import snapshot
from vitlab.study.identity import identity
from vitlab.study.mixture import Compose
from vitlab.study.naming import Request, name_cells, study_name
from vitlab.study.plan import Plan, build_plan, study_content
from vitlab.study.preflight import Named, check_plan, check_requests, require_present, require_startable, resolved
from vitlab.study.progress import View
from vitlab.study.studies import write_study
from vitlab.study.uploads import tag_runs

RunCells = Callable[[Plan, View], dict[str, str]]
"""Runs a plan's cells somewhere; returns identity → outcome."""


def run_study(
    requests: Sequence[Request],
    run: RunCells,
    prove: Callable[[Named], None] | None = None,
    compose: Compose | None = None,
    *,
    freezes: bool = False,
) -> int:
    """Plan and train the requested cells; returns the exit code: 1 where a cell failed, 130 where it was interrupted.

    `prove` is how this machine tries whether cells can start (`require_startable`); None where `run` gives them to
    other machines. `compose` composes the overrides of an earlier command today. `freezes`: `run`
    trains each cell on the snapshot that the plan names. Raises ConfigError before anything starts.
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
    describe_plan(plan)
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
