"""What a plan costs, from what earlier cells measured; where nothing was measured, that is what is said."""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vitlab.config import CellConfig, experiment
from vitlab.data.order import epoch_length
from vitlab.study.plan import Plan, PlannedCell, throughputs
from vitlab.study.provenance import device_kind
from vitlab.study.run import cell_of
from vitlab.study.view import duration

_BYTES_PER_PARAMETER = 4 * 3  # weights and AdamW's two moments, float32


@dataclass(frozen=True)
class Price:
    """Of one cell. Seconds and bytes are None where no earlier cell of the same model tells."""

    steps: int
    device_seconds: float | None
    wall_seconds: float | None
    disk_bytes: int | None
    source: str | None


def price(cell: PlannedCell, known: list[dict[str, Any]]) -> Price:
    """The price of training a cell from its start, after `known` cells (`throughputs`) of the same model.

    Those trained on this machine's kind of device count first, then those of the same precision, then the latest.
    """
    recipe, data = cell_of(cell.config).recipe, cell_of(cell.config).dataset
    length = epoch_length(data.train_images, recipe.repeated_augmentation)
    steps = recipe.epochs * (length // recipe.batch_size)
    model = _experiment(cell.config.cell.model)
    here = device_kind(cell.config.device)
    same = [k for k in known if k["model"] == model]
    if not same:
        return Price(steps, None, None, None, None)
    base = max(same, key=lambda k: (k["device_name"] == here, k["precision"] == recipe.precision, k["finished_at"]))
    result, before = base["result"], base["config"]["experiment"]
    per_image = result["device_seconds"] / (before["recipe"]["epochs"] * max(1, result["num_train"]))
    device_seconds = per_image * recipe.epochs * length
    copies = 3 + bool(recipe.keep_every) * recipe.epochs // max(1, recipe.keep_every)
    disk = copies * _BYTES_PER_PARAMETER * result["num_parameters"] * (4 if recipe.ema_decay else 3) // 3
    return Price(
        steps, device_seconds, device_seconds / cell.config.devices, disk, f"{base['id']} on {base['device_name']}"
    )


_experiment = functools.cache(experiment)


def describe(plan: Plan) -> list[str]:
    """The plan as lines of text: every cell with its state, the price, and what the seeds can detect."""
    known = throughputs(plan.output_dir) if plan.todo or plan.cells[0].config.study.dry_run else []
    prices = {cell.id: price(cell, known) for cell in plan.cells}
    width = max(len(c.name) for c in plan.cells)
    lines = []
    total_wall = total_device = 0.0
    unknown: list[PlannedCell] = []
    hopeless = {c.id for c in plan.cells if c.state == "failed" and not c.selected}
    for cell in plan.cells:
        cost = prices[cell.id]
        told = f"{cost.steps:>8,} steps"
        if cell.selected and cost.wall_seconds is not None:
            total_wall += cost.wall_seconds
            total_device += cost.device_seconds or 0.0
            told += f"  about {duration(cost.wall_seconds)}"
        elif cell.selected:
            unknown.append(cell)
        state = (
            "to train"
            if cell.selected and cell.state == "missing"
            else cell.state + (" → train" if cell.selected else "")
        )
        wait = f"  after {cell.needs}" if cell.needs and cell.selected else ""
        wait += ", which failed: study.retry_failed=true" if wait and cell.needs in hopeless else ""
        alias = f"  = {', '.join(cell.aliases)}" if cell.aliases else ""
        lines.append(f"  {cell.id}  {cell.name:<{width}}  {state:<20}{told}{wait}{alias}")
    lines.append(_total(plan, total_wall, total_device, unknown, prices))
    if detect := _detectable(plan):
        lines.append(detect)
    return lines


def _total(plan: Plan, wall: float, device: float, unknown: list[PlannedCell], prices: dict[str, Price]) -> str:
    todo = plan.todo
    if not todo:
        return "nothing to train: every cell is finished (or failed; study.retry_failed=true repeats those)"
    parts = [f"{len(todo)} cells to train"]
    if wall:
        at_once = plan.cells[0].config.study.cells_at_once
        sources = ", ".join(dict.fromkeys(p.source for c in todo if (p := prices[c.id]).source))
        parts.append(f"about {device / 3600:.2f} device-hours, {duration(wall / at_once)} (from {sources})")
    disk = sum(prices[c.id].disk_bytes or 0 for c in todo)
    if disk:
        parts.append(f"{disk / 1e6:,.0f} MB of disk")
    if unknown:
        parts.append(
            f"{len(unknown)} without a price, since no cell of their model has been trained here; one epoch measures "
            f"it: {_measuring(unknown[0])}"
        )
    return "; ".join(parts)


def _measuring(cell: PlannedCell) -> str:
    """The command that trains one epoch of the cell's model, from scratch and by itself."""
    set_below = ("recipe.epochs=", "recipe.warmup_epochs=", "pretrain=", "pretrain.", "study.")
    words = [o for o in cell.overrides if not o.startswith(set_below)]
    own = ["pretrain=scratch", "recipe.epochs=1", "recipe.warmup_epochs=0", "study.name=measure"]
    return "python run.py " + shlex.join(words + own + ["study.cells=[]"] * bool(cell.config.study.cells))


def _detectable(plan: Plan) -> str | None:
    """The smallest difference to a baseline that the planned seeds find four times in five."""
    cells = [c for c in plan.cells if c.config.study.part == "cell"]
    seeds = Counter(_without_seed(c.config.cell) for c in cells)
    if len(seeds) < 2:
        return None
    columns = Counter((c.model, c.dataset) for c in seeds)  # a baseline is compared with cells of its own column
    n, k = min(seeds.values()), max(columns.values()) - 1
    if k < 1:
        return None
    if n < 2:
        return "one seed each: no difference between cells can be told from noise; add seed=0,1,2"
    from vitlab.dunnett import minimum_detectable_difference  # scipy: only where something is to be told

    scatter = _seed_deviation(plan, cells)
    sd, origin = (scatter, "as measured in finished cells") if scatter else (0.2, "assumed, as ImageNet runs do")
    least = minimum_detectable_difference(k, n, sd)
    return (
        f"{n} seeds of {k + 1} conditions detect a difference of {least:.2f} points to the baseline (80 % power, "
        f"Dunnett) if seeds scatter by {sd:.2f} points ({origin})"
    )


def _without_seed(cell: CellConfig) -> CellConfig:
    return dataclasses.replace(cell, seed=0)


def _seed_deviation(plan: Plan, cells: list[PlannedCell]) -> float | None:
    """The pooled standard deviation of top-1 between seeds of equal cells, or None without two such."""
    groups: dict[CellConfig, list[float]] = {}
    for cell in cells:
        result = plan.record(cell).read("result.json")
        if result and result["last"]:
            groups.setdefault(_without_seed(cell.config.cell), []).append(result["last"]["top1"])
    several = [values for values in groups.values() if len(values) > 1]
    freedom = sum(len(v) - 1 for v in several)
    if not freedom:
        return None
    return math.sqrt(sum(sum((x - sum(v) / len(v)) ** 2 for x in v) for v in several) / freedom)
