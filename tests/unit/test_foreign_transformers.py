"""Files of transformers and of DINOv2's classifiers, as their own code reads them."""

from __future__ import annotations

import json
from pathlib import Path

import foreign_formats as made
import pytest
import torch
from safetensors.torch import save_file
from test_foreign_formats import same, saved, vit

from vitlab.config import ConfigError, find_checkpoint
from vitlab.explain import feature_relevance, relevance
from vitlab.models.build import build_model
from vitlab.models.weights import load_weights

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
"""Two heads of 64 channels, as the convention has it."""


def transformers_folder(folder: Path, model, *, shards: int = 0, version: int = 4, **config) -> Path:
    folder.mkdir()
    state = made.to_transformers(model.state_dict(), version=version)
    if shards:
        names = list(state)
        parts = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
        for file, keys in parts.items():
            save_file({key: state[key].contiguous() for key in keys}, folder / file)
        index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    said = {
        "model_type": "vit", "hidden_size": 96, "num_attention_heads": 3, "hidden_act": "gelu", "image_size": 32,
        "layer_norm_eps": 1e-12, "id2label": {str(i): f"Ding {i}é" for i in range(7)},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(said | config, ensure_ascii=False), encoding="utf-8")
    reads = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "size": {"height": 32, "width": 32}}
    reads["resample"] = 2  # Pillow's number of bilinear
    (folder / "preprocessor_config.json").write_text(json.dumps(reads), encoding="utf-8")
    return folder


@pytest.mark.parametrize("shards", [0, 3])
@pytest.mark.parametrize("version", [4, 5])
def test_a_folder_of_transformers(tmp_path, read, shards, version):
    model = vit(embed_dim=96, num_heads=3)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-12
    folder = transformers_folder(tmp_path / "google-vit", model, shards=shards, version=version)
    restored = read(folder)
    same(model, restored)
    assert restored.weights.classes == tuple(f"Ding {i}é" for i in range(7))
    assert (restored.dataset.mean, restored.dataset.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert (restored.dataset.eval_crop, restored.dataset.eval_interpolation) == (1.0, "bilinear")
    assert restored.weights.kind == "transformers"


def test_what_a_folder_lacks_is_named(tmp_path, read):
    model = vit(embed_dim=96, num_heads=3)
    folder = transformers_folder(tmp_path / "f", model, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"its shard model-00002-of-00002\.safetensors is not there"):
        read(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}', encoding="utf-8")
    with pytest.raises(ConfigError, match="names no files next to it"):
        read(folder)
    odd = transformers_folder(tmp_path / "g", model, hidden_act="snake")
    with pytest.raises(ConfigError, match="hidden_act 'snake'"):
        read(odd)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no last\.pt in .*nor model\.safetensors"):
        find_checkpoint(str(tmp_path / "empty"), "runs")


def test_another_model_of_transformers_is_named(tmp_path, read):
    """BEiT's keys have no bias."""
    state = made.to_transformers(vit().state_dict(), "beit.")
    state = {key: value for key, value in state.items() if not key.endswith("attention.key.bias")}
    save_file(state, tmp_path / "model.safetensors")
    card = {"model_type": "beit", "num_attention_heads": 2, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(ConfigError, match="transformers's names for a beit, but not all tensors of a ViT: its tensors"):
        read(tmp_path)


def test_transformers_distilled(tmp_path, read):
    model = vit("deit_tiny_distilled_patch16_224")
    state = made.to_transformers(model.state_dict(), "deit.")
    same(model, read(saved(state, tmp_path / "deit.bin")))


def test_transformers_itself(tmp_path, read):
    """A folder that the library wrote, and its own forward pass, where it is installed."""
    import transformers

    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=7, hidden_act="gelu")
    theirs = transformers.ViTForImageClassification(config).double().eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    restored = read(tmp_path / "theirs")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(restored.network.double()(images), theirs(images).logits, rtol=0, atol=1e-6)


def saved_at_random(model, folder):
    """The folder, with a model of transformers whose every tensor differs from its first value."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def test_a_vitmsn_of_transformers_itself(tmp_path, read):
    """Its version 5 writes the blocks without the prefix that all other tensors have."""
    import transformers

    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 384}
    config = transformers.ViTMSNConfig(**sizes, image_size=32, patch_size=8, num_labels=7)
    theirs = transformers.ViTMSNForImageClassification(config).double().eval()
    restored = read(saved_at_random(theirs, tmp_path / "theirs"))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(restored.network.double()(images), theirs(images).logits, rtol=0, atol=1e-6)
    assert restored.num_classes == 7 and len(restored.network.blocks) == 2


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "SwiGLU"])
def test_dinov2s_classifier_of_transformers_itself(tmp_path, read, kind):
    """Its classifier reads the class token and the mean of the patches, without the registers."""
    import transformers

    name = "Dinov2" if kind == "SwiGLU" else kind
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28, "patch_size": 14}
    config = getattr(transformers, f"{name}Config")(**sizes, num_labels=7, use_swiglu_ffn=kind == "SwiGLU")
    theirs = getattr(transformers, f"{name}ForImageClassification")(config).double().eval()
    restored = read(saved_at_random(theirs, tmp_path / "theirs"))
    images = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images).logits
        torch.testing.assert_close(restored.network.double()(images), expected, rtol=0, atol=1e-6)
    assert restored.num_classes == 7 and "the class token and the patches' mean" in restored.describe()[1]
    maps = relevance(restored.network, images, expected.argmax(1))
    assert maps.shape == (2, 2, 2) and maps.isfinite().all() and maps.abs().max() > 0
    assert feature_relevance(restored.network, images).abs().max() > 0
    start = build_model(restored.model, 7, arguments=dict(restored.weights.build) | {"global_pool": "token"})
    assert set(load_weights(start, restored.weights, keep_head=True).dropped) == {"head.weight", "head.bias"}


def test_dinov2s_linear_heads_of_meta(tmp_path, read):
    """`dinov2_vits14_lc`: the head of one layer is read, that of four layers is not, and it is said."""
    model = vit("vit_small_patch14_dinov2", num_classes=0, img_size=28, patch_size=14, init_values=1e-5)
    state = {f"backbone.{key}": value for key, value in made.to_meta(model.state_dict()).items()}
    head = torch.nn.Linear(256, 7).double()
    one = state | {f"linear_head.{key}": value for key, value in head.state_dict().items()}
    restored = read(saved(one, tmp_path / "dinov2_lc.pth"))
    images = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        tokens = model.forward_features(images)
        expected = head(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
        torch.testing.assert_close(restored.network.double()(images), expected, rtol=0, atol=1e-6)
    assert restored.weights.chosen == ("the classifier is taken from linear_head.weight",)
    four = read(saved(state | {"linear_head.weight": torch.zeros(7, 640)}, tmp_path / "lc4.pth"))
    assert four.num_classes == 0
    assert "linear_head.weight is not read: it is for 640 features, and there are 128" in four.describe()
