"""Weights as other programs store them, made from a ViT of timm's: key for key, by code written here.

Each function takes timm's state dict of a plain ViT and gives the tensors by the other program's names.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


def to_torchvision(state: State) -> State:
    names = {"patch_embed.proj": "conv_proj", "norm": "encoder.ln", "head": "heads.head"}
    inner = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    found = {}
    for key, value in state.items():
        module, _, part = key.rpartition(".")
        if key == "cls_token":
            found["class_token"] = value
        elif key == "pos_embed":
            found["encoder.pos_embedding"] = value
        elif module in names:
            found[f"{names[module]}.{part}"] = value
        else:
            block, rest = re.fullmatch(r"blocks\.(\d+)\.(.+)", module).groups()
            at = f"encoder.layers.encoder_layer_{block}."
            found[at + (f"self_attention.in_proj_{part}" if rest == "attn.qkv" else f"{inner[rest]}.{part}")] = value
    return found


def to_transformers(state: State, prefix: str = "vit.", *, version: int = 4) -> State:
    """Names of its files (version 4), or those that version 5 has in memory."""
    found = {}
    layers = "encoder.layer" if version == 4 else "layers"
    inner = {
        "attn.proj": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    } if version == 4 else {
        "attn.proj": "attention.o_proj", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    parts = [f"attention.attention.{n}" for n in ("query", "key", "value")]
    parts = parts if version == 4 else [f"attention.{n}_proj" for n in "qkv"]
    names = {"cls_token": "cls_token", "dist_token": "distillation_token", "pos_embed": "position_embeddings"}
    for key, value in state.items():
        module, _, part = key.rpartition(".")
        if key in names:
            found[f"{prefix}embeddings.{names[key]}"] = value
        elif module == "patch_embed.proj":
            found[f"{prefix}embeddings.patch_embeddings.projection.{part}"] = value
        elif module == "norm":
            found[f"{prefix}layernorm.{part}"] = value
        elif module == "head":
            found[f"{'cls_classifier' if 'dist_token' in state else 'classifier'}.{part}"] = value
        elif module == "head_dist":
            found[f"distillation_classifier.{part}"] = value
        else:
            block, rest = re.fullmatch(r"blocks\.(\d+)\.(.+)", module).groups()
            at = f"{prefix}{layers}.{block}."
            if rest == "attn.qkv":
                found |= {
                    f"{at}{name}.{part}": third.clone() for name, third in zip(parts, value.chunk(3), strict=True)
                }
            else:
                found[f"{at}{inner[rest]}.{part}"] = value
    return found


def to_google(state: State, heads: int, *, big_vision: bool = False) -> dict[str, np.ndarray]:
    """Google's arrays: channels last, each head's queries apart. big_vision numbers the layers in another way."""
    attention, mlp, second = ("0", "0", "1") if big_vision else ("1", "3", "2")
    found = {}
    for key, value in state.items():
        module, _, part = key.rpartition(".")
        scale = {"weight": "scale", "bias": "bias"}.get(part, "")
        kernel = {"weight": "kernel", "bias": "bias"}.get(part, "")
        if key == "cls_token":
            found["cls"] = value
        elif key == "pos_embed":
            found["Transformer/posembed_input/pos_embedding"] = value
        elif module == "patch_embed.proj":
            found[f"embedding/{kernel}"] = value.permute(2, 3, 1, 0) if part == "weight" else value
        elif module == "norm":
            found[f"Transformer/encoder_norm/{scale}"] = value
        elif module == "head":
            found[f"head/{kernel}"] = value.T if part == "weight" else value
        else:
            block, rest = re.fullmatch(r"blocks\.(\d+)\.(.+)", module).groups()
            at = f"Transformer/encoderblock_{block}/"
            width = value.shape[-1] if part == "weight" else None
            if rest == "attn.qkv":
                for name, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    shaped = third.T.reshape(width, heads, -1) if part == "weight" else third.reshape(heads, -1)
                    found[f"{at}MultiHeadDotProductAttention_{attention}/{name}/{kernel}"] = shaped
            elif rest == "attn.proj":
                shaped = value.T.reshape(heads, -1, len(value)) if part == "weight" else value
                found[f"{at}MultiHeadDotProductAttention_{attention}/out/{kernel}"] = shaped
            elif rest.startswith("mlp"):
                found[f"{at}MlpBlock_{mlp}/Dense_{int(rest[-1]) - 1}/{kernel}"] = value.T if part == "weight" else value
            else:
                found[f"{at}LayerNorm_{'0' if rest == 'norm1' else second}/{scale}"] = value
    return {key: value.contiguous().numpy() for key, value in found.items()}


def to_meta(state: State) -> State:
    """DINOv2 as Meta ships it, with what only its training needs; registers by Meta's name."""
    found = {key.replace("reg_token", "register_tokens"): value for key, value in state.items() if "head" not in key}
    if "reg_token" in state:  # Meta has a position embedding for the class token, and none for the registers
        own = torch.randn(1, 1, state["pos_embed"].shape[2], dtype=state["pos_embed"].dtype)
        found["pos_embed"] = torch.cat([own, state["pos_embed"]], 1)
        found["cls_token"] = state["cls_token"] - own
    return found | {"mask_token": torch.zeros(1, state["cls_token"].shape[2])}


def to_mae(state: State) -> State:
    """MAE's pre-training: the encoder without a classifier, and the decoder."""
    decoder = {"decoder_embed.weight": (32, 64), "decoder_pos_embed": (1, 17, 32),
               "decoder_blocks.0.norm1.weight": (32,), "decoder_norm.weight": (32,),
               "decoder_pred.weight": (48, 32), "mask_token": (1, 1, 32)}  # fmt: skip
    return {k: v for k, v in state.items() if "head" not in k} | {k: torch.zeros(s) for k, s in decoder.items()}
