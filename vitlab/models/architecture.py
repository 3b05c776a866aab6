"""A Vision Transformer's architecture from the shapes of its tensors, matched with timm's own configurations.

Width, depth, patch, grid, MLP, class, distillation and register tokens, LayerScale, normalised queries and keys, biases
and pooling are in the tensors. The number of heads is in none: it is that of timm's model of this size, else one for
each 64 channels, which every published ViT of these sizes has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from torch import Tensor, nn

from vitlab.config import ModelConfig
from vitlab.models.build import CLASS_AND_MEAN

_WORDS = {
    (192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge",
    (1408, 40): "giant", (1536, 40): "giant", (1664, 48): "gigantic",
}  # fmt: skip
"""(width, depth) → the size's name in timm's."""
_BASES = ("vit_base_patch16_224", "deit_base_distilled_patch16_224")
"""timm's names for a ViT of any size: without and with a distillation token."""
_PER_HEAD = 64
_HEAD = re.compile(r"head(_dist)?\.")
_PLAIN_KEY = re.compile(
    r"cls_token|dist_token|reg_token|pos_embed|patch_embed\.proj\.\w+|(norm|fc_norm|norm_pre)\.\w+|head(_dist)?\.\w+|"
    r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|attn\.q_norm|attn\.k_norm|mlp\.fc1|mlp\.fc2|ls1|ls2)\.\w+"
)


@dataclass(frozen=True)
class Architecture:
    """What tensors tell of the model that they are of."""

    model: ModelConfig
    """Its image_size is the longer side of the input."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """timm's further arguments, which `ModelConfig` has no key for."""
    grid: tuple[int, int] | None = None
    """Patches down and across."""
    said: str = ""
    """What was inferred, in a line."""


def architecture_of(
    state: Mapping[str, Tensor], *, heads: int | None = None, size: tuple[int, int] | None = None,
    norm_eps: float | None = None, activation: str | None = None,
) -> Architecture | None:  # fmt: skip
    """The architecture of a plain ViT, from its tensors by timm's names; None for tensors of another kind.

    What the file tells in addition: the number of heads, the input's height and width in pixels, the norms' epsilon
    and the MLP's activation. None as well where nothing gives the number of heads.
    """
    patch, position = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if patch is None or patch.ndim != 4 or position is None or position.ndim != 3:
        return None
    if not all(_PLAIN_KEY.fullmatch(key) for key in state):
        return None
    width, depth = patch.shape[0], 1 + max((int(k.split(".")[1]) for k in state if k.startswith("blocks.")), default=-1)
    if depth == 0 or not {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"} <= set(state):
        return None
    grid = _grid(state, None if size is None else (size[0] // patch.shape[2], size[1] // patch.shape[3]))
    if grid is None:
        return None
    pixels = (grid[0] * patch.shape[2], grid[1] * patch.shape[3])
    given = {"img_size": pixels[0] if pixels[0] == pixels[1] else pixels}
    further: dict[str, Any] = {"norm_layer": partial(nn.LayerNorm, eps=norm_eps)} if norm_eps else {}
    further |= {"act_layer": activation} if activation else {}
    oblong = {} if pixels[0] == pixels[1] else {"img_size": pixels}
    longer = max(pixels)
    name, how = _timms_model(state, width, depth, patch.shape[2], longer, given), "timm's"
    if name is not None:
        own = _heads_of(name)
        if heads is not None and heads != own:
            further["num_heads"] = heads
        counted = heads or own
        model = ModelConfig(name, image_size=longer)
    else:
        counted = heads or (width // _PER_HEAD if width % _PER_HEAD == 0 else None)
        if counted is None:
            return None
        how = "the file tells" if heads else f"{_PER_HEAD} channels each by convention, which no tensor tells"
        model = ModelConfig(
            _BASES["dist_token" in state], image_size=longer, patch_size=patch.shape[2], embed_dim=width, depth=depth,
            num_heads=counted,
        )  # fmt: skip
        further |= _arguments(state, width, grid)
    further |= _pooling(state, name)
    both = "cls_token" in state and "head.weight" in state and state["head.weight"].shape[1] == 2 * width
    further |= {"global_pool": CLASS_AND_MEAN} if both else {}
    tokens = [word for key, word in (("cls_token", "class"), ("dist_token", "distillation")) if key in state]
    if "reg_token" in state:
        tokens.append(f"{state['reg_token'].shape[1]}-register")
    parts = [
        f"width {width}", f"depth {depth}", f"patch {patch.shape[2]}", f"{grid[0]} x {grid[1]} patches",
        f"{counted} heads" + (f" ({how})" if name is None else ""),
        f"{' and '.join(tokens)} token" if tokens else "no class token",
        *(["LayerScale"] if "blocks.0.ls1.gamma" in state else []),
        *(["normalised queries and keys"] if "blocks.0.attn.q_norm.weight" in state else []),
        *([] if "head.weight" in state else ["no classifier"]),
        *(["a classifier of the class token and the patches' mean"] if both else []),
        *(["of two shapes the taller one"] if grid[0] != grid[1] and size is None else []),
    ]  # fmt: skip
    said = f"read from the tensors: {', '.join(parts)}: " + (
        f"timm's {name}" if name else "a size that timm has no name for"
    )
    return Architecture(model, further | oblong, grid, said)


def _grid(state: Mapping[str, Tensor], given: tuple[int, int] | None) -> tuple[int, int] | None:
    """Patches down and across: as given, else a square, else of the oblong shapes twice as long as wide."""
    count = state["pos_embed"].shape[1]
    prefix = sum(state[key].shape[1] for key in ("cls_token", "dist_token", "reg_token") if key in state)
    for tokens in (count - prefix, count):
        if given and given[0] * given[1] == tokens:
            return given
        side = math.isqrt(max(tokens, 0))
        if side and side * side == tokens:
            return side, side
    tokens = count - prefix  # pedestrians and documents: 128 x 64, 256 x 128
    half = math.isqrt(max(tokens // 2, 0))
    return (2 * half, half) if half and 2 * half * half == tokens else None


def _arguments(state: Mapping[str, Tensor], width: int, grid: tuple[int, int]) -> dict[str, Any]:
    """timm's arguments for what these tensors have and the plain model has not."""
    found: dict[str, Any] = {
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "class_token": "cls_token" in state,
    }
    if "reg_token" in state:
        found["reg_tokens"] = state["reg_token"].shape[1]
    if "blocks.0.ls1.gamma" in state:
        found["init_values"] = 1e-5
    if "blocks.0.attn.q_norm.weight" in state:
        found["qk_norm"] = True
    if state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
        found |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    if "norm_pre.weight" in state:
        found["pre_norm"] = True
    if state["pos_embed"].shape[1] == grid[0] * grid[1] and ("cls_token" in state or "reg_token" in state):
        found["no_embed_class"] = True
    return found


def _pooling(state: Mapping[str, Tensor], name: str | None) -> dict[str, Any]:
    """timm's pooling arguments where the tensors say another than the model of that name has."""
    average = "fc_norm.weight" in state or "cls_token" not in state
    if not average or (name is not None and "_gap_" in name):
        return {}
    return {"global_pool": "avg", "fc_norm": "fc_norm.weight" in state}


def _timms_model(
    state: Mapping[str, Tensor], width: int, depth: int, patch: int, size: int, given: Mapping[str, Any]
) -> str | None:
    """timm's plainest model that has exactly these tensors, the classifier's aside."""
    word = _WORDS.get((width, depth))
    if word is None:
        return None
    kinds = [f"deit_{word}_distilled_patch{patch}_{{}}"] if "dist_token" in state else [f"vit_{word}_patch{patch}_{{}}"]
    if "blocks.0.ls1.gamma" in state:
        kinds = [f"deit3_{word}_patch{patch}_{{}}", f"vit_{word}_patch{patch}_dinov2"]
        if "reg_token" in state:
            kinds = [f"vit_{word}_patch{patch}_reg{state['reg_token'].shape[1]}_dinov2"]
    if "fc_norm.weight" in state:
        kinds += [f"vit_{word}_patch{patch}_gap_{{}}"]
    names = [kind.format(side) for kind in kinds for side in (size, 224, 384, 518) if "{}" in kind or side == size]
    found = {key: tuple(value.shape) for key, value in state.items() if not _HEAD.match(key)}
    for name in dict.fromkeys(names):
        if timm.is_model(name):
            with torch.device("meta"):
                built = timm.create_model(name, num_classes=0, **given, **_pooling(state, name))
            own = {key: tuple(value.shape) for key, value in built.state_dict().items() if not _HEAD.match(key)}
            if own == found:
                return name
    return None


def _heads_of(name: str) -> int:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0).blocks[0].attn.num_heads  # pyright: ignore
