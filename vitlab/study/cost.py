"""What a cell costs, from what earlier cells measured; where nothing was measured, that is what is said."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import heapq
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitlab.config import CellConfig, ConfigError, DatasetConfig, ModelConfig, PretrainConfig, RecipeConfig, experiment
from vitlab.config.choices import count_parameters
from vitlab.config.effects import idle_fields
from vitlab.core.integrity import DamagedError, misfit
from vitlab.data.order import epoch_length, num_steps
from vitlab.study.cell import cell_of
from vitlab.study.plan import Plan, PlannedCell, planned_steps
from vitlab.study.provenance import device_kind
from vitlab.study.record import Record, records

_MEASURED = {
    "dataset": {"name": str},
    "recipe": {"precision": str, "epochs": int, "batch_size": int, "eval_every": int, "repeated_augmentation": int},
}
"""What an experiment must tell to give a price."""
_MOMENTS = {"adamw": 2, "sgd": 1}
"""Tensors of the weights' size that an optimizer's state holds; of timm's others two, as most have."""


@dataclass(frozen=True)
class Throughput:
    """What one cell tells of the speed of its model: a finished one, or the epochs of one that is trained."""

    id: str
    model: dict[str, Any]
    dataset: str
    precision: str
    device_name: str
    finished_at: str
    num_parameters: int
    result: dict[str, Any]
    experiment: dict[str, Any]
    record: Record

    @property
    def devices(self) -> float:
        """How many devices it had at a time, on average: less than one where cells shared one."""
        return self.result["device_seconds"] / max(self.result["wall_seconds"], 1e-9) or 1.0

    @functools.cached_property
    def seconds_per_image(self) -> tuple[float, float]:
        """Device-seconds of an image that is trained on, and of one that is evaluated.

        The first is the median of the epochs' rates; the second is what is left of the whole time.
        """
        recipe, result = self.experiment["recipe"], self.result
        try:
            rates = [row["images_per_second"] for row in self.record.rows() if "images_per_second" in row]
        except DamagedError:
            rates = []
        rates = rates or [result["images_per_second"]]
        per_trained = self.devices / max(statistics.median(rates), 1e-9)
        length = epoch_length(result["num_train"], recipe["repeated_augmentation"])
        trained = recipe["epochs"] * (length // recipe["batch_size"]) * recipe["batch_size"]
        evaluated = _evaluations(recipe["epochs"], recipe["eval_every"], recipe.get("ema_decay")) * result["num_eval"]
        rest = result["device_seconds"] - trained * per_trained
        return per_trained, max(0.0, rest) / evaluated if evaluated else 0.0


@dataclass(frozen=True)
class Price:
    """Estimated remaining cost of a cell; None without a measured cell of that model."""

    steps: int
    device_seconds: float | None
    wall_seconds: float | None
    disk_bytes: int | None
    source: Throughput | None


def throughputs(plan: Plan) -> list[Throughput]:
    """What the finished cells below the plan's folder tell."""
    return [known for record in records(plan.output_dir) if (known := throughput(record))]


def throughput(record: Record) -> Throughput | None:
    """What a cell tells; None where it is not finished, or its record is damaged."""
    result, config = record.read_intact("result.json"), record.read_intact("config.yaml")
    if not result or not config or misfit(config["experiment"], _MEASURED):
        return None
    origin, cell = record.read_intact("provenance.json") or {}, config["experiment"]
    return Throughput(
        record.id, cell["model"], cell["dataset"]["name"], cell["recipe"]["precision"],
        str(origin.get("device_name")), result.get("finished_at", ""), result["num_parameters"], result, cell, record,
    )  # fmt: skip


def throughput_so_far(record: Record, content: CellConfig, row: Mapping[str, Any], devices: int) -> Throughput | None:
    """What the epochs of an unfinished cell tell, up to `row`, the last of metrics.jsonl; None where it holds no time.

    It trains on so many devices.
    """
    if not isinstance(seconds := row.get("seconds"), int | float) or not row.get("images_per_second"):
        return None
    whole = experiment(content)
    result = {
        "wall_seconds": seconds, "device_seconds": device_seconds(row, devices),
        "num_train": content.dataset.train_images, "num_eval": _eval_images(content.dataset),
        "images_per_second": row["images_per_second"],
    }  # fmt: skip
    so_far = whole | {"recipe": whole["recipe"] | {"epochs": row["epoch"]}}
    return Throughput(
        record.id,
        whole["model"],
        str(content.dataset.name),
        content.recipe.precision,
        "",
        "",
        0,
        result,
        so_far,
        record,
    )


def device_seconds(row: Mapping[str, Any], devices: int) -> float:
    """Device-seconds up to a row of metrics.jsonl that holds its time, of a cell on so many devices."""
    return row.get("device_seconds", row["seconds"] * devices)


def price(plan: Plan, cell: PlannedCell, known: Sequence[Throughput], here: str | None) -> Price:
    """The price of what is left of a cell, after a `known` one of the same model.

    Those measured on the kind of device that will train count first (`here`; None: not known), then those of the same
    data set, of the same precision, and the latest.
    """
    content = cell_of(cell.config)
    left = 1 - _done(plan, cell)
    steps = round(planned_steps(cell) * left)
    base = nearest(content, known, here)
    data = content.dataset.name
    disk = _disk(content, base.num_parameters if base and base.dataset == data else None)
    if base is None:
        return Price(steps, None, None, disk, None)
    seconds = seconds_of(content, left, base)
    shares = plan.trains_here and cell.config.study.cells_per_device is not None
    together = plan.capacity.together(len(plan.todo)) if shares else 1
    return Price(steps, seconds, seconds * together / cell.config.devices, disk, base)


def nearest(content: CellConfig, known: Sequence[Throughput], here: str | None) -> Throughput | None:
    """The `known` cell that tells most of what this one takes; None where none has its model."""
    own, data, precision = _experiment(content.model), content.dataset.name, content.recipe.precision
    return max(
        (k for k in known if k.model == own),
        key=lambda k: (k.device_name == here, k.dataset == data, k.precision == precision, k.finished_at),
        default=None,
    )


def seconds_of(content: CellConfig, share: float, base: Throughput) -> float:
    """Device-seconds of a `share` of a cell's epochs, each with its evaluation, at the speed of `base`."""
    recipe = content.recipe
    per_trained, per_evaluated = base.seconds_per_image
    evaluated = _evaluations(recipe.epochs, recipe.eval_every, recipe.ema_decay) * _eval_images(content.dataset)
    return round(num_steps(content) * share) * recipe.batch_size * per_trained + share * evaluated * per_evaluated


_experiment = functools.cache(experiment)


def _done(plan: Plan, cell: PlannedCell) -> float:
    """The share of a cell that its checkpoint has behind it."""
    record = plan.record(cell)
    if cell.again or cell.state in ("missing", "finished", "damaged") or not (record.folder / "last.pt").exists():
        return 0.0
    try:
        return len(record.rows()) / cell_of(cell.config).recipe.epochs
    except DamagedError:
        return 0.0


def _evaluations(epochs: int, every: int, ema_decay: float | None) -> int:
    return (epochs // every + bool(epochs % every)) * (2 if ema_decay else 1)


def _eval_images(data: DatasetConfig) -> int:
    return round((data.num_train or 0) * data.val_fraction) if data.val_fraction else data.num_eval or 0


def _disk(content: CellConfig, num_parameters: int | None) -> int | None:
    """Bytes of a cell's folder, from its parameters, counted or recorded."""
    classes = content.dataset.num_classes or 0
    counted = _count(content.model, classes) or num_parameters or _count_built(content.model, classes)
    return counted and counted * 4 * _copies(content.recipe)


_count = functools.cache(count_parameters)


@functools.cache
def _count_built(model: ModelConfig, num_classes: int) -> int | None:
    """The parameters of a model that no arithmetic here counts, built without memory; None where it cannot be built."""
    from vitlab.models.build import build_without_memory

    with contextlib.suppress(ConfigError):
        return sum(p.numel() for p in build_without_memory(model, num_classes).parameters())
    return None


def _copies(recipe: RecipeConfig) -> int:
    """How many times a folder holds the weights: last, best (of the average too) and kept, each with its state."""
    files = 3 if recipe.ema_decay else 2
    files += recipe.epochs // recipe.keep_every if recipe.keep_every else 0
    return files * (1 + _MOMENTS.get(recipe.optimizer, 2) + bool(recipe.ema_decay))


def wall_seconds(cells: Sequence[PlannedCell], prices: Mapping[str, Price], at_once: int) -> float:
    """How long `cells` take, so many at once, pre-trainings before their dependents.

    Cells without a price count as nothing.
    """
    free = [0.0] * at_once
    ended: dict[str, float] = {}
    for cell in sorted(cells, key=lambda c: (c.stage, c.needs is not None)):
        begin = max(heapq.heappop(free), ended.get(cell.needs or "", 0.0))
        ended[cell.id] = begin + (prices[cell.id].wall_seconds or 0.0)
        heapq.heappush(free, ended[cell.id])
    return max(ended.values())


def measuring_command(cell: PlannedCell) -> str:
    """The command that trains one epoch of the cell's model, from scratch and by itself."""
    set_below = ("recipe.epochs=", "recipe.warmup_epochs=", "pretrain=", "pretrain.", "study.")
    content = cell.config.cell
    recipe = dataclasses.replace(content.recipe, epochs=1, warmup_epochs=0.0)
    idle = idle_fields(dataclasses.replace(content, recipe=recipe, pretrain=PretrainConfig()))  # would be refused
    words = [o for o in cell.overrides if not o.startswith(set_below) and o.lstrip("+").partition("=")[0] not in idle]
    own = ["pretrain=scratch", "recipe.epochs=1", "recipe.warmup_epochs=0", "study.name=measure"]
    script = sys.argv[0] if sys.argv[0].endswith("run.py") else "run.py"
    return f"python {script} " + shlex.join(words + own + ["study.cells=[]"] * bool(cell.config.study.cells))


def kind_here(plan: Plan) -> str | None:
    """The kind of device that will train the plan's cells; None where they train on other machines than this."""
    return device_kind(plan.cells[0].config.device) if plan.trains_here else None
