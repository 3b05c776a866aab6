"""A named model brings its own sizes, its label never names one that was not built; its parameters are counted."""

from __future__ import annotations

import pytest
import torch

from vitlab.config import ModelConfig
from vitlab.config.choices import check_label, count_parameters, native_image_size
from vitlab.models.build import build_model, build_without_memory
from vitlab.study.plan import build_plan


@pytest.mark.parametrize(
    ("words", "model", "label"),
    [
        (["model.name=vit_small_patch16_224"], ModelConfig("vit_small_patch16_224"), "vit_small_patch16_224"),
        (["model.name=vit_tiny_patch16_224"], ModelConfig("vit_tiny_patch16_224"), "vit_tiny_patch16_224"),
        (["model.name=vit_base_patch16_384"], ModelConfig("vit_base_patch16_384", 384), "vit_base_patch16_384"),
        (["model.name=vit_small_patch16_224", "model.depth=3"], ModelConfig("vit_small_patch16_224", depth=3),
         "vit_small_patch16_224(depth=3)"),
        (["model.name=vit_small_patch16_224", "model.image_size=32", "model.patch_size=4"],
         ModelConfig("vit_small_patch16_224", 32, 4), "vit_small_patch16_224(patch_size=4,image_size=32)"),
        (["+model={name: vit_small_patch16_224, depth: 3}"], ModelConfig("vit_small_patch16_224", depth=3),
         "vit_small_patch16_224(depth=3)"),
        (["model=vit_small_16_224", "model.depth=3"], ModelConfig("vit_small_patch16_224", depth=3),
         "vit_small_16_224(depth=3)"),
        (["model.depth=3"], ModelConfig("vit_tiny_patch16_224", 16, 4, 64, 3, 4), "vit_micro"),
        (["model.depth=2"], ModelConfig("vit_tiny_patch16_224", 16, 4, 64, 2, 4), "vit_micro(depth=2)"),
        ([], ModelConfig("vit_tiny_patch16_224", 16, 4, 64, 3, 4), "vit_micro"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_a_name_brings_its_own_sizes_and_those_typed_beside_it_win(compose_config, words, model, label):
    config = compose_config(*words)
    assert config.cell.model == model and config.labels["model"] == label
    built = sum(p.numel() for p in build_without_memory(model, 10).parameters())
    check_label(config.labels["model"], built, 10)


def test_a_name_in_a_file_brings_its_own_sizes_too(compose_config):
    """An experiment's file may name another architecture and give some of its sizes."""
    from vitlab.config.choices import own_sizes
    from vitlab.config.schema import plain

    micro = plain(compose_config().cell.model)
    values, label = own_sizes(micro | {"name": "vit_small_patch16_224", "depth": 5}, "vit_micro", ())
    assert (values["embed_dim"], values["depth"], values["image_size"]) == (None, 5, 224)
    assert label == "vit_small_patch16_224(depth=5)"
    assert own_sizes(micro, "a choice of the user's", ()) == (micro, "a choice of the user's")


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_base_patch16_384", 384), ("vit_base_patch16_clip_224.openai", 224), ("vit_base_patch14_dinov2", 518),
     ("test_vit", 160), ("vit_foo", 224)],
)  # fmt: skip
def test_native_sizes_are_timms(name, size):
    assert native_image_size(name) == size


def test_a_label_of_another_model_is_a_bug_that_shows():
    micro = ModelConfig("vit_small_patch16_224", 16, 4, 64, 3, 4)
    with pytest.raises(RuntimeError, match=r"called vit_small_patch16_224 has 155,\d+ parameters .* has 21,\d+,\d+"):
        check_label("vit_small_patch16_224", count_parameters(micro, 10) or 0, 10)


def test_the_plan_calls_cells_by_the_model_that_is_built(requests_for):
    from vitlab.study.estimate import plan_lines

    names = ("vit_small_patch16_224", "vit_base_patch16_224")
    plan = build_plan(requests_for(*[[f"model.name={name}"] for name in names]), "s")
    assert [cell.name for cell in plan.cells] == [f"{name}/s0" for name in names]
    assert "models: vit_small_patch16_224 21.7 M, vit_base_patch16_224 85.8 M parameters" in plan_lines(plan)
    assert not [line for line in plan_lines(build_plan(requests_for([]), "s")) if line.startswith("models")]
    one = build_plan(requests_for(["model.name=vit_small_patch16_224", "model.depth=2"]), "s")
    assert "models: vit_small_patch16_224(depth=2) 3.92 M parameters" in plan_lines(one)


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
