"""One reader for everybody's checkpoints: ours, timm's, DeiT's, the book's, safetensors.

Nothing is unpickled but tensors, plain containers and the `argparse.Namespace` that DeiT and the book store.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vitlab.config import ConfigError, DatasetConfig, ModelConfig, PretrainConfig, build
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, contradiction, is_archive, misfit, require_whole_archive, train_again
from vitlab.models.formats import (
    BOOK_DATASETS,
    BOOK_MODELS,
    dataset_of_deit,
    dataset_of_timm,
    grid_of_arguments,
    model_of_name,
    model_of_shapes,
    read_model_card,
)

LEAST_SHARE = 0.5
"""A checkpoint must supply at least this share of the model's parameters outside its head."""
_OURS = {
    "config": {"model": dict, "dataset": dict, "recipe": {"epochs": int, "precision": str}}, "epoch": int,
    "classes?": [str],
}  # fmt: skip
"""What is read of our own checkpoints in addition to the tensors."""
HEADS = ("head.", "head_dist.")
CLASSIFIERS = ("head.weight", "head.fc.weight")
"""A classifier's weight in timm's Vision Transformers, and in Swin and its like."""


@dataclass(frozen=True)
class Weights:
    """What a checkpoint file says. Fields that it does not tell are None."""

    path: Path
    state: dict[str, Tensor]
    kind: str
    """vitlab, book, deit, timm or plain (bare tensors)."""
    model: ModelConfig | None = None
    dataset: DatasetConfig | None = None
    """Statistics and evaluation crop, from the record or the training's own arguments."""
    classes: tuple[str, ...] | None = None
    epoch: int | None = None
    grid: tuple[int, int] | None = None
    """Patches down and across, where the arguments tell the image's height and width."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the training was told: our configuration, or the other program's flags."""

    @property
    def num_classes(self) -> int | None:
        """Width of the classifier, if there is one."""
        return next((self.state[key].shape[0] for key in CLASSIFIERS if key in self.state), None)

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
    """Read a checkpoint of any of the known kinds; `weights` is `raw` or `ema` (the moving average).

    Raises ConfigError, naming the file and the reason, for a file that is missing, truncated, no checkpoint, or that
    holds anything beyond tensors and plain values.
    """
    content = _read(path)
    if weights == "ema" and not isinstance(content.get("model_ema") or content.get("state_dict_ema"), Mapping):
        raise ConfigError("weights", f"{path} holds no moving average; use raw")
    keys = ("model_ema", "state_dict_ema") if weights == "ema" else ("model", "state_dict", "model_state_dict")
    state = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    tensors = {_clean(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no weights (its keys: {', '.join(map(str, list(content)[:6])) or 'none'})")
    if "cls_token" not in tensors and not any("attn.qkv" in key or "attn.q" in key for key in tensors):
        raise UserError(
            f"{path}: its tensors ({', '.join(list(tensors)[:3])}, …) are not those of a Vision Transformer of timm's; "
            "give a ViT's checkpoint (ours, timm's, DeiT's, the book's)"
        )
    epoch = content.get("epoch")
    known = _describe(path, content, tensors, state is not content)
    grid = grid_of_arguments(known.get("arguments", {}), tensors)
    return Weights(path, tensors, **known, grid=grid, epoch=epoch if isinstance(epoch, int) else None)


def _describe(path: Path, content: Mapping[str, Any], state: Mapping[str, Tensor], wrapped: bool) -> dict[str, Any]:
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
    if isinstance(name, str):
        size = said.get("img_size")
        model = model_of_name(name, state, size if isinstance(size, int) else None)
        return {"kind": "timm", "model": model, "dataset": dataset_of_timm(said, width), "arguments": said}
    if isinstance(said.get("model"), str):
        book = said.get("data_set") in BOOK_DATASETS or said["model"] in BOOK_MODELS
        return {
            "kind": "book" if book else "deit", "model": model_of_name(said["model"], state, said.get("input_size")),
            "dataset": dataset_of_deit(said, width), "arguments": said,
        }  # fmt: skip
    if card := read_model_card(path):
        model = model_of_name(card["architecture"], state)
        told = card.get("pretrained_cfg") or {}
        return {"kind": "timm", "model": model, "dataset": dataset_of_timm(told, width), "arguments": told}
    return {"kind": "timm" if wrapped else "plain", "model": model_of_shapes(state)}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError("checkpoint", f"there is no file {str(path)!r}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from error
    if is_archive(path):
        require_whole_archive(path, remedy_of(path))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols: what cannot be read is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if culprit := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path}: refused: reading it would call or build {culprit[1]}, and only tensors, plain values and "
                "argparse.Namespace are allowed; save the model's state_dict() instead"
            ) from error
        raise DamagedError(path, "not a checkpoint, or a damaged one", remedy_of(path)) from error
    except Exception as error:  # a damaged pickle makes the reader raise nearly anything
        reason = (str(error).splitlines() or ["it is empty"])[0].partition(". ")[0]
        raise DamagedError(path, f"not a checkpoint, or a truncated one ({reason})", remedy_of(path)) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    return dict(content)


def remedy_of(path: Path) -> str:
    """What to do about a damaged checkpoint: train again where it lies in a cell's folder, else get it again."""
    if path.with_name("config.yaml").exists():
        return train_again(path.parent.name)
    return "copy or download it again"


def _clean(key: str) -> str:
    """A parameter's name without what wrappers put before it (DDP, torch.compile)."""
    for prefix in ("module.", "_orig_mod.", "model."):
        key = key.removeprefix(prefix)
    return key


def load_weights(model: nn.Module, weights: Weights, *, keep_head: bool = False) -> LoadReport:
    """Put a checkpoint's tensors into a Vision Transformer of timm's.

    Position embeddings of another grid are resized. The classifier is left as initialised unless `keep_head` and its
    shape is the model's. Raises ConfigError where a tensor has another shape for a reason that resizing does not
    fix, or where less than half of the parameters outside the head would be loaded.
    """
    wanted = model.state_dict()
    taken: dict[str, Tensor] = {}
    resized: list[str] = []
    dropped: list[str] = []
    for key, tensor in weights.state.items():
        target = wanted.get(key)
        is_head = key.startswith(HEADS)
        if target is None or (is_head and (not keep_head or target.shape != tensor.shape)):
            dropped.append(key)
        elif target.shape == tensor.shape:
            taken[key] = tensor
        elif key == "pos_embed":
            taken[key] = _resized_position(model, weights, tensor, target)
            resized.append(f"pos_embed {tuple(tensor.shape[1:])} → {tuple(target.shape[1:])}")
        else:
            of = f", {weights.model.name}," if weights.model else ""
            raise UserError(
                f"{weights.path}: {key} is {tuple(tensor.shape)} there and {tuple(target.shape)} in the model; "
                f"give the model that the checkpoint is of{of} with model=…"
            )
    body = [key for key in wanted if not key.startswith(HEADS)]
    total, found = (sum(wanted[k].numel() for k in keys) for keys in (body, [k for k in body if k in taken]))
    if found < LEAST_SHARE * total:
        missing = [key for key in body if key not in taken]
        raise UserError(
            f"{weights.path}: supplies {100 * found / total:.0f} % of the model's parameters (missing: "
            f"{', '.join(missing[:4])}, …); training would start from noise. Give the model that the file is of"
        )
    model.load_state_dict(taken, strict=False)
    return LoadReport(len(taken), tuple(resized), tuple(dropped), tuple(k for k in wanted if k not in taken))


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
            "the file does not tell their grid; give the model that the checkpoint is of (model=…)"
        )
    return resample_abs_pos_embed(tensor, list(new), list(old), prefix)
