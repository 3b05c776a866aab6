"""Weights in other programs' formats, made here key for key from a model of timm's, give that model's logits."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import foreign_formats as made
import numpy as np
import pytest
import timm
import torch

from vitlab.config import ConfigError
from vitlab.core.errors import UserError
from vitlab.models.build import build_model
from vitlab.models.restore import short_name
from vitlab.models.weights import load_weights

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
"""Two heads of 64 channels, as the convention has it."""


def vit(name: str = "vit_tiny_patch16_224", *, num_classes: int = 7, **sizes):
    """A model of timm's in float64 whose every parameter is random, so that nothing is zero by chance."""
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=num_classes, **(SMALL | sizes)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def same(model, restored) -> None:
    """Equal outputs on the same images, in float64."""
    images = torch.randn(2, 3, *restored.input_size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(restored.network.double()(images), model(images), rtol=0, atol=1e-6)


def saved(content, file: Path) -> Path:
    torch.save(content, file)
    return file


WRAPPED = {
    "plain": lambda s: s,
    "ddp_and_compile": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3, "hyper_parameters": {}},
    "lightning_compiled": lambda s: {"state_dict": {f"net._orig_mod.{k}": v for k, v in s.items()}},
    "net": lambda s: {"net": s, "acc": 91.3, "epoch": 7},
    "model_state_dict": lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}, "optimizer": {}},
    "unusual_key": lambda s: {"student_network": s, "step": 3},
    "backbone_and_head": lambda s: {(k if "head" in k else f"backbone.{k}"): v for k, v in s.items()},
    "encoder_and_classifier": lambda s: {
        (k.replace("head", "model.classifier") if "head" in k else f"model.encoder.{k}"): v for k, v in s.items()
    },
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_seen_through(tmp_path, read, name):
    model = vit()
    restored = read(saved(WRAPPED[name](model.state_dict()), tmp_path / "w.pth"))
    same(model, restored)
    assert restored.num_classes == 7 and "64 channels each by convention" in restored.weights.said[-1]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_tiny_patch16_224", {"num_classes": 1}),
        ("vit_tiny_patch16_224", {"img_size": 48}),
        ("vit_tiny_patch16_224", {"img_size": (64, 32)}),
        ("vit_tiny_patch16_224", {"init_values": 1e-5, "qk_norm": True, "qkv_bias": False, "mlp_ratio": 3}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True}),
        ("vit_tiny_patch16_224", {"reg_tokens": 3}),
        ("vit_tiny_patch16_224", {"pre_norm": True}),
        ("deit3_small_patch16_224", {}),
    ],
)
def test_the_architecture_is_read_from_the_tensors(tmp_path, read, name, sizes):
    if name.startswith("deit_"):  # its own class has other arguments for the tokens
        sizes = sizes | {"num_heads": 2}
    model = vit(name, **sizes)
    same(model, read(saved(model.state_dict(), tmp_path / "model.pth")))


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "vit_tiny_patch16_384", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224",
        "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch32_224",
    ],
)  # fmt: skip
def test_timms_own_models_are_found_by_name(tmp_path, read, name):
    model = timm.create_model(name, num_classes=4).eval()
    restored = read(saved(model.state_dict(), tmp_path / "model.pth"))
    assert restored.model.name == name and f"timm's {name}" in restored.describe()[1]
    assert restored.network.blocks[0].attn.num_heads == model.blocks[0].attn.num_heads


def test_heads_that_no_tensor_tells_can_be_given(tmp_path, read):
    model = vit(num_heads=4)
    file = saved(model.state_dict(), tmp_path / "four.pth")
    same(model, read(file, "model.num_heads=4"))
    assert "4 heads, as model.num_heads says" in read(file, "model.num_heads=4").describe()
    with pytest.raises(ConfigError, match=r"model\.num_heads: 5 does not divide"):
        read(file, "model.num_heads=5")
    odd = saved(vit(embed_dim=96, num_heads=3).state_dict(), tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match=r"model: .*odd\.pth does not tell its model"):
        read(odd)


def test_torchvision(tmp_path, read):
    """Its names, and its own forward pass on the same images."""
    from torchvision.models import VisionTransformer

    model = vit()
    file = saved(made.to_torchvision(model.state_dict()), tmp_path / "tv.pth")
    same(model, read(file))
    theirs = VisionTransformer(32, 8, 2, 2, 128, 512, num_classes=7).double().eval()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    same(theirs, read(file))
    torch.manual_seed(0)
    other = VisionTransformer(32, 8, 2, 2, 128, 512, num_classes=7).double().eval()
    torch.nn.init.normal_(other.heads.head.weight)
    same(other, read(saved({"state_dict": {f"model.{k}": v for k, v in other.state_dict().items()}}, file)))


@pytest.mark.parametrize("big_vision", [False, True])
def test_googles_arrays(tmp_path, read, big_vision):
    model = vit(embed_dim=96, num_heads=3)  # 32 channels a head: the arrays tell it
    file = tmp_path / "R_Ti_16.npz"
    np.savez(file, **made.to_google(model.state_dict(), 3, big_vision=big_vision))
    same(model, read(file))
    assert "3 heads (the file tells)" in read(file).weights.said[-1]
    assert read(file).dataset.mean == (0.5, 0.5, 0.5) and read(file).dataset.eval_crop == 0.9
    if not big_vision:  # timm's own reader, of the same file
        theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7, **(SMALL | {"embed_dim": 96, "num_heads": 3}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its arrays are views of read-only memory
            theirs.load_pretrained(str(file))
        same(theirs.double().eval(), read(file))


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_as_meta_ships_it(tmp_path, read, registers):
    more = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    model = vit("vit_small_patch14_dinov2", num_classes=0, img_size=28, patch_size=14, init_values=1e-5, **more)
    restored = read(saved(made.to_meta(model.state_dict()), tmp_path / "dinov2.pth"))
    same(model, restored)
    assert restored.num_classes == 0 and "no classifier" in restored.describe()[0]
    with pytest.raises(UserError, match=r"holds no classifier .*explain=relevance needs one.*explain=rollout"):
        restored.require_classifier("explain=relevance", "; explain=rollout and explain=position need none")


def test_mae_before_fine_tuning(tmp_path, read):
    model = vit(num_classes=0, embed_dim=64, num_heads=1)
    restored = read(saved({"model": made.to_mae(model.state_dict())}, tmp_path / "mae.pth"))
    same(model, restored)
    start = build_model(restored.model, 5)
    assert load_weights(start, restored.weights).fresh == ("head.weight", "head.bias")


def test_dino_holds_a_teacher_and_a_student(tmp_path, read):
    teacher, student = vit(num_classes=0), vit(num_classes=0)
    with torch.no_grad():
        student.cls_token.add_(1)
    heads = {"module.head.mlp.0.weight": torch.zeros(3, 128)}, {"head.last_layer.weight_v": torch.zeros(3, 128)}
    content = {
        "student": {f"module.backbone.{k}": v for k, v in student.state_dict().items()} | heads[0],
        "teacher": {f"backbone.{k}": v for k, v in teacher.state_dict().items()} | heads[1],
        "optimizer": {"state": {}}, "epoch": 99, "args": argparse.Namespace(arch="vit_tiny", patch_size=8),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }  # fmt: skip
    file = saved(content, tmp_path / "checkpoint0099.pth")
    same(teacher, read(file))
    assert "the teacher is taken; weights=student takes the other" in read(file).describe()[1]
    same(student, read(file, "weights=student"))
    with pytest.raises(ConfigError, match=r"weights: .* holds no student"):
        read(saved(teacher.state_dict(), tmp_path / "t.pth"), "weights=student")


def test_statistics_that_nothing_tells_are_imagenets_and_said(tmp_path, read):
    file = saved(vit().state_dict(), tmp_path / "m.pth")
    assert "ImageNet's, as the file tells none" in read(file).describe()[-1]
    own = read(file, "dataset.mean=[0.1,0.2,0.3]")
    assert own.dataset.mean == (0.1, 0.2, 0.3) and "as the file tells none" not in own.describe()[-1]


def test_what_is_unknown_is_named_with_the_way_to_convert_it(tmp_path, read):
    state = {f"visual.transformer.resblocks.{i}.ln_1.weight": torch.ones(4) for i in range(3)}
    with pytest.raises(ConfigError) as error:
        read(saved(state, tmp_path / "clip.pt"))
    said = str(error.value)
    assert "visual.transformer.resblocks.0.ln_1.weight" in said and "CLIP of open_clip or OpenAI (3 of 3 names)" in said
    code = [line.strip() for line in said.splitlines()[1:]]
    assert len(code) == 3
    for line in code:
        compile(line, "conversion", "exec")


def test_numbers_of_numpy_and_paths_are_plain_values(tmp_path, read):
    """What trainers store of the best accuracy and of their folders."""
    model = vit()
    more = {
        "best_acc": np.float64(81.25),
        "step": np.int64(7),
        "hyper_parameters": {"folder": Path("/data"), "lr": 0.1},
    }
    same(model, read(saved({"state_dict": model.state_dict()} | more, tmp_path / "epoch3.ckpt")))
    array = {"state_dict": model.state_dict(), "curve": np.zeros(3)}
    with pytest.raises(ConfigError, match="refused: reading it would call or build numpy"):
        read(saved(array, tmp_path / "array.ckpt"))


def test_what_a_folder_of_the_hub_is_called(tmp_path):
    for place, called in {
        "hub/models--timm--vit_x.y/snapshots/0a1b/model.safetensors": "timm_vit_x.y",
        "google-vit/model.safetensors.index.json": "google-vit",
        "mine/last.pt": "last",
    }.items():
        assert short_name(tmp_path / place) == called
