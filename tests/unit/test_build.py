"""Building a ViT from its configuration, and computing its last block for the class token alone."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models import VisionTransformer

from vitlab.config import ConfigError, ModelConfig
from vitlab.models.build import ClassTokenBlock, build_model, shorten_last_block

MICRO = ModelConfig("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=4)


def test_the_sizes_are_those_asked_for():
    model = build_model(MICRO, 7)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert (len(model.blocks), model.embed_dim, model.blocks[0].attn.num_heads) == (2, 64, 4)
    assert model.patch_embed.grid_size == (4, 4)


def test_without_sizes_it_is_timms_model_to_the_bit():
    torch.manual_seed(3)
    ours = build_model(ModelConfig("vit_tiny_patch16_224"), 1000)
    torch.manual_seed(3)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    assert sum(p.numel() for p in ours.parameters()) == 5_717_416, "the book's released log says so"


def test_checkpointing_changes_memory_and_not_the_gradients():
    torch.manual_seed(0)
    plain = build_model(MICRO, 5)
    torch.manual_seed(0)
    frugal = build_model(ModelConfig(**(vars(MICRO) | {"grad_checkpointing": True})), 5)
    assert frugal.grad_checkpointing and not plain.grad_checkpointing
    images = torch.randn(2, 3, 16, 16)
    for model in (plain, frugal):
        model(images).square().sum().backward()
    for a, b in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelConfig("vit_tiny_patch16_225"), ["model.name", "did you mean", "vit_tiny_patch16_224"]),
        (ModelConfig("qqqqqq"), ["model.name", "qqqqqq", "list_models"]),
        (ModelConfig("resnet18", depth=7), ["model.name", "resnet18", "model.image_size=224", "model.depth=7"]),
        (ModelConfig("vgg11", grad_checkpointing=True), ["model.grad_checkpointing", "vgg11"]),
        (ModelConfig("vit_tiny_patch16_224", embed_dim=64, num_heads=5), ["model.name", "model.num_heads=5"]),
    ],
    ids=lambda v: v.name if isinstance(v, ModelConfig) else "",
)  # fmt: skip
def test_what_cannot_be_built_is_named(model, words):
    with pytest.raises(ConfigError) as error:
        build_model(model, 10)
    assert all(word in str(error.value) for word in words), str(error.value)


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
