"""What other programs' checkpoints say of themselves: the book's and DeiT's arguments, timm's, and bare tensors.

Normalisation and crop are what those programs' own sources do with the recorded arguments, never what timm holds
for a model's name: for `vit_tiny_patch16_224` that is 0.5 and a crop of 0.9, and the book's weights want neither.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlab.config import IMAGENET_MEAN, IMAGENET_STD, DatasetConfig, ModelConfig
from vitlab.core.errors import UserError

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
_PLAIN_SIZES = {(192, 12): ("tiny", 3), (384, 12): ("small", 6), (768, 12): ("base", 12), (1024, 24): ("large", 16)}
"""(width, depth) → the name and the number of heads, which no tensor's shape tells."""
_PLAIN_KEY = re.compile(
    r"cls_token|pos_embed|patch_embed\.proj\.\w+|norm\.\w+|head\.\w+|"
    r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.\w+"
)


def model_of_name(name: str, state: Mapping[str, Tensor], image_size: int | None = None) -> ModelConfig:
    """timm's model of that name (or the book's), for the image size that the position embeddings are of."""
    return ModelConfig(BOOK_MODELS.get(name, name), image_size=_image_size(state) or image_size or 224)


def model_of_shapes(state: Mapping[str, Tensor]) -> ModelConfig | None:
    """A plain ViT's model from its tensors; None where they are of another kind or size, or do not tell."""
    patch, size = state.get("patch_embed.proj.weight"), _image_size(state)
    if patch is None or size is None or not all(_PLAIN_KEY.fullmatch(key) for key in state):
        return None
    depth = 1 + max((int(key.split(".")[1]) for key in state if key.startswith("blocks.")), default=-1)
    known = _PLAIN_SIZES.get((patch.shape[0], depth))
    if known is None or "cls_token" not in state:
        return None
    name, heads = known
    return ModelConfig(
        f"vit_{name}_patch16_224", image_size=size, patch_size=patch.shape[2], embed_dim=patch.shape[0], depth=depth,
        num_heads=heads,
    )  # fmt: skip


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
        std=_three(std), eval_crop=float(crop),
    )  # fmt: skip


def _three(values: Any) -> tuple[float, float, float]:
    numbers = [float(v) for v in values]
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def read_model_card(path: Path) -> dict[str, Any]:
    """timm's config.json next to a weights file: `architecture`, and `pretrained_cfg` with the statistics.

    An empty dictionary where there is none. Raises ConfigError for one that is damaged.
    """
    card = path.with_name("config.json")
    if not card.is_file():
        return {}
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{card}: damaged ({error}); fix it, or move the weights elsewhere") from error
    return content if isinstance(content, dict) and "architecture" in content else {}
