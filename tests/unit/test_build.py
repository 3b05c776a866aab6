"""Building a ViT from its configuration."""

import pytest
import timm
import torch

from vitlab.config import ConfigError, ModelConfig
from vitlab.models.build import build_model

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
