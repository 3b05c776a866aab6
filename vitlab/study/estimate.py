"""Text of the study plan: cells, their states, the estimated cost, and what the seeds can detect."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from vitlab.config import CellConfig, ConfigError, ModelConfig, options
from vitlab.config.choices import count_parameters
from vitlab.core.device import free_memory
from vitlab.core.files import free_space, in_units
from vitlab.core.metrics import PRIMARY
from vitlab.data.order import pixel_bytes
from vitlab.study.capacity import require_devices
from vitlab.study.cell import cell_of
from vitlab.study.cost import Price, kind_here, measuring_command, price, throughputs, wall_seconds
from vitlab.study.plan import Plan, PlannedCell, counted, planned_steps
from vitlab.study.progress import duration, shortened
from vitlab.study.sharing import evaluation_sets, groups_of, window_bytes, window_words

RECOMMENDED_SEEDS = 5
"""With three the intervals are twice as wide (benchmarks/RESULTS.md): each row's scatter comes from its own seeds."""


def plan_lines(plan: Plan, columns: int | None = None) -> list[str]:
    """One line per cell, in the plan's order, and then those on the whole. Names give way to fit `columns`."""
    needed = plan.todo or plan.cells[0].config.study.dry_run
    here, known = kind_here(plan), throughputs(plan) if needed else []
    prices = {cell.id: price(plan, cell, known, here) for cell in plan.cells}
    return [*_cells(plan, prices, columns), *_models(plan), *_price(plan, prices, here), *_detectable(plan)]


def _cells(plan: Plan, prices: dict[str, Price], columns: int | None) -> list[str]:
    rows = []
    for cell in plan.cells:
        cost, coming = prices[cell.id], cell.selected and cell.state != "running" and cell.id not in plan.blocked
        text = f"{cost.steps:>9,} steps"
        if coming and cost.source and cost.device_seconds is not None and cost.wall_seconds is not None:
            text += f"  {cost.device_seconds / 3600:>8,.2f} {_unit(cost)}  about {duration(cost.wall_seconds)}"
        wait = f"  after {cell.needs}" if cell.needs and cell.selected else ""
        wait += _blocked_by(plan, cell) if cell.id in plan.blocked else ""
        alias = f"  = {', '.join(cell.aliases)}" if cell.aliases else ""
        rows.append((cell.id, cell.name, _standing(plan, cell), text + wait + alias))
    names, states = (max(len(row[i]) for row in rows) for i in (1, 2))
    if columns:
        names = max(12, min(names, columns - 18 - states - max(len(row[3]) for row in rows)))
    return [f"  {key}  {shortened(name, names):<{names}}  {state:<{states}}{rest}" for key, name, state, rest in rows]


def _blocked_by(plan: Plan, cell: PlannedCell) -> str:
    """What keeps a cell's pre-training from being used, and what to type."""
    if plan.state_of(cell.needs or "") == "damaged":
        return f", which is damaged: study.rerun='[{cell.needs}]'"
    return ", which failed: study.retry_failed=true"


def _models(plan: Plan) -> list[str]:
    """How large the models are, where there are several, or one is not as its choice has it."""
    found = {}
    for cell in plan.cells:
        content = cell_of(cell.config)
        found.setdefault(
            cell.config.labels.get("model", content.model.name), (content.model, content.dataset.num_classes)
        )
    if len(found) == 1 and next(iter(found)) in options("model"):
        return []
    sizes = [f"{label} {_parameters(model, classes) / 1e6:.3g} M" for label, (model, classes) in found.items()]
    return [f"models: {', '.join(sizes)} parameters"]


def _parameters(model: ModelConfig, num_classes: int) -> int:
    counted = count_parameters(model, num_classes)
    if counted is None:
        from vitlab.models.build import build_without_memory

        counted = sum(p.numel() for p in build_without_memory(model, num_classes).parameters())
    return counted


def _standing(plan: Plan, cell: PlannedCell) -> str:
    """Where the cell stands, and what this command does about it."""
    if cell.state == "running":
        return "running elsewhere"
    if cell.id in plan.blocked:
        return "blocked"
    if cell.again and cell.state != "missing":
        return f"{cell.state}: again"
    if cell.selected:
        return {"missing": "to train", "interrupted": "to continue"}.get(cell.state, f"{cell.state}: again")
    return "not needed" if cell.state == "missing" else cell.state


def _price(plan: Plan, prices: dict[str, Price], here: str | None) -> list[str]:
    todo = [c for c in plan.todo if c.state != "running" and c.id not in plan.blocked]
    if not todo:
        counts = Counter(_standing(plan, c) for c in plan.cells)
        retry = "; study.retry_failed=true repeats those that failed" if counts["failed"] else ""
        return [f"nothing to train: {', '.join(f'{n} {state}' for state, n in counts.items())}{retry}"]
    at_once = min(plan.capacity.cells, len(todo)) if plan.trains_here else len(todo)
    together = f", {at_once} at once ({plan.capacity.reason})" if plan.trains_here and len(todo) > 1 else ""
    lines = [f"{counted(len(todo), 'cell')} to train, {sum(prices[c.id].steps for c in todo):,} steps{together}"]
    priced = [c for c in todo if prices[c.id].source]
    if priced:
        total = sum(prices[c.id].device_seconds or 0.0 for c in priced) / 3600
        sources = {s.id: s for c in priced if (s := prices[c.id].source)}
        origin = ", ".join(f"{s.id} on {s.device_name}" for s in list(sources.values())[:3])
        on_this = "one cell at a time" if at_once == 1 else f"{at_once} cells at once"
        how = on_this if plan.trains_here else "all cells at once"
        wall = duration(wall_seconds(priced, prices, at_once))
        lines.append(
            f"price: about {total:,.2f} {_unit(prices[priced[0].id])}, {wall} with {how} (measured by {origin})"
        )
    lines += [*_lacking(plan), *_shared(plan, todo)]
    disk = sum(prices[c.id].disk_bytes or 0 for c in todo)
    if disk:
        free = free_space(plan.output_dir)
        short = "" if disk < free else ": NOT ENOUGH"
        lines.append(f"disk: about {in_units(disk)} of {in_units(free)} that are free{short}")
    return lines + _unmeasured(todo, prices, here)


def _lacking(plan: Plan) -> list[str]:
    """What the cells that train at once need more of than this machine has, for which it would refuse to train them."""
    try:
        if plan.trains_here:
            require_devices(plan.cells[0].config, plan.capacity)
    except ConfigError as error:
        return [f"devices: NOT ENOUGH on this machine: {error.text}"]
    return []


def _shared(plan: Plan, todo: list[PlannedCell]) -> list[str]:
    """Which cells share a loader, what sharing takes of the memory, and what several cells on a device cost."""
    lines, capacity = [], plan.capacity if plan.trains_here else None
    groups = groups_of(todo) if capacity and min(capacity.cells, len(todo)) > 1 else []
    if groups:
        window = window_words(max(groups, key=window_bytes))
        lines.append(
            f"one loader for cells that train at once and see the same crops ({window}): {shown_groups(groups)}"
        )
    if kept := sum(pixel_bytes(count, side) for (_, side), count in evaluation_sets(todo).items()):
        free = free_memory()
        here, short = f" of {in_units(free)} that are free", ": NOT ENOUGH, they are decoded each time" * (kept > free)
        where, short = (here, short) if plan.trains_here else (" of each job's", "")
        lines.append(f"memory: {in_units(kept)}{where} keep the images to evaluate on{short}")
    setting = todo[0].config.study
    if capacity and setting.cells_per_device is not None and (setting.dry_run or setting.cells_per_device == "auto"):
        images, each = sum(map(planned_images, todo)), capacity.together(len(todo))
        sharing, trial = max(map(len, groups), default=1), plan.trial
        alone, together = (images / trial.images_per_second(*k) for k in ((1, 1), (each, sharing)))
        lines.append(
            alone_and_shared(alone, together, f"{each} on a device ({trial.why(each, sharing)})", trial.on_gpu)
        )
        if each > trial.fitting:
            lines.append(
                f"memory: NOT ENOUGH for {each} cells on a device; {trial.fitting} fit: "
                f"study.cells_per_device={trial.fitting}"
            )
    return lines


def alone_and_shared(alone: float, shared: float, how: str, on_gpu: bool) -> str:
    """What training costs where each cell has a device of its own, and where they share one; device-seconds."""
    unit = "GPU-hours" if on_gpu else "device-hours"
    first, then = f"{alone / 3600:,.3g} {unit}", f"{shared / 3600:,.3g}"
    return f"training alone: about {first}, one cell at a time; shared: about {then}, {how}"


def planned_images(cell: PlannedCell) -> int:
    """Images that a cell trains on, in all its epochs."""
    return planned_steps(cell) * cell_of(cell.config).recipe.batch_size


def shown_groups(groups: Sequence[list[PlannedCell]]) -> str:
    """The names of cells by groups, of many groups the first."""
    more = f"; and {counted(len(groups) - 3, 'group')} more" if len(groups) > 3 else ""
    return "; ".join(map(_some_names, groups[:3])) + more


def _some_names(cells: list[PlannedCell]) -> str:
    names = [cell.name for cell in cells]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _unmeasured(todo: list[PlannedCell], prices: dict[str, Price], here: str | None) -> list[str]:
    """What has no price, or one from another kind of device, and the command that measures it: one per model."""
    lines = []
    none = [c for c in todo if prices[c.id].source is None]
    other = [c for c in todo if here and (s := prices[c.id].source) and s.device_name != here]
    on_this = f" on this kind of device ({here})" if here else ""
    for cells, why in (
        (none, f"without a price: no cell of their model has been trained{on_this}"),
        (other, f"priced after another kind of device: no cell of their model has been trained{on_this}"),
    ):
        models = {c.config.cell.model: c for c in reversed(cells)}
        if cells:
            lines.append(f"{len(cells)} {why}; one epoch measures it:")
            lines += [f"    {measuring_command(cell)}" for cell in models.values()]
    return lines


def _unit(cost: Price) -> str:
    return "device-hours" if cost.source and "CPU" in cost.source.device_name else "GPU-hours"


def _detectable(plan: Plan) -> list[str]:
    """The smallest difference to a baseline that the planned seeds find four times in five, for each data set."""
    planned = [c for c in plan.cells if c.config.study.part == "cell"]
    conditions = _conditions([c.config.cell for c in planned])
    seeds = Counter(conditions)
    columns: dict[tuple, list[CellConfig]] = {}  # a baseline is compared with cells of its own model and data set
    for cell in seeds:
        columns.setdefault((cell.model, cell.dataset), []).append(cell)
    compared = [column for column in columns.values() if len(column) > 1]
    if not compared:
        return []
    n = min(seeds[cell] for column in compared for cell in column)
    if n < 2:
        return ["one seed each: no difference between cells can be distinguished from noise; add seed=0,1,2,3,4"]
    from vitlab.core.comparisons import assumed_scatter  # scipy: only where it is used

    measured = _scatter(plan, planned, conditions)
    k = sum(len(column) - 1 for column in compared)
    sizes = [len(column) - 1 for column in compared]
    least, better = (_least(sizes, m) for m in (n, max(n, RECOMMENDED_SEEDS)))
    found: dict[str, list[str]] = {}
    for data in dict.fromkeys(column[0].dataset for column in compared):
        images = data.num_eval or round((data.num_train or 0) * data.val_fraction)
        scatter = measured or assumed_scatter(images)
        origin = "as measured in finished cells" if measured else f"assumed for {images:,} evaluation images"
        more = f"; {RECOMMENDED_SEEDS} seeds: {better * scatter:.2f}" if n < RECOMMENDED_SEEDS else ""
        text = (
            f"{n} seeds and {counted(k, 'comparison')} detect a difference of {least * scatter:.2f} points to the "
            f"baseline (80 % power) if seeds scatter by {scatter:.2f} points ({origin}){more}"
        )
        names = found.setdefault(text, [])
        names += [str(data.name)] * (str(data.name) not in names)
    return [text if len(found) == 1 else f"{', '.join(names)}: {text}" for text, names in found.items()]


def _conditions(cells: Sequence[CellConfig]) -> list[CellConfig]:
    """Each cell without its seed, and without further seeds that follow it in all cells that are otherwise alike."""

    def without(cell: CellConfig) -> CellConfig:
        data = dataclasses.replace(cell.dataset, subset_seed=None)
        return dataclasses.replace(cell, dataset=data, pretrain=dataclasses.replace(cell.pretrain, seed=0), seed=0)

    alike: dict[CellConfig, list[CellConfig]] = {}
    keys = [without(cell) for cell in cells]
    for cell, key in zip(cells, keys, strict=True):
        alike.setdefault(key, []).append(cell)
    seeds = {key: _follow(group) for key, group in alike.items()}
    found = []
    for cell, key in zip(cells, keys, strict=True):
        starts_follow, images_follow = seeds[key]
        start, data = cell.pretrain, cell.dataset
        if starts_follow:
            start = dataclasses.replace(start, seed=0)
        if images_follow:
            data = dataclasses.replace(data, subset_seed=0)
        found.append(dataclasses.replace(cell, pretrain=start, dataset=data, seed=0))
    return found


def _follow(alike: Sequence[CellConfig]) -> tuple[bool, bool]:
    """Whether the seeds of the pre-trainings, and of the choice of images, are those of the cells."""
    starts = all(cell.pretrain.seed == cell.seed for cell in alike)
    return starts, all(cell.dataset.subset_seed == cell.seed for cell in alike)


def _least(sizes: Sequence[int], seeds: int) -> float:
    """The least difference that baselines with so many rows each detect, in deviations between seeds."""
    from vitlab.core.comparisons import least_differences, with_scatter

    groups, pairs = [], []
    for size in sizes:
        pairs += [(len(groups), len(groups) + i) for i in range(1, size + 1)]
        groups += [with_scatter(seeds, 1.0)] * (size + 1)
    return max(v for v in least_differences(groups, pairs) if v is not None)


def _scatter(plan: Plan, cells: Sequence[PlannedCell], conditions: Sequence[CellConfig]) -> float | None:
    """The pooled standard deviation of top-1 between seeds of equal cells, or None without two such."""
    groups: dict[CellConfig, list[float]] = {}
    for cell, condition in zip(cells, conditions, strict=True):
        result = plan.found(cell).result
        if result and result["last"]:
            groups.setdefault(condition, []).append(result["last"][PRIMARY])
    several = [values for values in groups.values() if len(values) > 1]
    freedom = sum(len(v) - 1 for v in several)
    if not freedom:
        return None
    return math.sqrt(sum(sum((x - sum(v) / len(v)) ** 2 for x in v) for v in several) / freedom)
