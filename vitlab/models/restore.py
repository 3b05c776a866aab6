"""A trained model from its checkpoint, ready to look at pictures: what evaluating and explaining start from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitlab.config import Config, ConfigError, DatasetConfig, ModelConfig, choice, find_checkpoint, options
from vitlab.core.errors import UserError
from vitlab.core.hub import WEIGHTS
from vitlab.core.integrity import DamagedError, read_mapping
from vitlab.models.build import build_model
from vitlab.models.formats import what_was_found
from vitlab.models.layouts import known_layout
from vitlab.models.model_files import remedy_of
from vitlab.models.weights import Weights, load_weights, read_checkpoint, require_trained

FROM_CHECKPOINT = "from_checkpoint"
"""The choice of model= and dataset= that leaves the matter to the checkpoint."""
STATISTICS = ("mean", "std", "eval_crop", "eval_interpolation")
"""The data set's keys that say how a picture reaches the network."""
UNKNOWN = "unknown"
"""The name of a checkpoint's data set where nothing tells it."""


@dataclass(frozen=True)
class Restored:
    """A network in evaluation mode on the CPU, with its classifier, and what it wants to see."""

    network: nn.Module
    weights: Weights
    model: ModelConfig
    dataset: DatasetConfig
    """Its images are those the user named; its statistics and crop are those the network was trained with."""
    num_classes: int
    """0: it has no classifier, and its output is features."""
    resized: tuple[str, ...] = ()
    """Tensors that were resized for the model that the user named."""
    doubt: str | None = None
    """What a reader should know of where the weights come from."""

    assumed: bool = False
    """Whether the statistics are ImageNet's because the file holds none."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network takes."""
        size = self.weights.build.get("img_size", self.model.image_size)
        own = self.model == self.weights.model and isinstance(size, tuple)
        return (size[0], size[1]) if own else (self.model.image_size, self.model.image_size)

    def require_classifier(self, task: str, instead: str = "") -> None:
        """Raise UserError where the network has none; `task` is what needs one."""
        if not self.num_classes:
            raise UserError(
                f"{self.weights.path}: holds no classifier (head.weight), so it predicts nothing: {task} needs one. "
                "Train one on it with pretrain=checkpoint pretrain.path=FILE" + instead
            )

    def describe(self) -> list[str]:
        """Which checkpoint, which model, and how pictures reach it."""
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.dataset.mean, self.dataset.std))
        size, (height, width) = self.model.image_size, self.input_size
        resized = [f"resized: {', '.join(self.resized)}"] if self.resized else []
        classes = {0: "no classifier", 1: "1 class"}.get(self.num_classes, f"{self.num_classes} classes")
        pixels = f"{height} pixels" if height == width else f"{height} x {width} pixels"
        assumed = " (ImageNet's, as the file tells none; dataset.mean, dataset.std and dataset.eval_crop set others)"
        how = "" if self.dataset.eval_interpolation == "bicubic" else f" ({self.dataset.eval_interpolation})"
        return [
            f"{self.weights.describe()}; model {self.model.name}, {pixels}, {classes}",
            *self.weights.chosen,
            *(self.weights.said if self.model == self.weights.model else ()),
            f"normalisation: mean {mean}, std {std}; shorter side to {int(size / self.dataset.eval_crop)}{how}, "
            f"central {height} x {width}" + (assumed if self.assumed else ""),
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
    weights = _with_heads(config, weights)
    model, dataset, assumed = _model(config, weights), *_dataset(config, weights, statistics)
    doubt = _owner(weights)
    classes = weights.num_classes or 0
    arguments = weights.build if model == weights.model else {}
    network = build_model(model, classes, arguments=arguments)
    report = load_weights(network, weights, keep_head=True)
    lacking = [key for key in report.fresh if not key.startswith("head_dist.")]
    if report.dropped or lacking:
        wrong = f"lacks {lacking[0]}" if lacking else f"also holds {report.dropped[0]}"
        more = ", and more" if len(lacking or report.dropped) > 1 else ""
        raise UserError(f"{weights.path}: is not of {model.name} (it {wrong}{more}); give its model: model.name=NAME")
    return Restored(network.eval(), weights, model, dataset, classes, report.resized, doubt, assumed)


def _with_heads(config: Config, weights: Weights) -> Weights:
    """`weights` with the number of heads that the user gives, where the tensors' own model has only a convention's."""
    given = config.cell.model
    asked = given.name == FROM_CHECKPOINT and given.num_heads
    if not asked or weights.model is None or weights.model.num_heads is None:
        return weights
    if (weights.model.embed_dim or 0) % asked:
        raise ConfigError(
            "model.num_heads", f"{asked} does not divide the checkpoint's width, {weights.model.embed_dim}"
        )
    return dataclasses.replace(
        weights, model=dataclasses.replace(weights.model, num_heads=asked),
        said=(*weights.said, f"{asked} heads, as model.num_heads says"),
    )  # fmt: skip


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
        if known_layout(weights.state) is None:
            raise ConfigError("checkpoint", f"{weights.path}: {what_was_found(weights.path, list(weights.state))}")
        raise ConfigError(
            "model", f"{weights.path} does not tell its model (its tensors: {', '.join(list(weights.state)[:3])}, …); "
            "name it, as model=vit_tiny_16_224",
        )  # fmt: skip
    heads = given.num_heads if weights.model.num_heads else None
    if dataclasses.replace(given, grad_checkpointing=False) != ModelConfig(FROM_CHECKPOINT, num_heads=heads):
        raise ConfigError(
            "model", "the checkpoint tells the sizes; to give others, name the model: model=NAME model.…=…"
        )
    return weights.model


def _dataset(config: Config, weights: Weights, statistics: str) -> tuple[DatasetConfig, bool]:
    """The data set, and whether its statistics are ImageNet's because nothing gives others."""
    given, own = config.cell.dataset, weights.dataset
    if FROM_CHECKPOINT in (given.name, config.labels.get("dataset")):  # it may have been given another name
        if own is None and config.task == "evaluate":
            raise ConfigError(
                "dataset",
                f"{weights.path} does not tell how its pictures were normalised and cropped; name its data "
                "set, as dataset=imagenet1k dataset.root=FOLDER",
            )
        set_by_user = _set_by_user(config)
        named = own or DatasetConfig(UNKNOWN, kind="folder", num_classes=weights.num_classes)
        assumed = own is None and not {*STATISTICS} & {*set_by_user}
        return dataclasses.replace(named, **set_by_user), assumed
    if own is None or statistics == "dataset":
        return given, False
    recorded = {key: getattr(own, key) for key in STATISTICS}
    return dataclasses.replace(given, **recorded | _set_by_user(config)), False


def _set_by_user(config: Config) -> dict[str, Any]:
    """The data set's keys that were given on the command line, or by other files than its choice."""
    given = config.cell.dataset
    chosen = config.labels.get("dataset", given.name)
    untouched = choice("dataset", chosen) if chosen in options("dataset") else given
    return {
        f.name: getattr(given, f.name)
        for f in dataclasses.fields(given)
        if getattr(given, f.name) != getattr(untouched, f.name) or f"dataset.{f.name}" in config.typed
    }


def centred(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The central (height, width) of square images (..., S, S); S is the longer side."""
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def short_name(path: Path) -> str:
    """What to call a checkpoint in a file's name: the cell's identity and the file, or the file alone; where all such
    files have one name, their folder's, or the model's on the hub."""
    if (path.parent / "config.yaml").exists():
        return f"{path.parent.name}_{path.stem}"
    if path.name not in WEIGHTS:
        return path.stem
    if path.parent.parent.name == "snapshots":  # huggingface_hub's cache
        return path.parents[2].name.removeprefix("models--").replace("--", "_")
    return path.absolute().parent.name
