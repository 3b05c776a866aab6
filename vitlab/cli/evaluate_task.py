"""`task=evaluate`: evaluate a checkpoint of any program on a data set, by the code that evaluates during training."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vitlab.config import AugmentConfig, Config, ConfigError, DatasetConfig, build, plain
from vitlab.core.archives import save_arrays
from vitlab.core.device import pick_device
from vitlab.core.errors import UserError
from vitlab.core.files import clean_name, make_folder, write_text
from vitlab.data.augment import Augment
from vitlab.data.loader import EvalLoader
from vitlab.data.sources.registry import build_source
from vitlab.data.sources.staging import Copies, staged
from vitlab.data.sources.survey import describe_survey
from vitlab.models.build import shorten_last_block
from vitlab.models.restore import Restored, centred, restore, short_name
from vitlab.study.provenance import evaluated_data, require_evaluated_data
from vitlab.train.distributed import process_group, spawn_ranks, world_from_environment
from vitlab.train.evaluate import EVAL_BATCH, Evaluation, evaluate

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EvaluateConfig:
    """The keys of `evaluate` in conf/task/evaluate.yaml."""

    statistics: Literal["checkpoint", "dataset"] = "checkpoint"
    """Whose mean, std and crop are used where both the checkpoint and dataset= have them."""


def run_evaluate(config: Config) -> list[str]:
    """Evaluate the checkpoints that `config.checkpoint` names; returns the lines to print.

    Figures and per-example predictions are written to `output_dir/evaluate/`. Raises ConfigError for a checkpoint
    that cannot be read, does not fit, or has other classes than the data set.
    """
    if config.devices > 1 and "RANK" not in os.environ:
        with spawn_ranks(config.devices, _evaluate_all, (config,)):
            return _evaluate_all(config)
    return _evaluate_all(config)


def _evaluate_all(config: Config) -> list[str]:
    options: EvaluateConfig = build(EvaluateConfig, config.options, "evaluate")
    world = world_from_environment()
    device = pick_device(config.device)
    torch.set_num_threads(config.threads)
    lines: list[str] = []
    with process_group(world, device):
        for name in config.checkpoints:
            restored = restore(config, name, statistics=options.statistics)
            restored.require_classifier("task=evaluate")
            require_evaluated_data(restored.weights.path, restored.dataset)
            evaluation = evaluate_restored(config, restored, device)
            if evaluation is not None:
                written = _write(config, restored, evaluation)
                lines += [
                    *restored.describe(),
                    *describe_survey(restored.dataset),
                    f"{restored.dataset.name}: top-1 {evaluation.top1:.3f} %, top-5 {evaluation.top5:.3f} %, "
                    f"loss {evaluation.loss:.6f}, n {len(evaluation.label)} ({config.weights} weights; {written})",
                ]
    return lines


def evaluate_restored(config: Config, restored: Restored, device: torch.device) -> Evaluation | None:
    """The figures of a restored model on its data set's evaluation images; None on every rank but 0."""
    dataset = restored.dataset
    if dataset.num_eval == 0 and dataset.val_fraction == 0:
        raise ConfigError("dataset", f"{dataset.name} has no images to evaluate on; name another: dataset=NAME")
    source = build_source(dataset, "eval", _stage(dataset))
    _check_classes(restored, source.classes)
    world = world_from_environment()
    batches = EvalLoader(
        source, dataset, image_size=restored.model.image_size, rank=world.rank, world=world.size,
        workers=config.workers, batch=EVAL_BATCH, device=device,
    )  # fmt: skip
    recorded: Any = restored.weights.arguments.get("recipe")
    precision = recorded["precision"] if restored.weights.kind == "vitlab" else config.cell.recipe.precision
    plain = Augment(AugmentConfig(), dataset).normalise

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return plain(centred(images, restored.input_size))

    shorten_last_block(restored.network)
    return evaluate(restored.network.to(device), batches, normalise, device, precision)


def _stage(dataset: DatasetConfig) -> Copies:
    """Copy what is evaluated on to `dataset.stage`, where there is one; says so on the screen."""
    copying = int(os.environ.get("LOCAL_RANK", "0")) == 0
    reports = staged(dataset, ("train",) if dataset.val_fraction else ("eval",), copying=copying)
    while True:
        try:
            report = next(reports)
        except StopIteration as end:
            return end.value
        if report.to == "screen":
            print(report.text, file=sys.stderr)


def _check_classes(restored: Restored, classes: tuple[str, ...]) -> None:
    """Refuse figures that would compare one class with another."""
    path, name, own = restored.weights.path, restored.dataset.name, restored.weights.classes
    if len(classes) != restored.num_classes:
        raise UserError(
            f"{path}: its classifier has {restored.num_classes} classes and {name} has {len(classes)}; name the data "
            "set that it was trained for, or train a new classifier with pretrain=checkpoint pretrain.path=FILE"
        )
    if own is not None and own != classes:
        at = next(i for i, pair in enumerate(zip(own, classes, strict=True)) if pair[0] != pair[1])
        raise UserError(
            f"{path}: class {at} is {own[at]!r} there and {classes[at]!r} in {name}; the class lists must agree, in "
            "their order too"
        )


def _write(config: Config, restored: Restored, evaluation: Evaluation) -> Path:
    folder = make_folder(Path(config.output_dir) / "evaluate")
    data = clean_name(restored.dataset.name, "data")  # a checkpoint's record may hold any name
    file = folder / f"{short_name(restored.weights.path)}_{data}_{config.weights}.json"
    content = {
        "schema_version": SCHEMA_VERSION, "checkpoint": str(restored.weights.path), "kind": restored.weights.kind,
        "weights": config.weights, "epoch": restored.weights.epoch, **evaluation.row(), "n": len(evaluation.label),
        "model": plain(restored.model), "dataset": plain(restored.dataset),
        "data": {"eval": evaluated_data(restored.dataset).fingerprint.plain()},
    }  # fmt: skip
    write_text(file, json.dumps(content, indent=1) + "\n")
    save_arrays(
        file.with_suffix(".npz"), index=evaluation.index, label=evaluation.label, top5=evaluation.ranking,
        loss=evaluation.losses,
    )  # fmt: skip
    return file
