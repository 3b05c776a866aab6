"""Other programs' names for a Vision Transformer's tensors, turned into timm's.

Known are Hugging Face transformers (ViT, DeiT, DINOv2), torchvision, Google's JAX (the original ViT, AugReg and
big_vision) and Meta's own (DINO, DINOv2, MAE), which differ from timm's in a few names only. What wrappers put before a
name (DDP, torch.compile, Lightning, a model's field) is found by the name of the patch embedding behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitlab.core.errors import UserError

Tensors = dict[str, Tensor]
WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DDP, torch.compile and Lightning put before a name."""
_BLOCK = re.compile(r"(encoder\.layer|layers)\.\d+\.")
"""The names of a block in transformers' files."""


@dataclass(frozen=True)
class TensorLayout:
    """One program's names: `anchor` is its patch embedding's weight, `rename` turns the tensors into timm's."""

    name: str
    anchor: str
    rename: Callable[[Tensors], Tensors]
    heads: Callable[[Tensors], int | None] = lambda state: None
    """The number of heads, where a tensor's shape tells it."""
    classifiers: tuple[str, ...] = ("head", "classifier", "fc", "linear", "linear_head", "heads.head", "heads")
    """Modules outside a prefix that may hold the classifier."""


def known_layout(state: Mapping[str, Tensor], whose: str = "teacher") -> tuple[TensorLayout, str] | None:
    """Whose names these are, and the prefix before them; None for names of no Vision Transformer known here.

    Of several networks side by side it is the one with `whose` in its name, else the first of the shortest name.
    """
    for layout in LAYOUTS:
        at = [key for key in state if key == layout.anchor or key.endswith((f".{layout.anchor}", f"/{layout.anchor}"))]
        if at:
            return layout, min(at, key=lambda key: (whose not in key, len(key))).removesuffix(layout.anchor)
    return None


def in_timms_names(
    state: Mapping[str, Tensor], layout: TensorLayout, prefix: str, *, named: bool = False
) -> tuple[Tensors, list[str]]:
    """The tensors below `prefix` by timm's names, and lines that say which others are the classifier's.

    A classifier of twice the width reads the class token and the mean of the patches, as DINOv2's.

    `named`: the file tells its model by timm's name, so that timm's names need no change.
    """
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outer = {without_wrappers(key): value for key, value in state.items() if not key.startswith(prefix)}
    if layout.name == "transformers" and not any(_BLOCK.match(key) for key in own):
        own |= {key: value for key, value in outer.items() if _BLOCK.match(key)}  # as its version 5 saves a ViTMSN
    said: list[str] = []
    if prefix.removesuffix(".").split(".")[-1] not in ("", "module", "_orig_mod", "model"):
        width = own[layout.anchor].shape[-1 if "/" in layout.anchor else 0]
        for name in layout.classifiers:
            weight = outer.get(f"{name}.weight")
            if weight is None or weight.ndim != 2 or "head.weight" in own:
                continue
            if weight.shape[1] not in (width, 2 * width):
                said.append(f"{name}.weight is not read: it is for {weight.shape[1]} features, and there are {width}")
                continue
            own |= {f"head.{part}": outer[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in outer}
            if name not in ("head", "classifier"):
                said.append(f"the classifier is taken from {name}.weight")
            break
        for ours, theirs in (("head", "cls_classifier"), ("head_dist", "distillation_classifier")):
            own |= {f"{ours}.{p}": outer[f"{theirs}.{p}"] for p in ("weight", "bias") if f"{theirs}.{p}" in outer}
    return own if named and layout.name == "timm" else layout.rename(own), said


def without_wrappers(key: str) -> str:
    """A parameter's name without what wrappers put before it, in any nesting."""
    while found := next((w for w in WRAPPERS if key.startswith(w)), None):
        key = key.removeprefix(found)
    return key


def _renamed(state: Tensors, rules: tuple[tuple[str, str], ...], left_out: str) -> Tensors:
    found = {}
    for key, value in state.items():
        if re.match(left_out, key):
            continue
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        found[key] = value
    return found


def _of_meta(state: Tensors) -> Tensors:
    """timm's own names, and those of DINO (v1), DINOv2 and MAE: without decoders, mask tokens and projection heads."""
    scales = ((r"\.gamma_(\d)$", r".ls\1.gamma"),) if "pos_embed" in state else ()  # else timm's own names for EVA's
    # FSDP's blocks of blocks ("blocks.0.3.norm1") count through
    found = _renamed(
        state,
        ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."), (r"^register_tokens$", "reg_token"), (r"\.mlp\.w12\.", ".mlp.fc1."),
         (r"\.mlp\.w3\.", ".mlp.fc2."), *scales),
        r"decoder|mask_token$|head\.(mlp|last_layer)|pre_logits",
    )  # fmt: skip
    if "reg_token" in found and "register_tokens" in state:  # Meta adds the class token's embedding; timm has none
        position = found["pos_embed"]
        found["cls_token"] = found["cls_token"] + position[:, :1]
        found["pos_embed"] = position[:, 1:]
    weight = found["patch_embed.proj.weight"]
    if weight.ndim == 2:  # a linear layer over flattened patches
        side = round((weight.shape[1] / 3) ** 0.5)
        if 3 * side * side == weight.shape[1]:
            found["patch_embed.proj.weight"] = weight.reshape(weight.shape[0], 3, side, side)
    return found


def _of_torchvision(state: Tensors) -> Tensors:
    return _renamed(
        state,
        ((r"^conv_proj\.", "patch_embed.proj."), (r"^class_token$", "cls_token"),
         (r"^encoder\.pos_embedding$", "pos_embed"), (r"^encoder\.ln\.", "norm."),
         (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."), (r"\.ln_(\d)\.", r".norm\1."),
         (r"\.self_attention\.in_proj_(\w+)$", r".attn.qkv.\1"), (r"\.self_attention\.out_proj\.", ".attn.proj."),
         (r"\.mlp\.(linear_1|0)\.", ".mlp.fc1."), (r"\.mlp\.(linear_2|3)\.", ".mlp.fc2."),
         (r"^heads\.head\.", "head.")),
        r"heads\.pre_logits",
    )  # fmt: skip


def _of_transformers(state: Tensors) -> Tensors:
    """ViT, DeiT and DINOv2 of transformers: names of its files, and those that version 5 has in memory."""
    found = _renamed(
        state,
        ((r"^embeddings\.cls_token$", "cls_token"), (r"^embeddings\.distillation_token$", "dist_token"),
         (r"^embeddings\.register_tokens$", "reg_token"), (r"^embeddings\.position_embeddings$", "pos_embed"),
         (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
         (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
         (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
         (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
         (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
         (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
         (r"\.layernorm_before\.", ".norm1."), (r"\.layernorm_after\.", ".norm2."),
         (r"\.intermediate\.dense\.", ".mlp.fc1."), (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
         (r"\.mlp\.weights_in\.", ".mlp.fc1."), (r"\.mlp\.weights_out\.", ".mlp.fc2."),
         (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"), (r"^layernorm\.", "norm."), (r"^classifier\.", "head.")),
        r"pooler|embeddings\.mask_token|decoder",
    )  # fmt: skip
    for key in [key for key in found if ".attn.q." in key]:
        parts = [key.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if not all(part in found for part in parts):
            raise UserError(f"its tensors lack {next(part for part in parts if part not in found)}")
        found[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([found.pop(part) for part in parts])
    if "reg_token" in found:  # as Meta's, of which it is a copy
        found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
        found["pos_embed"] = found["pos_embed"][:, 1:]
    return found


def _of_google(state: Tensors) -> Tensors:
    """The arrays of Google's .npz: the original ViT and AugReg, and big_vision's, with other numbers of layers."""
    found: Tensors = {}
    plain = {re.sub(r"^Transformer/", "", key): value for key, value in state.items()}
    for key, value in plain.items():
        block = re.match(r"encoderblock_(\d+)/(.+)", key)
        at, rest = (f"blocks.{block[1]}.", block[2]) if block else ("", key)
        kernel = rest.endswith("kernel")
        part = "weight" if rest.endswith(("kernel", "scale")) else "bias"
        if attention := re.fullmatch(r"MultiHeadDotProductAttention_\d/(query|key|value|out)/(kernel|bias)", rest):
            if attention[1] == "out":
                found[f"{at}attn.proj.{part}"] = value.flatten(0, 1).T if kernel else value
            else:
                found[f"{at}attn.{attention[1][0]}.{part}"] = value.flatten(1).T if kernel else value.flatten()
        elif dense := re.fullmatch(r"MlpBlock_\d/Dense_([01])/(kernel|bias)", rest):
            found[f"{at}mlp.fc{int(dense[1]) + 1}.{part}"] = value.T if kernel else value
        elif norm := re.fullmatch(r"LayerNorm_(\d)/(scale|bias)", rest):
            found[f"{at}norm{1 if norm[1] == '0' else 2}.{part}"] = value
        elif rest.startswith("encoder_norm/"):
            found[f"norm.{part}"] = value
        elif rest.startswith("embedding/"):
            found[f"patch_embed.proj.{part}"] = value.permute(3, 2, 0, 1) if kernel else value
        elif rest in ("posembed_input/pos_embedding", "pos_embedding"):
            found["pos_embed"] = value
        elif rest == "cls":
            found["cls_token"] = value
        elif rest.startswith("head/") and not any("pre_logits" in name for name in plain):
            found[f"head.{part}"] = value.T if kernel else value
    for key in [key for key in found if ".attn.q." in key]:
        parts = [found.pop(key.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        found[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return {key: value.contiguous() for key, value in found.items()}


def _heads_of_google(state: Tensors) -> int | None:
    shapes = (value.shape for key, value in state.items() if key.endswith("/query/kernel"))
    return next((shape[1] for shape in shapes if len(shape) == 3), None)


LAYOUTS = (
    TensorLayout("transformers", "embeddings.patch_embeddings.projection.weight", _of_transformers),
    TensorLayout("torchvision", "conv_proj.weight", _of_torchvision),
    TensorLayout("google", "embedding/kernel", _of_google, _heads_of_google),
    TensorLayout("timm", "patch_embed.proj.weight", _of_meta),
)
"""Whose names are known, by the name of the weight that embeds the patches."""
