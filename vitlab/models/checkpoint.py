"""One reader for everybody's checkpoints: ours, timm's, DeiT's, the book's, safetensors.

Nothing is unpickled but tensors, plain containers and the `argparse.Namespace` that DeiT and the book store.
"""

from __future__ import annotations

import argparse
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitlab.config import IMAGENET_MEAN, IMAGENET_STD, ConfigError, DatasetConfig, ModelConfig, build
from vitlab.models.position import resize_position_embedding

LEAST_SHARE = 0.5
"""A checkpoint must supply at least this share of the model's parameters outside its head."""
HEADS = ("head.", "head_dist.")
BOOK_NAMES = {
    "vit_tiny_16_224": "vit_tiny_patch16_224",
    "vit_small_16_224": "vit_small_patch16_224",
    "vit_base_16_224": "vit_base_patch16_224",
}
"""The book's model names → timm's."""


@dataclass(frozen=True)
class Weights:
    """What a checkpoint file says. Fields that it does not tell are None."""

    path: Path
    state: dict[str, Tensor]
    kind: str
    """vitlab, deit (DeiT's and the book's main.py), timm or plain."""
    model: ModelConfig | None = None
    dataset: DatasetConfig | None = None
    """Statistics and evaluation crop, from the record or the training's own arguments."""
    classes: tuple[str, ...] | None = None
    epoch: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int | None:
        """Width of the classifier, if there is one."""
        return self.state["head.weight"].shape[0] if "head.weight" in self.state else None


@dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint's tensors."""

    loaded: int
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    """In the checkpoint, not used."""
    fresh: tuple[str, ...]
    """In the model, not in the checkpoint: as initialised."""

    def summary(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        for word in ("resized", "dropped", "fresh"):
            if names := getattr(self, word):
                parts.append(f"{word}: {', '.join(names)}")
        return "; ".join(parts)


def find_checkpoint(name: str, output_dir: str) -> Path:
    """The file that a user means: a file, a cell's folder (its last.pt), or a cell's identity below `output_dir`."""
    for path in (Path(name), Path(output_dir) / name):
        if path.is_file():
            return path
        if path.is_dir():
            if (path / "last.pt").is_file():
                return path / "last.pt"
            raise ConfigError(f"checkpoint: no last.pt in {str(path)!r}; has the cell been trained?")
    raise ConfigError(f"checkpoint: no file, cell folder or identity {name!r} (also looked in {output_dir!r})")


def read_checkpoint(path: Path, *, weights: str = "raw") -> Weights:
    """Read a checkpoint of any of the known kinds; `weights` is `raw` or `ema` (the moving average).

    Raises ConfigError, naming the file and the reason, for a file that is missing, truncated, no checkpoint, or that
    holds anything beyond tensors and plain values.
    """
    content = _read(path)
    if weights == "ema" and not isinstance(content.get("model_ema") or content.get("state_dict_ema"), Mapping):
        raise ConfigError(f"weights: {path} holds no moving average; use weights=raw")
    keys = ("model_ema", "state_dict_ema") if weights == "ema" else ("model", "state_dict", "model_state_dict")
    state = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    tensors = {_clean(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ConfigError(f"{path}: holds no weights (its keys: {', '.join(map(str, list(content)[:6])) or 'none'})")
    if "cls_token" not in tensors and not any("attn.qkv" in key or "attn.q" in key for key in tensors):
        raise ConfigError(
            f"{path}: its tensors ({', '.join(list(tensors)[:3])}, …) are not those of a Vision Transformer of timm's"
        )
    epoch = content.get("epoch")
    epoch = epoch if isinstance(epoch, int) else None
    if "config" in content and "schema_version" in content:
        config = content["config"]
        classes = content.get("classes")
        return Weights(
            path, tensors, "vitlab", model=build(ModelConfig, config["model"], "model"),
            dataset=build(DatasetConfig, config["dataset"], "dataset"), epoch=epoch,
            classes=tuple(classes) if classes else None,
        )  # fmt: skip
    if isinstance(content.get("args"), argparse.Namespace):
        arguments = vars(content["args"])
        model = _model_of_arguments(arguments, tensors)
        return Weights(path, tensors, "deit", model, _dataset_of_arguments(arguments, tensors), None, epoch, arguments)
    architecture = content.get("arch")
    named = ModelConfig(name=architecture, image_size=224) if isinstance(architecture, str) else None
    return Weights(
        path, tensors, "timm" if state is not content else "plain", named or _model_of_shapes(tensors), epoch=epoch
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"checkpoint: there is no file {str(path)!r}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: not a whole safetensors file ({error})") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            culprit = str(error).split("GLOBAL ")[-1].split()[0] if "GLOBAL " in str(error) else "code"
            raise ConfigError(
                f"{path}: refused: it would run or build {culprit} when read, and only tensors, plain values and "
                "argparse.Namespace are allowed"
            ) from error
        raise ConfigError(f"{path}: not a checkpoint, or a damaged one") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{path}: not a checkpoint, or a truncated one ({str(error).splitlines()[0][:120]})"
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    return dict(content)


def _clean(key: str) -> str:
    """A parameter's name without what wrappers put before it (DDP, torch.compile)."""
    for prefix in ("module.", "_orig_mod.", "model."):
        key = key.removeprefix(prefix)
    return key


def _model_of_arguments(arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> ModelConfig | None:
    name = arguments.get("model")
    if not isinstance(name, str):
        return _model_of_shapes(state)
    return ModelConfig(name=BOOK_NAMES.get(name, name), image_size=int(arguments.get("input_size") or 224))


def _dataset_of_arguments(arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> DatasetConfig:
    """How DeiT's and the book's main.py normalise and crop: by their --data-set (facts of their source)."""
    name = str(arguments.get("data_set") or "IMNET")
    cifar = name.upper().startswith("CIFAR") and "CIFAR10" in name.upper()
    half = "fractal" in name.lower()
    statistics = ((0.5,) * 3, (0.5,) * 3) if half else (IMAGENET_MEAN, IMAGENET_STD)
    if cifar and "unscale_lr" not in arguments:  # the book's fork; DeiT itself normalises CIFAR as ImageNet
        statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    head = state.get("head.weight")
    return DatasetConfig(
        name=name, kind="folder", num_classes=None if head is None else head.shape[0], mean=statistics[0],
        std=statistics[1], eval_crop=float(arguments.get("eval_crop_ratio") or 0.875),
    )  # fmt: skip


def _model_of_shapes(state: Mapping[str, Tensor]) -> ModelConfig | None:
    """A plain ViT's sizes, from its tensors; None where they do not tell (64-wide heads are assumed, as timm's are)."""
    patch, position = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if patch is None or position is None or "blocks.0.attn.qkv.weight" not in state or "cls_token" not in state:
        return None
    width, depth = patch.shape[0], 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    grid = math.isqrt(position.shape[1] - 1)
    if grid * grid != position.shape[1] - 1 or width % 64 or "dist_token" in state:
        return None
    return ModelConfig(
        name="vit_tiny_patch16_224", image_size=grid * patch.shape[2], patch_size=patch.shape[2], embed_dim=width,
        depth=depth, num_heads=width // 64,
    )  # fmt: skip


def load_weights(
    model: nn.Module, weights: Weights, *, keep_head: bool = False, num_classes: int | None = None
) -> LoadReport:
    """Put a checkpoint's tensors into a Vision Transformer of timm's.

    Position embeddings of another grid are resized. The classifier is left as initialised unless `keep_head` and its
    shape is the model's. Raises ConfigError where a tensor has another shape for a reason that resizing does not
    mend, or where less than half of the parameters outside the head would be loaded.
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
            taken[key] = _resized_position(model, tensor, target)
            resized.append(f"pos_embed {tuple(tensor.shape[1:])} → {tuple(target.shape[1:])}")
        else:
            raise ConfigError(
                f"{weights.path}: {key} is {tuple(tensor.shape)} there and {tuple(target.shape)} in the model; "
                "give the model that the checkpoint is of (model=…)"
            )
    body = [key for key in wanted if not key.startswith(HEADS)]
    total, found = (sum(wanted[k].numel() for k in keys) for keys in (body, [k for k in body if k in taken]))
    if found < LEAST_SHARE * total:
        missing = [key for key in body if key not in taken]
        raise ConfigError(
            f"{weights.path}: supplies {100 * found / total:.0f} % of the model's parameters (missing: "
            f"{', '.join(missing[:4])}, …); training would start from noise. Give the model that the file is of"
        )
    model.load_state_dict(taken, strict=False)
    return LoadReport(len(taken), tuple(resized), tuple(dropped), tuple(k for k in wanted if k not in taken))


def _resized_position(model: nn.Module, tensor: Tensor, target: Tensor) -> Tensor:
    """`tensor` (1, N, D) for the model's own grid; the old grid is square, or as many times as wide as the new."""
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    prefix = 0 if getattr(model, "no_embed_class", False) else prefix
    new = tuple(model.patch_embed.grid_size)  # pyright: ignore
    count = tensor.shape[1] - prefix
    side = math.isqrt(count)
    old = (side, side) if side * side == count else None
    if old is None:
        height = math.isqrt(round(count * new[0] / new[1]))
        old = (height, count // height) if height and height * (count // height) == count else None
    if old is None or tensor.shape[2] != target.shape[2]:
        raise ConfigError(f"pos_embed: {tuple(tensor.shape)} cannot be resized to {tuple(target.shape)}")
    return resize_position_embedding(tensor, old, new, prefix)  # pyright: ignore[reportArgumentType]
