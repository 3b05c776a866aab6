"""A trained model from its checkpoint, ready to look at pictures: what evaluating and explaining start from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitlab.config import Config, ConfigError, DatasetConfig, ModelConfig, choice, find_checkpoint, options
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, read_mapping
from vitlab.models.build import build_model
from vitlab.models.weights import Weights, load_weights, read_checkpoint, remedy_of, require_trained

FROM_CHECKPOINT = "from_checkpoint"
"""The choice of model= and dataset= that leaves the matter to the checkpoint."""


@dataclass(frozen=True)
class Restored:
    """A network in evaluation mode on the CPU, with its classifier, and what it wants to see."""

    network: nn.Module
    weights: Weights
    model: ModelConfig
    dataset: DatasetConfig
    """Its images are those the user named; its statistics and crop are those the network was trained with."""
    num_classes: int
    resized: tuple[str, ...] = ()
    """Tensors that were resized for the model that the user named."""
    doubt: str | None = None
    """What a reader should know of where the weights come from."""

    def describe(self) -> list[str]:
        """Which checkpoint, which model, and how pictures reach it."""
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.dataset.mean, self.dataset.std))
        size = self.model.image_size
        resized = [f"resized: {', '.join(self.resized)}"] if self.resized else []
        return [
            f"{self.weights.describe()}; model {self.model.name}, {size} pixels, {self.num_classes} classes",
            f"normalisation: mean {mean}, std {std}; shorter side to {int(size / self.dataset.eval_crop)}, "
            f"central {size} x {size}",
            *resized,
            *([self.doubt] if self.doubt else []),
        ]


def restore(config: Config, name: str, *, statistics: str = "checkpoint") -> Restored:
    """The model of the checkpoint `name`: a file, a cell's folder or a cell's identity below `config.output_dir`.

    Model and data set are the checkpoint's own where the user left them to it. `statistics` says whose mean, std and
    crop count where both the checkpoint and `dataset=` tell: "checkpoint" or "dataset"; a key that the user set, such
    as dataset.eval_crop=1.0, counts in either case. Raises ConfigError where neither tells, or where the tensors are
    not all and only those of the model.
    """
    file = find_checkpoint(name, config.output_dir)
    try:
        weights = read_checkpoint(file, weights=config.weights)
    except UserError as error:
        if isinstance(error, ConfigError) and error.key == "weights":
            raise
        raise ConfigError("checkpoint", str(error)) from error
    model, dataset = _model(config, weights), _dataset(config, weights, statistics)
    doubt = _owner(weights)
    if weights.num_classes is None:
        raise UserError(f"{weights.path}: holds no classifier (head.weight), so it predicts nothing")
    network = build_model(model, weights.num_classes, to_train=False)
    report = load_weights(network, weights, keep_head=True)
    if report.dropped or report.fresh:
        wrong = f"lacks {report.fresh[0]}" if report.fresh else f"also holds {report.dropped[0]}"
        more = ", and more" if len(report.fresh or report.dropped) > 1 else ""
        raise UserError(f"{weights.path}: is not of {model.name} (it {wrong}{more}); give its model: model=NAME")
    return Restored(network.eval(), weights, model, dataset, weights.num_classes, report.resized, doubt)


def _owner(weights: Weights) -> str | None:
    """See that a checkpoint of ours in a cell's folder is of that cell, by the folder's config.yaml.

    Raises DamagedError where it is of another; returns a note where the configuration cannot be read.
    """
    record = weights.path.with_name("config.yaml")
    if weights.kind != "vitlab" or not record.exists():
        return None
    try:
        known = read_mapping(record, remedy_of(weights.path))
    except DamagedError as error:
        return f"note: {error}. Whether the weights are of the cell in this folder is not known"
    if known is not None:
        require_trained(weights, known.get("experiment") or {})
    return None


def _model(config: Config, weights: Weights) -> ModelConfig:
    given = config.cell.model
    if given.name != FROM_CHECKPOINT:
        return given
    if weights.model is None:
        raise ConfigError("model", f"{weights.path} does not tell its model; name it, as model=vit_tiny_16_224")
    if dataclasses.replace(given, grad_checkpointing=False) != ModelConfig(FROM_CHECKPOINT):
        raise ConfigError(
            "model", "the checkpoint tells the sizes; to give others, name the model: model=NAME model.…=…"
        )
    return weights.model


def _dataset(config: Config, weights: Weights, statistics: str) -> DatasetConfig:
    given, own = config.cell.dataset, weights.dataset
    if FROM_CHECKPOINT in (given.name, config.labels.get("dataset")):  # it may have been given another name
        if own is None:
            raise ConfigError(
                "dataset",
                f"{weights.path} does not tell how its pictures were normalised and cropped; name its data "
                "set, as dataset=imagenet1k dataset.root=FOLDER",
            )
        return dataclasses.replace(own, **_set_by_user(config))
    if own is None or statistics == "dataset":
        return given
    told = {key: getattr(own, key) for key in ("mean", "std", "eval_crop")}
    return dataclasses.replace(given, **told | _set_by_user(config))


def _set_by_user(config: Config) -> dict[str, Any]:
    """The data set's keys that are not as its choice has them: given on the command line, or by other files."""
    given = config.cell.dataset
    chosen = config.labels.get("dataset", given.name)
    untouched = choice("dataset", chosen) if chosen in options("dataset") else given
    return {
        f.name: getattr(given, f.name)
        for f in dataclasses.fields(given)
        if getattr(given, f.name) != getattr(untouched, f.name)
    }


def short_name(path: Path) -> str:
    """What to call a checkpoint in a file's name: the cell's identity and the file, or the file alone."""
    return f"{path.parent.name}_{path.stem}" if (path.parent / "config.yaml").exists() else path.stem
