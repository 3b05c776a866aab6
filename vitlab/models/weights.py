"""One reader for everybody's checkpoints: ours, timm's, DeiT's, the book's, Meta's, Google's, torchvision's and
transformers'.

A file's tensors get timm's names, and everything else that it says (architecture, statistics, labels) its field.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitlab.config import ConfigError, DatasetConfig, ModelConfig, PretrainConfig, build
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, contradiction, misfit
from vitlab.models.architecture import Architecture, architecture_of
from vitlab.models.formats import (
    BOOK_DATASETS,
    BOOK_MODELS,
    arguments_of_card,
    as_overrides,
    dataset_of_deit,
    dataset_of_google,
    dataset_of_timm,
    dataset_of_transformers,
    grid_of_arguments,
    labels_of,
    model_of_name,
    plain_arguments,
    read_card,
    size_of,
    sized,
    told_by_transformers,
    what_was_found,
)
from vitlab.models.layouts import TensorLayout, in_timms_names, known_layout, without_wrappers
from vitlab.models.model_files import read_file, remedy_of, require_held
from vitlab.models.published import dataset_of_training, fill_in

LEAST_SHARE = 0.5
"""A checkpoint must supply at least this share of the model's parameters outside its head."""
_OURS = {
    "config": {"model": dict, "dataset": dict, "recipe": {"epochs": int, "precision": str}}, "epoch": int,
    "classes?": [str],
}  # fmt: skip
"""What is read of our own checkpoints in addition to the tensors."""
HEADS = ("head.", "head_dist.")
CLASSIFIERS = ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight")
"""A classifier's weight in timm's Vision Transformers, in Swin and its like, and in convolutional networks."""
STATES = ("model", "state_dict", "model_state_dict", "net", "module", "weights", "params")
"""The keys under which programs store the tensors, in the order of preference."""
_NO_STATES = ("optimizer", "optimizer_state_dict", "scaler", "lr_scheduler", "scheduler", "dino_loss")


@dataclass(frozen=True)
class Weights:
    """What a checkpoint file says. Fields that it does not tell are None."""

    path: Path
    state: dict[str, Tensor]
    """By timm's names."""
    kind: str
    """Who wrote it: vitlab, book, deit, timm, transformers, torchvision, google, or plain (bare tensors)."""
    model: ModelConfig | None = None
    dataset: DatasetConfig | None = None
    """Statistics and evaluation crop, from the record or the training's own arguments."""
    classes: tuple[str, ...] | None = None
    epoch: int | None = None
    grid: tuple[int, int] | None = None
    """Patches down and across, where the arguments tell the image's height and width."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The training's settings: our configuration, or the other program's flags."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """timm's arguments beyond those of `model`."""
    chosen: tuple[str, ...] = ()
    """Which of the file's tensors were taken and which were not, in lines."""
    said: tuple[str, ...] = ()
    """What was inferred of `model`, in lines."""

    @property
    def num_classes(self) -> int | None:
        """Width of the classifier, if there is one."""
        own = classifiers_of(self.model.name) if self.model else ()
        return next((self.state[k].shape[0] for k in (*own, *CLASSIFIERS) if k in self.state), None)

    def describe(self) -> str:
        """Which file, of what kind, of which epoch."""
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        return f"checkpoint {self.path} ({self.kind}{epoch})"


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors."""

    loaded: int
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    """In the checkpoint, not used."""
    fresh: tuple[str, ...]
    """In the model, not in the checkpoint: as initialised."""

    def summary(self, most: int | None = None) -> str:
        """The report in a line, naming at most so many tensors of a kind."""
        parts = [f"{self.loaded} tensors loaded"]
        for word in ("resized", "dropped", "fresh"):
            if names := getattr(self, word):
                more = f" and {len(names) - most} more" if most and len(names) > most else ""
                parts.append(f"{word}: {', '.join(names[:most])}{more}")
        return "; ".join(parts)


def read_checkpoint(path: Path, *, weights: str = "raw") -> Weights:
    """Read a checkpoint of any of the known kinds.

    `weights` is `raw`, `ema` (the moving average) or `student` (of a self-distillation such as DINO's, where raw is the
    teacher). Raises ConfigError, naming the file and the reason, for a file that is missing, truncated, no checkpoint,
    or that holds anything beyond tensors and plain values.
    """
    content = read_file(path)
    state, notes = _state_of(path, content, weights)
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no weights (its keys: {', '.join(map(str, list(content)[:6])) or 'none'})")
    require_held(path, tensors)
    card = read_card(path)
    known, layout, heads = known_layout(tensors, "student" if weights == "student" else "teacher"), None, None
    if known is None:
        tensors = {without_wrappers(key): value for key, value in tensors.items()}
    else:
        layout, prefix = known
        try:
            heads = layout.heads(tensors)
            named = isinstance(content.get("arch"), str) or "schema_version" in content or "architecture" in card
            tensors, said = in_timms_names(tensors, layout, prefix, named=named)
        except (UserError, RuntimeError, KeyError, IndexError) as error:
            of = f" for a {card['model_type']}" if "model_type" in card else ""
            raise UserError(f"{path}: {layout.name}'s names{of}, but not all tensors of a ViT: {error}") from error
        notes += said
    epoch = content.get("epoch")
    found = _describe(path, content, card, tensors, state is not content, layout, heads)
    if found.get("dataset") is None or found.get("model") is None:
        classes = next((tensors[key].shape[0] for key in CLASSIFIERS if key in tensors), None)
        notes += fill_in(found, path, tensors, classes)
    grid = found.pop("grid", None) or grid_of_arguments(found.get("arguments", {}), tensors)
    reached = epoch if isinstance(epoch, int) else None
    return Weights(path, tensors, **found, grid=grid, chosen=tuple(notes), epoch=reached)


def _state_of(path: Path, content: Mapping[str, Any], weights: str) -> tuple[Mapping[str, Any], list[str]]:
    """The mapping of a checkpoint's tensors, and what to say of the choice."""
    if weights == "student" and not isinstance(content.get("student"), Mapping):
        if any("student." in str(key) for key in content):
            return content, []
        raise ConfigError("weights", f"{path} holds no student; use raw")
    if weights == "ema":
        for key in ("model_ema", "state_dict_ema", "ema", "ema_state_dict"):
            if isinstance(content.get(key), Mapping):
                return content[key], []
        raise ConfigError("weights", f"{path} holds no moving average; use raw")
    if isinstance(content.get("teacher"), Mapping) or weights == "student":
        whose = "student" if weights == "student" else "teacher"
        other = "" if weights == "student" else "; weights=student takes the other"
        return content[whose], [f"it holds a teacher and a student: the {whose} is taken{other}"]
    for key in STATES:
        if isinstance(content.get(key), Mapping):
            return content[key], []
    if not any(isinstance(value, Tensor) for value in content.values()):
        nested = {k: v for k, v in content.items() if isinstance(v, Mapping) and k not in _NO_STATES}
        held = {k: v for k, v in nested.items() if any(isinstance(x, Tensor) for x in v.values())}
        if len(held) == 1:
            ((key, state),) = held.items()
            return state, [f"its weights are taken from {key!r}"]
    return content, []


def _describe(
    path: Path, content: Mapping[str, Any], card: Mapping[str, Any], state: Mapping[str, Tensor], wrapped: bool,
    layout: TensorLayout | None, heads: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that a checkpoint's content says apart from its tensors, as fields of `Weights`."""
    config, arguments, name = content.get("config"), content.get("args"), content.get("arch")
    width = next((state[key].shape[0] for key in CLASSIFIERS if key in state), None)
    if isinstance(config, Mapping) and "schema_version" in content:
        classes = content.get("classes")
        if problem := misfit(content, _OURS):
            raise DamagedError(path, f"damaged ({problem})", remedy_of(path))
        return {
            "kind": "vitlab", "model": build(ModelConfig, config["model"], "model"),
            "dataset": build(DatasetConfig, config["dataset"], "dataset"), "arguments": config,
            "classes": tuple(classes) if classes else None,
        }  # fmt: skip
    said = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    if isinstance(name, str) and timm.is_model(BOOK_MODELS.get(name, name)):
        size = said.get("img_size")
        model = model_of_name(name, state, size if isinstance(size, int) else None)
        return {
            "kind": "timm", "model": model, "dataset": dataset_of_training(name, said, width), "arguments": said,
            "build": plain_arguments(said.get("model_kwargs")),
        }  # fmt: skip
    if isinstance(of_deit := said.get("model"), str):
        book = said.get("data_set") in BOOK_DATASETS or of_deit in BOOK_MODELS
        found = {"kind": "book" if book else "deit", "dataset": dataset_of_deit(said, width), "arguments": said}
        if timm.is_model(BOOK_MODELS.get(of_deit, of_deit)):
            return found | {"model": model_of_name(of_deit, state, said.get("input_size"))}
        return found | _fields(architecture_of(state, size=size_of(said)))  # a name of its own, as DeiT-III's
    if isinstance(card.get("architecture"), str):
        seen = card.get("pretrained_cfg") or {}
        model = model_of_name(card["architecture"], state)
        return {
            "kind": "timm", "model": sized(model, card), "dataset": dataset_of_timm(seen, width), "arguments": seen,
            "classes": labels_of(card, width), "build": arguments_of_card(card),
        }  # fmt: skip
    kind = layout.name if layout is not None and layout.name != "timm" else "timm" if wrapped else "plain"
    found = {"kind": kind, "arguments": said}
    options: dict[str, Any] = {"heads": heads}
    if kind == "google":
        found["dataset"] = dataset_of_google(width)
    if layout is not None and layout.name == "transformers" and "model_type" in card:
        options = told_by_transformers(path, card)
        found |= {"dataset": dataset_of_transformers(path, width), "classes": labels_of(card, width)}
    return found | _fields(architecture_of(state, **{"size": size_of(said), **options}))


def _fields(architecture: Architecture | None) -> dict[str, Any]:
    if architecture is None:
        return {}
    return {
        "model": architecture.model, "build": architecture.arguments, "grid": architecture.grid,
        "said": (architecture.said,),
    }  # fmt: skip


def load_weights(model: nn.Module, weights: Weights, *, keep_head: bool = False) -> LoadReport:
    """Put a checkpoint's tensors into a model of timm's.

    Position embeddings of another grid are resized. The classifier is left as initialised unless `keep_head` and its
    shape is the model's. Raises ConfigError where a tensor has another shape for a reason that resizing does not
    fix, or where less than half of the parameters outside the head would be loaded.
    """
    wanted, heads = model.state_dict(), _heads_in(model)
    old_heads = [key for key in weights.state if key.startswith(heads) and key in wanted]
    keep_head = keep_head and all(wanted[key].shape == weights.state[key].shape for key in old_heads)
    taken: dict[str, Tensor] = {}
    resized: list[str] = []
    dropped: list[str] = []
    for key, tensor in weights.state.items():
        target = wanted.get(key)
        is_head = key.startswith(heads)
        if target is None or (is_head and not keep_head):
            dropped.append(key)
        elif target.shape == tensor.shape:
            taken[key] = tensor
        elif key == "pos_embed":
            taken[key] = _resized_position(model, weights, tensor, target)
            resized.append(f"pos_embed {tuple(tensor.shape[1:])} → {tuple(target.shape[1:])}")
        else:
            typed = as_overrides(weights.model) if weights.model else "model.name=NAME"
            raise UserError(
                f"{weights.path}: {key} is {tuple(tensor.shape)} there and {tuple(target.shape)} in the model; "
                f"give the model that the checkpoint is of: {typed}"
            )
    body = [key for key in wanted if not key.startswith(heads)]
    total, found = (sum(wanted[k].numel() for k in keys) for keys in (body, [k for k in body if k in taken]))
    if found < LEAST_SHARE * total:
        missing = [key for key in body if key not in taken]
        if not found and known_layout(weights.state) is None:
            raise UserError(f"{weights.path}: {what_was_found(weights.path, list(weights.state))}")
        raise UserError(
            f"{weights.path}: supplies {100 * found / total:.0f} % of the model's parameters (missing: "
            f"{', '.join(missing[:4])}, …); training would start from noise. Give the model that the file is of"
        )
    model.load_state_dict(taken, strict=False)
    return LoadReport(len(taken), tuple(resized), tuple(dropped), tuple(k for k in wanted if k not in taken))


def _heads_in(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's parameters begin with."""
    if isinstance(model, VisionTransformer):
        return HEADS
    names = getattr(model, "default_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names)) or HEADS


def classifiers_of(name: str) -> tuple[str, ...]:
    """The classifier's weights, by name, in timm's architecture `name`."""
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    names = (known.classifier if known else None) or ()
    return tuple(f"{one}.weight" for one in ([names] if isinstance(names, str) else names))


def load_start(
    model: nn.Module, start: PretrainConfig, path: Path, trained: Mapping[str, Any] | None = None
) -> tuple[Weights, LoadReport]:
    """What `pretrain=` asks for: the checkpoint at `path`, put into `model`.

    `trained` is the experiment of the pre-training that must have made the file, to its end. Raises ConfigError naming
    the key, DamagedError where the file is another one.
    """
    try:
        weights = read_checkpoint(path, weights=start.weights)
        if trained is not None:
            require_trained(weights, trained)
            if weights.epoch != trained["recipe"]["epochs"]:
                problem = f"holds epoch {weights.epoch} of {trained['recipe']['epochs']}"
                raise DamagedError(path, problem, remedy_of(path))
        return weights, load_weights(model, weights, keep_head=start.keep_head)
    except UserError as error:
        if trained is not None:  # no key names the file
            raise
        if isinstance(error, ConfigError) and error.key == "weights":
            raise error.under("pretrain") from error
        raise ConfigError("pretrain.path", str(error)) from error


def require_trained(weights: Weights, experiment: Mapping[str, Any]) -> None:
    """Raise DamagedError where a checkpoint of ours was not made by this experiment (as plain values)."""
    if other := "kind" if weights.kind != "vitlab" else contradiction(weights.arguments, experiment):
        problem = f"belongs to another cell (of another {other})"
        raise DamagedError(weights.path, problem, remedy_of(weights.path))


def _resized_position(model: nn.Module, weights: Weights, tensor: Tensor, target: Tensor) -> Tensor:
    """`tensor` (1, N, D) for the model's own grid. The old grid is the one that the file tells, else a square, else
    as many times as wide as the new."""
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    prefix = 0 if getattr(model, "no_embed_class", False) else prefix
    new: tuple[int, int] = tuple(model.patch_embed.grid_size)  # pyright: ignore
    count = tensor.shape[1] - prefix
    side, height = math.isqrt(max(count, 0)), math.isqrt(max(round(count * new[0] / new[1]), 0))
    guesses = [weights.grid, (side, side), (height, count // height) if height else None]
    old = next((grid for grid in guesses if grid and grid[0] * grid[1] == count > 0), None)
    if old is None or tensor.shape[2] != target.shape[2]:
        raise UserError(
            f"{weights.path}: its pos_embed {tuple(tensor.shape)} cannot be resized to the model's "
            f"{tuple(target.shape)}: without {prefix} class tokens it is of {count} patches, which make no square, and "
            "the file does not tell their grid; give the model that the checkpoint is of: model.name=NAME"
        )
    return resample_abs_pos_embed(tensor, list(new), list(old), prefix)
