"""An image classifier of timm's from its configuration, whose last block computes what the classifier reads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitlab.config import ConfigError, ModelConfig
from vitlab.models.drop_path import has_branches

CLASS_AND_MEAN = "class_and_mean"
"""The `global_pool` that timm has not: see `ClassAndMeanPooling`."""


class ClassAndMeanPooling(VisionTransformer):
    """timm's ViT whose classifier reads the class token and the mean of the patches, (B, 2 D), as DINOv2's do."""

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        return torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(1)], 1)


def build_model(
    model: ModelConfig, num_classes: int, *, drop_path: float = 0.0, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """timm's `model.name` with the sizes given in `model`, randomly initialised from torch's current seed.

    Input: float images (B, 3, image_size, image_size); output: logits (B, num_classes). `drop_path` is the rate of
    stochastic depth where it is a matter of the architecture; a ViT's is installed apart. `arguments` are further ones
    of timm's. Raises ConfigError for an unknown name, or one that does not take the sizes asked for.
    """
    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models('vit*') lists them"
        raise ConfigError("model.name", f"timm knows no model {model.name!r}; {hint}")
    sizes = {key: getattr(model, key) for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    given = {key: value for key, value in sizes.items() if value is not None} | dict(arguments or {})
    seed = torch.get_rng_state()
    try:
        network = _create(model, num_classes, given)
        if drop_path and not has_branches(network):
            torch.set_rng_state(seed)  # the same weights as without
            network = _create(model, num_classes, given | {"drop_path_rate": drop_path})
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError) as error:
        if "drop_path_rate" in str(error):
            raise ConfigError(
                "recipe.drop_path", f"{model.name!r} has no residual branches to drop", ["recipe.drop_path=0"]
            ) from error
        given = {"image_size": model.image_size} | {key: value for key, value in sizes.items() if value is not None}
        asked = ", ".join(f"model.{key}={value}" for key, value in given.items())
        raise ConfigError("model.name", f"{model.name!r} cannot be built with {asked}: {error}") from error
    if isinstance(network, VisionTransformer) or model.grad_checkpointing:
        try:
            network.set_grad_checkpointing(model.grad_checkpointing)  # pyright: ignore[reportCallIssue]
        except (AttributeError, AssertionError) as error:
            raise ConfigError("model.grad_checkpointing", f"{model.name!r} has none; set it to false") from error
    return network


def _create(model: ModelConfig, num_classes: int, given: Mapping[str, Any]) -> nn.Module:
    """timm's model; the image's size is an argument of those alone that are made for one."""
    if given.get("global_pool") == CLASS_AND_MEAN:
        network = _create(model, 0, {key: value for key, value in given.items() if key != "global_pool"})
        network.__class__ = ClassAndMeanPooling  # the same parameters
        network.global_pool = CLASS_AND_MEAN  # pyright: ignore[reportArgumentType]
        network.head = nn.Linear(2 * network.num_features, num_classes) if num_classes else nn.Identity()  # pyright: ignore
        network.num_classes = num_classes  # pyright: ignore[reportArgumentType]
        return network
    try:
        return timm.create_model(model.name, num_classes=num_classes, **{"img_size": model.image_size, **given})
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(model.name, num_classes=num_classes, **given)


def build_without_memory(model: ModelConfig, num_classes: int, *, drop_path: float = 0.0) -> nn.Module:
    """`build_model` on the meta device, or for real where that fails.

    Some models compute with values while they are built, which the meta device has none of: a refusal counts only where
    the real build raises it too. Raises ConfigError as `build_model` does.
    """
    try:
        with torch.device("meta"):
            return build_model(model, num_classes, drop_path=drop_path)
    except (ConfigError, NotImplementedError):
        return build_model(model, num_classes, drop_path=drop_path)


class ClassTokenBlock(Block):
    """timm's Block, of which only the first token is computed: tokens (B, N, D) → (B, 1, D)."""

    attn: Attention

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1] + self.drop_path1(self.ls1(_attend_from_first(self.attn, self.norm1(x))))
        return first + self.drop_path2(self.ls2(self.mlp(self.norm2(first))))


def _attend_from_first(attention: Attention, x: Tensor) -> Tensor:
    """timm's Attention for the first token's query: (B, N, D) → (B, 1, D)."""
    batch, _, width = x.shape
    heads, weight, bias = attention.num_heads, attention.qkv.weight, attention.qkv.bias
    query = F.linear(x[:, :1], weight[:width], None if bias is None else bias[:width])
    others = F.linear(x, weight[width:], None if bias is None else bias[width:])
    query = query.view(batch, 1, heads, -1).transpose(1, 2)
    key, value = others.view(batch, -1, 2, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    drop = attention.attn_drop.p if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=drop)
    mixed = mixed.transpose(1, 2).reshape(batch, 1, width)
    return attention.proj_drop(attention.proj(attention.norm(mixed)))


def shorten_last_block(model: nn.Module) -> bool:
    """Compute the last block of `model` for the class token alone, where that is all its classifier reads.

    A ViT that classifies by its class token throws the other tokens away after the last block. They have to be
    attended to there (keys and values), but their own queries, projection and MLP change nothing: of a block's 12 D²
    products per token 10 are saved, 7 % of a ViT-Ti's arithmetic and 21 % of four blocks'. Logits and gradients are
    the same function, to rounding. Attention maps are not: explaining uses the model as timm builds it.

    In place; parameters and their names stay. Returns False, and leaves the model as it is, for any other
    architecture than timm's VisionTransformer of plain blocks with a class token as its pooling.
    """
    if type(model) is not VisionTransformer or model.global_pool != "token" or model.attn_pool is not None:
        return False
    last = model.blocks[-1]
    if type(last) is not Block or type(last.attn) is not Attention:
        return False
    attention = last.attn
    square = attention.qkv.weight.shape[0] == 3 * attention.qkv.weight.shape[1]
    if not (model.num_prefix_tokens and model.has_class_token and square) or getattr(attention, "gate", None):
        return False
    last.__class__ = ClassTokenBlock  # the same module: hooks, copies and state_dict see no difference
    return True
