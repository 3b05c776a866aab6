"""Weights put into a model: what has to fit, what is resized, what is asked for."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import timm
import torch
from test_weights import MICRO, save, tiny
from timm.layers.pos_embed import resample_abs_pos_embed

from vitlab.config import ConfigError, ModelConfig
from vitlab.core.errors import UserError
from vitlab.models.build import build_model
from vitlab.models.restore import restore
from vitlab.models.weights import load_weights, read_checkpoint


def test_another_shape_is_refused_and_the_tensor_named(tmp_path):
    weights = read_checkpoint(save(tiny().state_dict(), tmp_path / "tiny.pth"))
    small = timm.create_model("vit_small_patch16_224")
    with pytest.raises(UserError, match=r"tiny\.pth: cls_token is \(1, 1, 192\) there and \(1, 1, 384\)"):
        load_weights(small, weights)


def test_matching_too_little_is_refused(tmp_path):
    part = {k: v for k, v in tiny().state_dict().items() if not k.startswith("blocks.") or k.startswith("blocks.1.")}
    weights = read_checkpoint(save(part, tmp_path / "part.pth"))
    with pytest.raises(UserError, match=r"supplies \d+ % of the model's parameters \(missing: blocks\.0\."):
        load_weights(tiny(), weights)


def test_the_head_is_kept_only_on_request_and_only_if_it_fits(tmp_path):
    weights = read_checkpoint(save(tiny().state_dict(), tmp_path / "tiny.pth"))
    torch.manual_seed(5)
    fresh = build_model(ModelConfig("vit_tiny_patch16_224"), 1000)
    before = fresh.head.weight.clone()
    report = load_weights(fresh, weights)
    assert torch.equal(fresh.head.weight, before) and set(report.fresh) == {"head.weight", "head.bias"}
    assert "dropped: head.weight, head.bias" in report.summary()
    load_weights(fresh, weights, keep_head=True)
    assert torch.equal(fresh.head.weight, weights.state["head.weight"])
    ten = build_model(ModelConfig("vit_tiny_patch16_224"), 10)
    report = load_weights(ten, weights, keep_head=True)
    assert "head.weight" in report.fresh
    assert report.summary(most=1).endswith("dropped: head.weight and 1 more; fresh: head.weight and 1 more")


def test_position_embeddings_are_resized_as_timm_does(tmp_path):
    old = tiny()
    weights = read_checkpoint(save(old.state_dict(), tmp_path / "tiny.pth"))
    for size in ((96, 96), (256, 128)):
        model = timm.create_model("vit_tiny_patch16_224", img_size=size)
        report = load_weights(model, weights)
        expected = resample_abs_pos_embed(old.pos_embed, model.patch_embed.grid_size, num_prefix_tokens=1)
        torch.testing.assert_close(model.pos_embed, expected)
        assert report.resized == (f"pos_embed (197, 192) → ({size[0] * size[1] // 256 + 1}, 192)",)


@pytest.mark.parametrize("told", [{"img_size": [64, 144]}, {"img_size": None, "input_size": (3, 64, 144)}])
def test_a_grid_that_is_no_square_is_read_from_the_arguments(tmp_path, told):
    """4 x 9 patches are 36, which are also 6 x 6: only the arguments tell."""
    old = timm.create_model("vit_tiny_patch16_224", img_size=(64, 144))
    content = {"arch": "vit_tiny_patch16_224", "state_dict": old.state_dict(), "args": argparse.Namespace(**told)}
    weights = read_checkpoint(save(content, tmp_path / "oblong.pth.tar"))
    model = timm.create_model("vit_tiny_patch16_224", img_size=48)
    load_weights(model, weights)
    expected = resample_abs_pos_embed(old.pos_embed, [3, 3], [4, 9], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed, expected)


def test_a_grid_that_nobody_tells_is_refused(tmp_path):
    old = timm.create_model("vit_tiny_patch16_224", img_size=(96, 160))
    weights = read_checkpoint(save(old.state_dict(), tmp_path / "oblong.pth"))
    load_weights(timm.create_model("vit_tiny_patch16_224", img_size=(48, 80)), weights)  # as many times as wide
    with pytest.raises(UserError, match=r"oblong\.pth: its pos_embed \(1, 61, 192\) .* 60 patches.*no square"):
        load_weights(tiny(), weights)


def test_restoring_asks_for_what_nobody_tells(tmp_path, compose_config):
    file = save(tiny(num_classes=10).state_dict(), tmp_path / "bare.pth")
    task = ["task=evaluate", f"checkpoint={file}"]
    with pytest.raises(ConfigError, match=r"dataset: .*bare\.pth does not tell how"):
        restore(compose_config(*task), str(file))
    restored = restore(compose_config(*task, "dataset=digits"), str(file))
    assert restored.dataset.mean == (0.5,) * 3 and not restored.network.training
    other = save(build_model(MICRO, 10).state_dict(), tmp_path / "micro.pth")
    by_tensors = restore(compose_config(*task, "dataset=digits", "model.num_heads=4"), str(other))
    assert dataclasses.replace(by_tensors.model, name=MICRO.name) == MICRO
    assert restore(compose_config(*task, "dataset=digits", "model=vit_micro"), str(other)).model == MICRO
    with pytest.raises(ConfigError, match="the checkpoint tells the sizes"):
        restore(compose_config(*task, "dataset=digits", "model.depth=2"), str(file))
    layers = timm.create_model("vit_tiny_patch16_224", num_classes=10, init_values=1e-4).state_dict()
    odd = save(layers, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"also holds blocks\.0\.ls1\.gamma, and more"):
        restore(compose_config(*task, "dataset=digits", "model=vit_tiny_16_224"), str(odd))
