"""A Vision Transformer from its configuration; the architectures are timm's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import nn

from vitlab.config import ConfigError, ModelConfig


def build_model(
    model: ModelConfig, num_classes: int, *, to_train: bool = True, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """timm's `model.name` with the sizes given in `model`, randomly initialised from torch's current seed.

    Input: float images (B, 3, image_size, image_size); output: logits (B, num_classes). Stochastic depth is the
    recipe's matter and is installed apart. What is only evaluated or explained (`to_train=False`) may be one of
    timm's other transformers (EVA, BEiT, CaiT, Swin, …). `arguments` are further ones of timm's. Raises ConfigError for
    an unknown name, one that is no Vision Transformer, or one that does not take the sizes asked for.
    """
    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models('vit*') lists them"
        raise ConfigError("model.name", f"timm knows no model {model.name!r}; {hint}")
    sizes = {key: getattr(model, key) for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    given = {key: value for key, value in sizes.items() if value is not None} | dict(arguments or {})
    given.setdefault("img_size", model.image_size)
    try:
        network = timm.create_model(model.name, num_classes=num_classes, **given)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        told = {"image_size": model.image_size} | {key: value for key, value in sizes.items() if value is not None}
        asked = ", ".join(f"model.{key}={value}" for key, value in told.items())
        raise ConfigError("model.name", f"{model.name!r} cannot be built with {asked}: {error}") from error
    if isinstance(network, VisionTransformer):
        network.set_grad_checkpointing(model.grad_checkpointing)
    elif to_train:
        raise ConfigError(
            "model.name",
            f"{model.name!r} is a {type(network).__name__}; what can be trained are timm's models of class "
            "VisionTransformer, such as most of timm.list_models('vit_*') and 'deit*'",
        )
    return network


def build_without_memory(model: ModelConfig, num_classes: int) -> nn.Module:
    """`build_model` on the meta device; what cannot be built so is built for real before it is refused."""
    try:
        with torch.device("meta"):
            return build_model(model, num_classes)
    except (ConfigError, NotImplementedError):
        return build_model(model, num_classes)
