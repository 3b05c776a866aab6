"""Parameters by arithmetic are those of the models that timm builds."""

import pytest
import torch

from vitlab.models.build import build_model
from vitlab.models.size import count_parameters


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=vit_micro"],
        ["model=vit_tiny_28"],
        ["model=vit_tiny_16_224"],
        ["model=vit_small_16_224", "model.image_size=160"],
        ["model=vit_base_16_224", "model.patch_size=32"],
        ["model=vit_tiny_16_224", "model.name=vit_huge_patch14_224"],
        ["model=vit_tiny_16_224", "model.name=deit_small_patch16_224", "model.depth=2"],
    ],
    ids=lambda o: o[-1],
)
def test_counting_is_building(compose_config, overrides):
    model = compose_config(*overrides).cell.model
    with torch.device("meta"):
        built = build_model(model, 37)
    assert count_parameters(model, 37) == sum(p.numel() for p in built.parameters())


def test_other_architectures_are_not_guessed(compose_config):
    assert count_parameters(compose_config("model.name=deit3_small_patch16_224").cell.model, 10) is None
