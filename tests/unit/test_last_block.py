"""A last block for the class token alone is the same function, and leaves other architectures alone."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models import VisionTransformer

from vitlab.models.last_block import ClassTokenBlock, shorten_last_block

SAME = {
    "plain": {},
    "registers": {"reg_tokens": 3},
    "qk_norm": {"qk_norm": True},
    "layer scale": {"init_values": 0.1},
    "no bias": {"qkv_bias": False},
    "norm before the head": {"fc_norm": True},
    "scaled": {"scale_attn_norm": True, "scale_mlp_norm": True},
}
OTHER = {
    "average": {"global_pool": "avg"},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "attention pool": {"global_pool": "map"},
}


def build(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return VisionTransformer(**(sizes | options)).double()


@pytest.mark.parametrize("options", SAME.values(), ids=SAME.keys())
def test_logits_and_gradients_are_the_same(options):
    plain = build(**options)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    short = copy.deepcopy(plain)
    assert shorten_last_block(short)
    images, labels = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 3, 4])
    for model in (plain, short):
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    torch.testing.assert_close(short(images), plain(images), rtol=1e-12, atol=1e-12)
    gradients = dict(plain.named_parameters())
    for name, parameter in short.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-11, atol=1e-12)


def test_it_survives_copies_and_keeps_the_state(tmp_path):
    plain = build()
    short = copy.deepcopy(plain)
    shorten_last_block(short)
    assert list(short.state_dict()) == list(plain.state_dict())
    assert type(copy.deepcopy(short).blocks[-1]) is ClassTokenBlock
    assert type(plain.blocks[-1]) is not ClassTokenBlock


@pytest.mark.parametrize("options", OTHER.values(), ids=OTHER.keys())
def test_what_reads_more_than_the_class_token_stays(options):
    model = build(**options)
    assert not shorten_last_block(model)
    assert type(model.blocks[-1]) is not ClassTokenBlock


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_base_patch16_18x2_224", "resnet18"])
def test_other_architectures_stay(name):
    small = {} if name == "resnet18" else {"depth": 2, "embed_dim": 48, "num_heads": 3}
    assert not shorten_last_block(timm.create_model(name, num_classes=5, **small))


def test_dropout_and_half_precision_run():
    model = build(attn_drop_rate=0.1, proj_drop_rate=0.1).bfloat16().train()
    assert shorten_last_block(model)
    assert model(torch.randn(2, 3, 16, 16, dtype=torch.bfloat16)).shape == (2, 5)
