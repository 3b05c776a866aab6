"""Checks across keys: fields that contradict one another, batches that devices cannot share."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

from vitlab.config.paths import find_checkpoint
from vitlab.config.run_schema import Config, WandbConfig
from vitlab.config.schema import AugmentConfig, CellConfig, DatasetConfig, RecipeConfig
from vitlab.core.errors import ConfigError
from vitlab.core.files import require_name
from vitlab.core.plugins import DATASETS, POLICIES


def check_cell(cell: CellConfig) -> None:
    """Raise `ConfigError` where fields contradict one another; no data or device is looked at."""
    model, data, augment, recipe, start = cell.model, cell.dataset, cell.augment, cell.recipe, cell.pretrain
    require_name("dataset.name", data.name, "data")
    if model.patch_size and model.image_size % model.patch_size:
        raise ConfigError(
            "model.patch_size",
            f"{model.patch_size} does not divide model.image_size={model.image_size}",
            [
                f"model.patch_size={nearest_divisor(model.image_size, model.patch_size)}",
                f"model.image_size={nearest_multiple(model.image_size, model.patch_size)}",
            ],
        )
    if model.embed_dim and model.num_heads and model.embed_dim % model.num_heads:
        raise ConfigError(
            "model.num_heads",
            f"{model.num_heads} does not divide model.embed_dim={model.embed_dim}",
            [
                f"model.num_heads={nearest_divisor(model.embed_dim, model.num_heads)}",
                f"model.embed_dim={nearest_multiple(model.embed_dim, model.num_heads)}",
            ],
        )
    for key, (low, high) in (("crop_scale", data.crop_scale), ("crop_ratio", data.crop_ratio)):
        if not 0 < low <= high or (key == "crop_scale" and high > 1):
            raise ConfigError(
                f"dataset.{key}", f"got [{low}, {high}], expected 0 < first <= second" + " <= 1" * (key == "crop_scale")
            )
    if data.stage is not None and not data.stage.startswith(("/", "~", "$")):
        raise ConfigError(
            "dataset.stage",
            f"got {data.stage!r}, which is no whole path; give a folder on a disk of each node's own, for instance "
            "dataset.stage=/scratch/NAME, or with a variable that is looked up on the node, in quotes: "
            "'dataset.stage=$TMPDIR'",
        )
    if min(data.std) <= 0:
        raise ConfigError("dataset.std", f"got {list(data.std)}, every value must be above 0")
    if data.kind not in DATASETS:
        raise ConfigError("dataset.kind", f"got {data.kind!r}, allowed: {', '.join(DATASETS.names())}")
    if (data.kind == "fractal") != (data.fractal is not None):
        raise ConfigError(
            "dataset.fractal", f"kind={data.kind} {'needs' if data.fractal is None else 'takes no'} fractal options"
        )
    if augment.mixes and augment.mix_group % 2:
        raise ConfigError(
            "augment.mix_group",
            f"got {augment.mix_group}; mixing pairs samples, so it must be even",
            _mix_groups(recipe.batch_size, augment.mix_group)
            or [f"augment.mix_group=2 recipe.batch_size={nearest_multiple(recipe.batch_size, 2)}"],
        )
    if augment.mixes and recipe.batch_size % augment.mix_group:
        batch = nearest_multiple(recipe.batch_size, augment.mix_group)
        raise ConfigError(
            "augment.mix_group",
            f"{augment.mix_group} does not divide recipe.batch_size={recipe.batch_size}",
            [*_mix_groups(recipe.batch_size, augment.mix_group), f"recipe.batch_size={batch}"],
        )
    parse_policies(augment.auto_augment)
    _check_optimizer(recipe.optimizer)
    if recipe.warmup_epochs > recipe.epochs:
        raise ConfigError(
            "recipe.warmup_epochs",
            f"{recipe.warmup_epochs:g} is more than recipe.epochs={recipe.epochs}",
            ["recipe.warmup_epochs=0", f"recipe.epochs={math.ceil(recipe.warmup_epochs)}"],
        )
    if data.train_fraction < 1 and data.train_per_class:
        raise ConfigError(
            "dataset.train_fraction",
            "give it, or dataset.train_per_class, and not both: each sets the number of images",
            ["dataset.train_per_class=null", "dataset.train_fraction=1"],
        )
    if data.num_train and data.num_classes:
        _check_batch(data, augment, recipe)
    if start.kind == "cell":
        if start.weights == "ema" and start.recipe and not start.recipe.ema_decay:
            raise ConfigError(
                "pretrain.weights",
                "ema is asked for, and the pre-training keeps no average, as pretrain.recipe.ema_decay=0",
                ["pretrain.recipe.ema_decay=0.999", "pretrain.weights=raw"],
            )
        for part in ("dataset", "augment", "recipe"):
            if getattr(start, part) is None:
                choices = "pretrain=fractaldb, fractaldb60 or fractaldb_small"
                raise ConfigError(f"pretrain.{part}", f"a pre-training needs one; {choices} brings it along")
        assert cell.pretraining
        try:
            check_cell(cell.pretraining)
        except ConfigError as error:
            raise error.under("pretrain") from None


OWN_OPTIMIZERS = ("adamw", "sgd")
"""Built by PyTorch, with the recipe's own constants; every other name is timm's."""
_NO_OPTIMIZERS = {"adahessian": "it needs second derivatives, which the step does not compute"}


def _check_optimizer(name: str) -> None:
    """Raise ConfigError for a name that neither we nor timm know."""
    if name in OWN_OPTIMIZERS:
        return
    from timm.optim import list_optimizers  # two seconds, and only for the other names

    known = [str(n) for n in list_optimizers() if n not in _NO_OPTIMIZERS]
    if name not in known:
        matches = (difflib.get_close_matches(name.lower(), names, n=1) for names in (OWN_OPTIMIZERS, known))
        near = next(filter(None, matches), [])
        why = _NO_OPTIMIZERS.get(name) or f"allowed: {', '.join(OWN_OPTIMIZERS)}, or one of timm's ({', '.join(known)})"
        raise ConfigError("recipe.optimizer", f"got {name!r}; {why}", [f"recipe.optimizer={n}" for n in near])


def _check_batch(data: DatasetConfig, augment: AugmentConfig, recipe: RecipeConfig) -> None:
    """Raise ConfigError where an epoch would have no full batch."""
    images = data.train_images
    if images >= recipe.batch_size:
        return
    batch = 1 << (images.bit_length() - 1)
    ways = [f"recipe.batch_size={batch}"]
    if augment.mixes and batch % augment.mix_group:
        ways = [f"{ways[0]} {group}" for group in _mix_groups(batch, augment.mix_group)]
    needed = math.ceil(recipe.batch_size / (data.num_classes or 1))
    if data.train_per_class and dataclasses.replace(data, train_per_class=needed).train_images >= recipe.batch_size:
        ways.append(f"dataset.train_per_class={needed}")
    raise ConfigError(
        "recipe.batch_size",
        f"{recipe.batch_size} is more than the {images} training images of {data.name}, so an epoch would have no full "
        "batch",
        ways,
    )


def _mix_groups(batch: int, wanted: int) -> list[str]:
    """The override that sets the largest group of at most `wanted` samples that mixing can use; no override where the
    batch is odd.
    """
    even = [d for d in range(2, batch + 1, 2) if batch % d == 0]
    fitting = [d for d in even if d <= wanted] or even[:1]
    return [f"augment.mix_group={fitting[-1]}"] if fitting else []


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number`, above 1 where there is one, that is nearest to `wanted`."""
    divisors = [d for d in range(2, number + 1) if number % d == 0] or [1]
    return min(divisors, key=lambda d: (abs(d - wanted), d))


def nearest_multiple(number: int, of: int) -> int:
    """The multiple of `of`, at least one, that is nearest to `number`."""
    return max(1, (2 * number + of) // (2 * of)) * of


def parse_policies(text: str | None) -> list[tuple[str, dict[str, float]]]:
    """The policies of `augment.auto_augment` in their order, each with its options: `rand-m9-inc1` →
    `[("rand", {"m": 9.0, "inc": 1.0})]`. Several are joined by `+`. Raises ConfigError for anything else.
    """
    found = []
    for part in [] if text is None else text.split("+"):
        name, *options = part.split("-")
        allowed = POLICIES.about(name).get("options", ())
        pairs = [re.fullmatch(r"([a-z]+)(\d+\.?\d*|\.\d+)", option) for option in options]
        if name not in POLICIES or any(pair is None or pair[1] not in allowed for pair in pairs):
            examples = [POLICIES.about(known).get("example", known) for known in POLICIES.names()]
            parts = f"; the options of {name} are {', '.join(allowed)}, each with a number" if allowed else ""
            raise ConfigError(
                "augment.auto_augment",
                f"got {text!r}, allowed: null, or one of {', '.join(examples)}, or several joined by +{parts}",
            )
        found.append((name, {pair[1]: float(pair[2]) for pair in pairs if pair}))
    return found


def _check_project(wandb: WandbConfig) -> None:
    """Raise `ConfigError` for names that W&B's server refuses, before a run reaches its end with one."""
    for key, name in (("project", wandb.project), ("entity", wandb.entity)):
        if name is not None and (not 0 < len(name) <= 128 or set(name) & set("/\\#?%:")):
            raise ConfigError(
                f"wandb.{key}",
                f"got {name!r}; W&B takes 1 to 128 characters without / \\ # ? % :, for instance wandb.{key}=vitlab",
            )


def check_run(config: Config) -> None:
    """Raise `ConfigError` where the cell cannot run on the devices that were asked for."""
    batch, devices = config.cell.recipe.batch_size, config.devices
    for key, name in (("name", config.study.name), ("table", config.study.table)):
        if name is not None:
            require_name(f"study.{key}", name, "study")
    _check_project(config.wandb)
    if config.task == "evaluate":
        if not config.checkpoint:
            raise ConfigError("checkpoint", "task=evaluate reads one; give a file, a cell's folder or its identity")
        for name in config.checkpoints:
            find_checkpoint(name, config.output_dir)
    if config.task != "train":
        return
    if config.checkpoint is not None:
        raise ConfigError(
            "checkpoint",
            "task=train takes none. To start from its weights: pretrain=checkpoint pretrain.path=FILE. A "
            "cell of ours resumes by its own command; checkpoints of other programs cannot be resumed",
        )
    group = config.cell.augment.mix_group if config.cell.augment.mixes else 1
    fewer = next(d for d in range(devices, 0, -1) if batch % d == 0 and batch // d % group == 0)
    larger = nearest_multiple(batch, devices * group)
    if batch % devices:
        raise ConfigError(
            "devices",
            f"{devices} devices cannot share recipe.batch_size={batch} equally",
            [f"devices={fewer}", f"recipe.batch_size={larger}"],
        )
    share = batch // devices
    if share % group:
        raise ConfigError(
            "augment.mix_group",
            f"a device's share of the batch, {share}, is no multiple of {group}",
            [*_mix_groups(share, group), f"devices={fewer}", f"recipe.batch_size={larger}"],
        )
    if config.device_batch and (share % config.device_batch or config.device_batch % group):
        fitting = [d for d in range(group, share + 1, group) if share % d == 0]
        wanted = config.device_batch
        smaller = min(fitting, key=lambda d: (abs(d - wanted), d))
        raise ConfigError(
            "device_batch",
            f"got {config.device_batch}; it must divide a device's share of the global batch, {share}"
            + (f", and be a multiple of augment.mix_group={group}" if group > 1 else ""),
            [
                *(
                    [f"recipe.batch_size={nearest_multiple(batch, devices * math.lcm(config.device_batch, group))}"]
                    if share % config.device_batch
                    else _mix_groups(config.device_batch, group)
                ),
                f"device_batch={smaller}",
            ],
        )
