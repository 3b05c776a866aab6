"""What other programs' checkpoints say of themselves: the book's and DeiT's arguments, timm's, and bare tensors.

Normalisation and crop are what those programs' own sources do with the recorded arguments, never what timm holds
for a model's name: for `vit_tiny_patch16_224` that is 0.5 and a crop of 0.9, and the book's weights want neither.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlab.config import IMAGENET_MEAN, IMAGENET_STD, DatasetConfig, ModelConfig
from vitlab.config.choices import native_image_size
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, misfit
from vitlab.models.model_files import remedy_of

BOOK_MODELS = {
    "vit_tiny_16_224": "vit_tiny_patch16_224",
    "vit_small_16_224": "vit_small_patch16_224",
    "vit_base_16_224": "vit_base_patch16_224",
}
"""The book's model names → timm's."""
BOOK_DATASETS = ("ImageNet", "CIFAR10", "CIFAR100", "FractalDB-1k")
"""The book's choices of --data-set; DeiT's are CIFAR, IMNET, INAT and INAT19."""
BOOK_CIFAR_MEAN, BOOK_CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
HALF = (0.5, 0.5, 0.5)
RESAMPLING = {"bilinear": 2, "bicubic": 3}
"""How pictures are resized → Pillow's number of it, which transformers' preprocessors hold."""
_TRANSFORMERS = {"num_attention_heads": int, "hidden_size": int, "layer_norm_eps?": (int, float), "hidden_act?": str}
"""What is read of a transformers config.json in addition to the tensors."""


def model_of_name(name: str, state: Mapping[str, Tensor], image_size: int | None = None) -> ModelConfig:
    """timm's model of that name (or the book's), for the image size that the position embeddings are of, else that its
    training says, else the architecture's own."""
    own = BOOK_MODELS.get(name, name.partition(".")[0])
    return ModelConfig(own, image_size=_image_size(state) or image_size or native_image_size(own))


def as_overrides(model: ModelConfig) -> str:
    """What to type for `model`: its name, image size, and the sizes that are not the architecture's own."""
    sizes = {key: getattr(model, key) for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    given = {"name": model.name, "image_size": model.image_size} | {k: v for k, v in sizes.items() if v is not None}
    return " ".join(f"model.{key}={value}" for key, value in given.items())


def _image_size(state: Mapping[str, Tensor]) -> int | None:
    """Side of the square input in pixels, from the patches and the position embeddings."""
    patch, position = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if patch is None or position is None or patch.ndim != 4 or position.ndim != 3:
        return None
    for prefix in (("cls_token" in state) + ("dist_token" in state), 0):
        grid = math.isqrt(max(position.shape[1] - prefix, 0))
        if grid and grid * grid == position.shape[1] - prefix:
            return grid * patch.shape[2]
    return None


def size_of(said: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels by a training's `img_size` or `input_size`."""
    for size in (said.get("img_size"), said.get("input_size")):
        if isinstance(size, list | tuple) and len(size) >= 2 and all(isinstance(side, int) for side in size):
            return int(size[-2]), int(size[-1])
    return None


def grid_of_arguments(arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Patches down and across by `img_size` or `input_size`: [height, width], timm's [3, height, width], or a side."""
    patch = state.get("patch_embed.proj.weight")
    for size in (arguments.get("img_size"), arguments.get("input_size")):
        sides = [size, size] if isinstance(size, int) else list(size)[-2:] if isinstance(size, list | tuple) else []
        if patch is not None and patch.ndim == 4 and len(sides) == 2 and all(isinstance(s, int) for s in sides):
            return sides[0] // patch.shape[2], sides[1] // patch.shape[3]
    return None


def dataset_of_deit(arguments: Mapping[str, Any], classes: int | None) -> DatasetConfig:
    """How the book's and DeiT's main.py normalise and crop for evaluation, by their --data-set.

    ImageNet: ImageNet's statistics, Resize(256), CenterCrop(224). The book: CIFAR's own statistics and the whole
    image for CIFAR, 0.5 for FractalDB-1k. DeiT: ImageNet's statistics for everything.
    """
    name = str(arguments.get("data_set") or "IMNET")
    crop = float(arguments.get("eval_crop_ratio") or 0.875)
    if name in ("CIFAR10", "CIFAR100", "CIFAR"):
        kind = "cifar10" if name == "CIFAR10" else "cifar100"
        mean, std, keep = BOOK_CIFAR_MEAN, BOOK_CIFAR_STD, 1.0
        if name == "CIFAR":
            mean, std, keep = IMAGENET_MEAN, IMAGENET_STD, crop
        return DatasetConfig(
            kind, kind=kind, num_classes=10 if kind == "cifar10" else 100, num_train=50000, num_eval=10000,
            image_size=32, mean=mean, std=std, eval_crop=keep,
        )  # fmt: skip
    if name == "FractalDB-1k":
        return DatasetConfig(
            "fractaldb1k", kind="folder", num_classes=classes, num_eval=0, mean=HALF, std=HALF, eval_crop=crop
        )
    ours = "imagenet1k" if name in ("ImageNet", "IMNET") else name
    return DatasetConfig(ours, kind="folder", num_classes=classes, eval_crop=crop)


def dataset_of_timm(arguments: Mapping[str, Any], classes: int | None) -> DatasetConfig | None:
    """What timm's train.py or a model card says, where it gives mean, std and crop; else None."""
    mean, std, crop = (arguments.get(key) for key in ("mean", "std", "crop_pct"))
    if not mean or not std or not crop:
        return None
    return DatasetConfig(
        str(arguments.get("dataset") or "folder"), kind="folder", num_classes=classes, mean=_three(mean),
        std=_three(std), eval_crop=float(crop), eval_interpolation=_interpolation(arguments.get("interpolation")),
    )  # fmt: skip


def dataset_of_transformers(path: Path, classes: int | None) -> DatasetConfig | None:
    """What a preprocessor_config.json next to the weights says: mean, std, and the share that the centre crop keeps.

    Images are resized to the model's input whole unless it crops. None where there is no such file.
    """
    said = _read_json(path.with_name("preprocessor_config.json"))
    mean, std = said.get("image_mean"), said.get("image_std")
    if not mean or not std or not said.get("do_normalize", True):
        return None
    crop = 1.0
    if said.get("do_center_crop"):
        sides = [_side(said.get(key)) for key in ("crop_size", "size")]
        crop = min(sides[0] / sides[1], 1.0) if sides[0] and sides[1] else 0.875
    return DatasetConfig(
        "folder", kind="folder", num_classes=classes, mean=_three(mean), std=_three(std), eval_crop=crop,
        eval_interpolation=_interpolation(said.get("resample")),
    )  # fmt: skip


def _interpolation(said: Any) -> Any:
    """Of the two ways to resize that there are here the one that a file says, by name or by Pillow's number."""
    return "bilinear" if said in ("bilinear", RESAMPLING["bilinear"]) else "bicubic"


def told_by_transformers(path: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """What a transformers config.json tells in addition to the tensors, as arguments of `architecture_of`."""
    if problem := misfit(card, _TRANSFORMERS):
        raise DamagedError(path.with_name("config.json"), f"no configuration of a ViT ({problem})", remedy_of(path))
    size = card.get("image_size")
    activation = str(card.get("hidden_act") or "gelu")
    known = {"gelu": None, "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu",
             "relu": "relu", "silu": "silu", "swish": "silu"}  # fmt: skip
    if activation not in known:
        raise UserError(
            f"{path.with_name('config.json')}: hidden_act {activation!r} is none that is read here ({', '.join(known)})"
        )
    return {
        "heads": card["num_attention_heads"], "norm_eps": float(card.get("layer_norm_eps") or 1e-12),
        "size": (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else None,
        "activation": known[activation],
    }  # fmt: skip


def dataset_of_google(classes: int | None) -> DatasetConfig:
    """How Google's ViTs see pictures, and timm's configurations of these weights say: 0.5, and a crop of 0.9."""
    return DatasetConfig("folder", kind="folder", num_classes=classes, mean=HALF, std=HALF, eval_crop=0.9)


def _side(size: Any) -> int | None:
    """A number of pixels, as transformers writes it: a number, or a mapping of sides."""
    if isinstance(size, Mapping):
        size = next((size[key] for key in ("shortest_edge", "height", "width") if key in size), None)
    return size if isinstance(size, int) and size > 0 else None


def labels_of(card: Mapping[str, Any], classes: int | None) -> tuple[str, ...] | None:
    """The class names of a config.json: transformers' `id2label`, or timm's `label_names`; None unless there is one
    for each class, and where they are transformers' place holders (LABEL_0)."""
    numbered = card.get("id2label")
    if isinstance(numbered, Mapping) and len(numbered) == classes:
        try:
            names = tuple(str(name) for _, name in sorted(numbered.items(), key=lambda pair: int(pair[0])))
        except ValueError:
            return None
        return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names
    names = card.get("label_names")
    if not isinstance(names, list) or len(names) != classes:
        return None
    said = card.get("label_descriptions")
    return tuple(str(said.get(name, name)) if isinstance(said, Mapping) else str(name) for name in names)


def arguments_of_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """timm's further arguments in its config.json: `model_args`, and the pooling where it is not the model's own."""
    pooling = card.get("global_pool")
    return ({"global_pool": pooling} if isinstance(pooling, str) else {}) | plain_arguments(card.get("model_args"))


def plain_arguments(given: Any) -> dict[str, Any]:
    """A model's arguments that are plain values, without those that `ModelConfig` or the tensors tell."""
    if not isinstance(given, Mapping):
        return {}
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if isinstance(k, str)}
    return {k: v for k, v in plain.items() if k not in ("num_classes", "img_size", "pretrained", "checkpoint_path")}


def sized(model: ModelConfig, card: Mapping[str, Any]) -> ModelConfig:
    """`model` with the image size of a timm config.json, where the tensors do not tell it."""
    given = card.get("model_args")
    size = given.get("img_size") if isinstance(given, Mapping) else None
    return ModelConfig(model.name, image_size=size) if isinstance(size, int) else model


def _three(values: Any) -> tuple[float, float, float]:
    numbers = [float(v) for v in values]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def read_card(path: Path) -> dict[str, Any]:
    """The config.json next to a weights file: timm's (`architecture`) or transformers' (`model_type`); an empty
    dictionary where there is neither. Raises UserError for one that is damaged."""
    content = _read_json(path.with_name("config.json"))
    return content if "architecture" in content or "model_type" in content else {}


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error}); fix it, or move the weights elsewhere") from error
    return content if isinstance(content, dict) else {}


_KEYS = {
    "timm's Vision Transformer": r"blocks\.\d+\.(norm1|attn|mlp)",
    "transformers' ViT": r"encoder\.layer\.\d+|layers\.\d+\.attention|layernorm_before",
    "torchvision's ViT": r"encoder_layer_\d+|self_attention",
    "Google's ViT (.npz)": r"encoderblock_\d+",
    "CLIP of open_clip or OpenAI": r"(visual\.)?transformer\.resblocks\.\d+",
    "timm's ConvNeXt or Swin": r"(stages|layers)\.\d+\.(blocks|downsample)",
    "ResNet of timm or torchvision": r"layer\d\.\d+\.(conv|bn)\d",
}


def nearest_format(keys: Sequence[str]) -> str:
    """The known format whose names most of the keys have."""
    found = {name: sum(re.search(pattern, key) is not None for key in keys) for name, pattern in _KEYS.items()}
    name = max(found, key=lambda one: found[one])
    return f"{name} ({found[name]} of {len(keys)} names)" if found[name] else "none"


def what_was_found(path: Path, keys: Sequence[str]) -> str:
    """What to say of tensors that no reader knows: the first names, the nearest format, and how to convert."""
    return (
        f"its tensors ({', '.join(keys[:3])}, …) are not those of a Vision Transformer that is known here; the nearest "
        f"known format: {nearest_format(keys)}. If timm has the model, name it: model=NAME. Else convert the file, "
        "where RENAME(key) gives timm's name:\n"
        f"    state = torch.load({str(path)!r}, weights_only=True)\n"
        "    model = timm.create_model('NAME', num_classes=N); model.load_state_dict({RENAME(k): v for k, v in "
        "state.items()})\n"
        "    torch.save({'arch': 'NAME', 'state_dict': model.state_dict()}, 'converted.pth')"
    )
