"""A trained model from its checkpoint, ready to look at pictures: what evaluating and explaining start from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vitlab.config import Config, ConfigError, DatasetConfig, ModelConfig, find_checkpoint
from vitlab.models.build import build_model
from vitlab.models.checkpoint import Weights, load_weights, read_checkpoint

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

    def describe(self) -> list[str]:
        """Which checkpoint, which model, and how pictures reach it."""
        epoch = "" if self.weights.epoch is None else f", epoch {self.weights.epoch}"
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.dataset.mean, self.dataset.std))
        size = self.model.image_size
        return [
            f"checkpoint {self.weights.path} ({self.weights.kind}{epoch}); model {self.model.name}, {size} pixels, "
            f"{self.num_classes} classes",
            f"normalisation: mean {mean}, std {std}; shorter side to {int(size / self.dataset.eval_crop)}, "
            f"central {size} x {size}",
        ]


def restore(config: Config, name: str, *, statistics: str = "checkpoint") -> Restored:
    """The model of the checkpoint `name`: a file, a cell's folder or a cell's identity below `config.output_dir`.

    Model and data set are the checkpoint's own where the user left them to it. `statistics` says whose mean, std and
    crop count where both the checkpoint and `dataset=` tell: "checkpoint" or "dataset". Raises ConfigError where
    neither tells, or where the tensors are not all and only those of the model.
    """
    weights = read_checkpoint(find_checkpoint(name, config.output_dir), weights=config.weights)
    model, dataset = _model(config, weights), _dataset(config, weights, statistics)
    if weights.num_classes is None:
        raise ConfigError(f"{weights.path}: holds no classifier (head.weight), so it predicts nothing")
    network = build_model(model, weights.num_classes, to_train=False)
    report = load_weights(network, weights, keep_head=True)
    if report.dropped or report.fresh:
        wrong = f"lacks {report.fresh[0]}" if report.fresh else f"also holds {report.dropped[0]}"
        more = ", and more" if len(report.fresh or report.dropped) > 1 else ""
        raise ConfigError(f"{weights.path}: is not of {model.name} (it {wrong}{more}); give its model: model=NAME")
    return Restored(network.eval(), weights, model, dataset, weights.num_classes)


def _model(config: Config, weights: Weights) -> ModelConfig:
    given = config.cell.model
    if given.name != FROM_CHECKPOINT:
        return given
    if weights.model is None:
        raise ConfigError(f"model: {weights.path} does not tell its model; name it, as model=vit_tiny_16_224")
    if dataclasses.replace(given, grad_checkpointing=False) != ModelConfig(FROM_CHECKPOINT):
        raise ConfigError("model: the checkpoint tells the sizes; to give others, name the model: model=NAME model.…=…")
    return weights.model


def _dataset(config: Config, weights: Weights, statistics: str) -> DatasetConfig:
    given, own = config.cell.dataset, weights.dataset
    if given.name == FROM_CHECKPOINT:
        if own is None:
            raise ConfigError(
                f"dataset: {weights.path} does not tell how its pictures were normalised and cropped; name its data "
                "set, as dataset=imagenet1k dataset.root=FOLDER"
            )
        neutral = DatasetConfig(FROM_CHECKPOINT, kind="folder")
        changes = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
        return dataclasses.replace(own, **{k: v for k, v in changes.items() if v != getattr(neutral, k)})
    if own is None or statistics == "dataset":
        return given
    return dataclasses.replace(given, mean=own.mean, std=own.std, eval_crop=own.eval_crop)


def short_name(path: Path) -> str:
    """What to call a checkpoint in a file's name: the cell's identity and the file, or the file alone."""
    return f"{path.parent.name}_{path.stem}" if (path.parent / "config.yaml").exists() else path.stem
