"""A trained model as other programs read it: timm's hub folder, or a folder of Hugging Face transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.layers import Attention
from timm.models import VisionTransformer, save_for_hf
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitlab.core.errors import ConfigError
from vitlab.core.files import write_text
from vitlab.models.build import ClassAndMeanPooling
from vitlab.models.formats import RESAMPLING
from vitlab.models.restore import Restored

WEIGHTS = "model.safetensors"


def export_timm(restored: Restored, folder: Path) -> None:
    """Write timm's hub folder: `timm.create_model("local-dir:FOLDER", pretrained=True)` is this model, to the bit.

    Raises ConfigError for a model whose arguments a config.json cannot say.
    """
    network, dataset, model = restored.network, restored.dataset, restored.model
    if isinstance(network, ClassAndMeanPooling):
        raise ConfigError("export.format", "timm has no ViT whose classifier reads class token and patches' mean")
    sizes = {key: getattr(model, key) for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    own = dict(restored.weights.build) if model == restored.weights.model else {}
    arguments = {key: value for key, value in sizes.items() if value is not None} | own
    if network.pretrained_cfg.get("fixed_input_size"):  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        arguments["img_size"] = list(restored.input_size)
    try:
        json.dumps(arguments)
    except TypeError as error:
        simple = (str, int, float, list, tuple)
        said = ", ".join(key for key, value in arguments.items() if not isinstance(value, simple))
        raise ConfigError(
            "export.format", f"timm's config.json cannot say this model's {said}; export.format=transformers can"
        ) from error
    seen = {
        "mean": list(dataset.mean), "std": list(dataset.std), "crop_pct": dataset.eval_crop, "crop_mode": "center",
        "interpolation": dataset.eval_interpolation, "input_size": [3, *restored.input_size], "tag": "vitlab",
        "license": None,
    }  # fmt: skip
    card: dict[str, Any] = {"pretrained_cfg": seen}
    if restored.weights.classes:
        card["label_names"] = list(restored.weights.classes)
    save_for_hf(network, str(folder), model_config=card, model_args=arguments, safe_serialization=True)
    _prove(restored, folder)


@torch.no_grad()
def _prove(restored: Restored, folder: Path) -> None:
    """Read the folder back by timm and compare the predictions. Raises RuntimeError where a bit differs."""
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, *restored.input_size, generator=torch.Generator().manual_seed(0))
    if not torch.equal(again(images), restored.network(images)):
        raise RuntimeError(f"{folder}: timm reads another model than was written")


def export_transformers(restored: Restored, folder: Path) -> None:
    """Write a folder that transformers' ViTForImageClassification reads.

    Raises ConfigError for another architecture.
    """
    network = restored.network
    if reason := _no_vit(network):
        raise ConfigError(
            "export.format", f"transformers' ViT has no {reason}, which this {type(network).__name__} has; "
            "export.format=timm writes any model",
        )  # fmt: skip
    assert isinstance(network, VisionTransformer), "as asked"
    height, width = restored.input_size
    first: Any = network.blocks[0]
    names = restored.weights.classes or tuple(f"LABEL_{i}" for i in range(restored.num_classes))
    _write(folder / "config.json", {
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": network.embed_dim,
        "num_hidden_layers": len(network.blocks), "num_attention_heads": first.attn.num_heads,
        "intermediate_size": first.mlp.fc1.out_features, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "layer_norm_eps": first.norm1.eps,
        "image_size": height if height == width else [height, width],
        "patch_size": network.patch_embed.patch_size[0], "num_channels": 3, "qkv_bias": first.attn.qkv.bias is not None,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)}, "torch_dtype": "float32",
    })  # fmt: skip
    dataset = restored.dataset
    _write(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": int(max(height, width) / dataset.eval_crop)},
        "resample": RESAMPLING[dataset.eval_interpolation],
        "do_center_crop": True, "crop_size": {"height": height, "width": width}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(dataset.mean),
        "image_std": list(dataset.std),
    })  # fmt: skip
    save_file(transformers_names(network.state_dict()), folder / WEIGHTS, {"format": "pt"})


def _no_vit(network: nn.Module) -> str | None:
    """What of a model transformers' ViT cannot be, or None."""
    if type(network) is not VisionTransformer:
        return "such architecture"
    blocks: Any = network.blocks
    plain = all(type(block) is Block and type(block.attn) is Attention for block in blocks)
    found = {
        "blocks of this kind": not plain, "LayerScale": plain and not isinstance(blocks[0].ls1, nn.Identity),
        "normalised queries": plain and not isinstance(blocks[0].attn.q_norm, nn.Identity),
        f"pooling {network.global_pool!r}": network.global_pool != "token",
        "register tokens": network.num_prefix_tokens != 1,
        "norm before the blocks": isinstance(network.norm_pre, nn.LayerNorm),
        "other activation than GELU": plain and type(blocks[0].mlp.act).__name__ != "GELU",
        "missing position embedding": network.pos_embed is None or network.no_embed_class,
        "missing classifier": not isinstance(network.head, nn.Linear),
    }  # fmt: skip
    return next((reason for reason, holds in found.items() if holds), None)


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain ViT's tensors by the names of transformers' files."""
    outside = {
        "cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm", "head": "classifier",
    }  # fmt: skip
    inside = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, part = key.rpartition(".")
        if key in outside:
            found[outside[key]] = value
        elif module in outside:
            found[f"{outside[module]}.{part}"] = value
        else:
            _, number, rest = module.split(".", 2)
            at = f"vit.encoder.layer.{number}."
            if rest == "attn.qkv":
                for name, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    found[f"{at}attention.attention.{name}.{part}"] = third
            else:
                found[f"{at}{inside[rest]}.{part}"] = value
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
