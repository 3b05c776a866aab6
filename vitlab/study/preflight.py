"""Whether a study can start: asked here, once, before anything is recorded or trained.

`check_requests` completes and checks what was typed, `check_plan` compares the records with the data on the disk, and
`require_startable` looks for the devices, the data and the models of the cells to train on this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitlab.config import CellConfig, Config, ConfigError, DatasetConfig, check_cell, find_checkpoint
from vitlab.config.effects import idle_among, idle_fields, require_effect, settle
from vitlab.core.errors import UserError, as_user_error
from vitlab.core.files import in_units
from vitlab.core.hub import in_cache, look_up, named_on_hub
from vitlab.core.wandb import require_accepted_key, require_key
from vitlab.data.sources.catalogue import describe_changes, known_data, other_name, resolve_class_list
from vitlab.data.sources.claims import check_claims, require_data
from vitlab.data.sources.on_disk import inventories
from vitlab.data.sources.staging import require_large_files
from vitlab.data.sources.survey import describe_survey
from vitlab.study.capacity import require_devices
from vitlab.study.cell import cell_of
from vitlab.study.identity import Request
from vitlab.study.plan import Plan, PlannedCell, counted
from vitlab.study.provenance import data_changes
from vitlab.study.sharing import require_shared_memory
from vitlab.study.snapshot import importing_from

MANY = 8
"""Cells from which on a message proposes study.rerun=all in place of their identities."""
Resolve = Callable[..., DatasetConfig]
Named = Sequence[tuple[str, Config]]
"""The names of cells and their configurations."""


def check_requests(requests: Sequence[Request], say: Callable[[str], None] = print) -> list[Request]:
    """The requests with the class lists of their data filled in, after a look at the checkpoints that cells start from.

    `say` gets a line on each data set and each checkpoint. Raises ConfigError for a mistake.
    """
    require_key(requests[0].config.wandb.mode)
    requests = resolved(requests)
    cells = [request.config.cell for request in requests]
    downloads = not requests[0].config.study.dry_run
    for dataset in dict.fromkeys(data for cell in cells for data in (cell.dataset, cell.pretrain.dataset)):
        for line in describe_survey(dataset) if dataset else ():
            say(line)
        if dataset:
            require_large_files(dataset)
    for line in _try_starts(cells, downloads):
        say(line)
    return requests


def resolved(requests: Sequence[Request]) -> list[Request]:
    """The requests with the class lists of their data filled in, checked again. Raises ConfigError for a mistake."""
    resolve = functools.cache(resolve_class_list)
    requests = [dataclasses.replace(r, config=_with_class_list(r.config, resolve)) for r in requests]
    require_effect([request.config for request in requests])
    return requests


def check_plan(plan: Plan) -> Plan:
    """The plan, with a note for each data set that could not be compared.

    Raises ConfigError where cells were begun with other data than those on the disk, or where the name of a data set
    means others in this output_dir, naming the images that differ and what to do.
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
            start = (plan.found(cell).provenance or {}).get("start") or {}
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
    place = dataset.root, dataset.table, dataset.eval_table, dataset.eval_split, dataset.pack
    return dataset.name, dataset.kind, *place, dataset.fractal, dataset.verify, splits


def _check(plan: Plan, cells: Sequence[PlannedCell]) -> list[str]:
    """Compare the records of cells of one data set; returns notes."""
    dataset, folder = cell_of(cells[0].config).dataset, plan.output_dir
    begun = [c for c in cells if not c.again and (c.selected or c.state in ("finished", "running"))]
    origins = {c.id: plan.found(c).provenance for c in begun if c.state != "missing"}
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
    """The value of study.rerun that trains these cells again, in addition to those that are to be already: `all` where
    that is shorter and means no more."""
    begun = {c.id for c in plan.cells if c.state != "missing"}
    wanted = [c.id for c in plan.cells if c.again or c.id in ended or c.needs in ended]
    return "all" if begun <= set(wanted) and len(wanted) >= MANY else f"'[{','.join(wanted)}]'"


def _prefix(cells: Sequence[PlannedCell]) -> str:
    return "pretrain." if cells[0].config.study.part == "pretraining" else ""


def require_present(plan: Plan) -> None:
    """See that the devices and the data of every cell to train are there, at once: torch takes seconds to load.

    Raises UserError, before anything is written.
    """
    require_devices(plan.cells[0].config, plan.capacity)
    require_shared_memory(plan)
    require_all_data([(cell.name, cell.config) for cell in plan.todo])


def require_startable(plan: Plan, prove_all: Callable[[Named], None]) -> None:
    """See that every cell to train can start on this machine. Raises UserError, before anything is recorded.

    `prove_all` calls `prove`, here or in a process that has torch loaded. That process is also the one from which cells
    are started: it has to run the plan's code.
    """
    with importing_from(plan.code):
        prove_all([(cell.name, cell.config) for cell in plan.todo])


def prove(named: Named) -> None:
    """Look for the device, the data and the model of these cells, each once.

    Raises ConfigError naming the key, and the cell where there are several. Nothing is trained, and of a tree of image
    files only the top is read.
    """
    from vitlab.core.device import pick_device
    from vitlab.train.step import require_tunable

    for mode in {config.wandb.mode for _, config in named}:
        require_accepted_key(mode)
    require_all_data(named)
    seen: set[object] = set()
    for name, config in named:
        cell = cell_of(config)
        with _nothing_started(name, config, alone=len(named) == 1):
            if "device" not in seen:
                pick_device(config.device)
            seen.add("device")
            if config.tune:
                require_tunable(pick_device(config.device), cell.recipe.compile)
            if cell.dataset not in seen:
                _data(cell)
            label = config.labels.get("model", "")
            how = cell.recipe.drop_path, cell.recipe.train_mode, cell.recipe.batch_size
            if (model := (cell.model, cell.dataset.num_classes, label, how, config.device_batch)) not in seen:
                _model(cell, label, cell.recipe.batch_size // config.devices, config.device_batch)
            seen |= {cell.dataset, model}


def require_all_data(named: Named) -> None:
    """See that the data of these cells are there, each once, without torch. Raises ConfigError like `prove`."""
    seen: set[object] = set()
    for name, config in named:
        dataset = cell_of(config).dataset
        if dataset not in seen:
            with _nothing_started(name, config, alone=len(named) == 1):
                require_data(dataset)
        seen.add(dataset)


@contextlib.contextmanager
def _nothing_started(name: str, config: Config, *, alone: bool) -> Iterator[None]:
    """A user's mistake found inside names the cell, unless it is the only one, and says that nothing was started."""
    try:
        yield
    except Exception as error:
        if (wrong := as_user_error(error)) is None:
            raise
        if isinstance(wrong, ConfigError) and config.study.part == "pretraining":
            wrong = wrong.under("pretrain")
        wrong = wrong if alone else wrong.in_cell(name)
        raise wrong.extended("; nothing was started") from None


def _data(cell: CellConfig) -> None:
    from vitlab.data.sources.registry import build_source

    data = cell.dataset
    if data.pack or data.kind not in ("folder", "fractal"):  # quickly read
        build_source(data, "train")
        if data.num_eval != 0 or data.val_fraction > 0:
            build_source(data, "eval")


def _model(cell: CellConfig, label: str, share: int, device_batch: int | None) -> None:
    from vitlab.config.choices import check_label
    from vitlab.models.build import build_without_memory
    from vitlab.models.drop_path import install_drop_path
    from vitlab.models.trainable import require_whole_batches, try_training

    classes = cell.dataset.num_classes or 1000
    network = build_without_memory(cell.model, classes, drop_path=cell.recipe.drop_path)
    trial = try_training(network, cell.model, classes)
    install_drop_path(network, cell.recipe.drop_path, trial.calls)
    if cell.recipe.train_mode == "train":
        require_whole_batches(network, share, device_batch, cell.model.grad_checkpointing)
    check_label(label, sum(p.numel() for p in network.parameters()), classes)


def _try_starts(cells: Sequence[CellConfig], downloads: bool) -> list[str]:
    """Put every checkpoint file that cells start from into their models, to refuse a wrong one before any cell is
    trained; returns a line of what became of each file's tensors. What is on the hub is downloaded here, once."""
    lines: dict[str, None] = {}
    tried: set[tuple[Any, ...]] = set()
    for cell in cells:
        start, classes = cell.pretrain, cell.dataset.num_classes
        key = (start.path, start.digest, start.weights, start.keep_head, cell.model, classes)
        if start.kind != "checkpoint" or key in tried:
            continue
        assert start.path and classes, "filled in by parse and by the class list"
        if not downloads and (line := _not_yet_here(start.path)):
            lines[line] = None
            continue
        from vitlab.models.build import build_model
        from vitlab.models.weights import load_start

        tried.add(key)
        file = find_checkpoint(start.path, "", "pretrain.path")
        weights, report = load_start(build_model(cell.model, classes), start, file)
        lines[f"{weights.describe()}: {report.summary(most=6)}"] = None
    return list(lines)


def _not_yet_here(path: str) -> str | None:
    """A line on weights of the hub's that a plan need not download; None for those that are on the disk."""
    if Path(path).exists() or (on_hub := named_on_hub(path)) is None or in_cache(on_hub) is not None:
        return None
    found = look_up(on_hub, "pretrain.path")
    return f"{found.name}: {in_units(found.size)}, downloaded before the first cell that starts from it"


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
    if dataset == cell.dataset and start.dataset == cell.pretrain.dataset:
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
