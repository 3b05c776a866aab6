"""What run.py does once Hydra has composed: a study, one of the other tasks, or this rank of a torchrun."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitlab.cli.execute import Prove, RunCells, execute, summarise
from vitlab.cli.outputs import require_output_dir
from vitlab.config import FROM_ROOT, CellConfig, Config, ConfigError, DatasetConfig, check_cell, named_after_folder
from vitlab.config.effects import idle_among, idle_fields, require_effect, settle
from vitlab.core.errors import UserError
from vitlab.core.wandb import require_key
from vitlab.data.sources.claims import check_claims
from vitlab.data.sources.class_list import resolve_class_list
from vitlab.data.sources.survey import describe
from vitlab.study.guard import check_data
from vitlab.study.identity import identity
from vitlab.study.mixture import Compose
from vitlab.study.plan import Request, build_plan, name_cells, study_content, study_name
from vitlab.study.progress import View
from vitlab.study.record import write_study

Resolve = Callable[..., DatasetConfig]


def run_study(
    requests: Sequence[Request], run: RunCells, prove: Prove | None = None, compose: Compose | None = None
) -> int:
    """Plan and train the requested cells; returns the exit code. Raises ConfigError before anything starts.

    `prove` sees that the cells can start here; None where `run` gives them to other machines. `compose` tells what the
    overrides of an earlier command mean today.
    """
    for config in {r.config.cell.dataset: r.config for r in requests}.values():
        require_output_dir(config)
    require_key(requests[0].config.wandb.mode)
    requests = resolved(requests)
    name = study_name(requests[0].config, requests)
    if "RANK" in os.environ and "SLURM_JOB_ID" not in os.environ:
        return _run_rank(requests, name)
    for line in _names_taken(requests):
        print(line)
    for dataset in dict.fromkeys(d for r in requests for d in (r.config.cell.dataset, r.config.cell.pretrain.dataset)):
        for line in describe(dataset) if dataset else ():
            print(line)
    for line in _try_starts([request.config.cell for request in requests]):
        print(line)
    plan = check_data(build_plan(requests, name, trains_here=prove is not None, compose=compose))
    return execute(plan, requests[0].config, run, prove)


def resolved(requests: Sequence[Request]) -> list[Request]:
    """The requests with the class lists of their data filled in, checked again. Raises ConfigError for a mistake."""
    resolve = functools.cache(resolve_class_list)
    requests = [dataclasses.replace(r, config=_with_class_list(r.config, resolve)) for r in requests]
    require_effect([request.config for request in requests])
    return requests


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
    from vitlab.study.launch_local import run_on_this_machine

    config = _with_class_list(config)
    request = Request((), config)
    name = name_cells([request])[0]
    return run_on_this_machine(config, study_name(config, [request]), name, lambda event: None)


def _run_rank(requests: Sequence[Request], study: str) -> int:
    """This process is one of a torchrun: they train one cell together."""
    if len(requests) > 1:
        raise UserError(
            f"torchrun trains one cell, and this command means {len(requests)}; for a sweep let vitlab start the "
            f"processes: python run.py -m … devices={os.environ.get('WORLD_SIZE', 8)}"
        )
    from vitlab.study.cell import cell_of, run_cell

    config = dataclasses.replace(requests[0].config, devices=int(os.environ["WORLD_SIZE"]))
    name = name_cells(requests)[0]
    if os.environ["RANK"] != "0":
        return 130 if run_cell(config, study=study, name=name) == "interrupted" else 0
    plan = check_data(build_plan(requests, study, older_names=False))
    write_study(plan.output_dir, study, study_content(plan, config))
    cell = next(c for c in plan.cells if c.id == identity(cell_of(config)))
    if cell.again and cell.state != "missing":
        print(f"archived {plan.record(cell).archive()}")
    plan = dataclasses.replace(plan, cells=(dataclasses.replace(cell, selected=True),))
    with View(plan) as view:
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


def _try_starts(cells: Sequence[CellConfig]) -> list[str]:
    """Put every checkpoint file that cells start from into their models, to refuse a wrong one before any cell is
    trained; returns a line of what became of each file's tensors."""
    lines: dict[str, None] = {}
    tried: set[tuple[Any, ...]] = set()
    for cell in cells:
        start, classes = cell.pretrain, cell.dataset.num_classes
        key = (start.path, start.digest, start.weights, start.keep_head, cell.model, classes)
        if start.kind != "checkpoint" or key in tried:
            continue
        from vitlab.models.build import build_model
        from vitlab.models.weights import load_start

        assert start.path and classes, "filled in by parse and by the class list"
        tried.add(key)
        weights, report = load_start(build_model(cell.model, classes), start, Path(start.path))
        lines[f"{weights.describe()}: {report.summary(most=6)}"] = None
    return list(lines)


def _with_class_list(config: Config, resolve: Resolve = resolve_class_list) -> Config:
    """Fill in a folder's class count and image counts, for the cell and its pre-training, and check again."""
    cell, rerun = config.cell, config.study.rerun == "all"
    dataset = resolve(cell.dataset, config.output_dir, rerun)
    start = cell.pretrain
    if start.dataset is not None:
        try:
            start = dataclasses.replace(start, dataset=resolve(start.dataset, config.output_dir, rerun, "pretrain."))
        except ConfigError as error:
            raise error.under("pretrain") from None
    _check_claims(config, dataset, start.dataset)
    if dataset is cell.dataset and start.dataset is cell.pretrain.dataset:
        return config
    cell = dataclasses.replace(cell, dataset=dataset, pretrain=start)
    check_cell(cell)
    before = idle_fields(config.cell)
    now_idle = {key: only for key, only in idle_fields(cell).items() if key not in before}  # as the counts say
    idle = {**config.idle, **idle_among(config.typed, now_idle)}
    return dataclasses.replace(config, cell=settle(cell), idle=idle)


def _check_claims(config: Config, dataset: DatasetConfig, before: DatasetConfig | None) -> None:
    """Refuse counts that the data are known to contradict, for the cell and for its pre-training."""
    for data, prefix in ((dataset, "dataset."), (before, "pretrain.dataset.")):
        if data is not None:
            try:
                check_claims(data, [key.removeprefix(prefix) for key in config.typed if key.startswith(prefix)])
            except ConfigError as error:
                raise error if prefix == "dataset." else error.under("pretrain") from None


TASKS = {
    "evaluate": "vitlab.cli.evaluate_task:run_evaluate",
    "explain": "vitlab.cli.explain_task:run_explain",
    "fractaldb": "vitlab.cli.fractal_task:run_fractaldb",
    "pack": "vitlab.cli.pack_task:run_pack",
    "preview": "vitlab.cli.preview_task:run_preview",
}
"""Task → where its function is; imported only when it runs."""


def load_task(place: str) -> Callable[[Config], list[str]]:
    """The function at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
