"""Stochastic depth from counters."""

import copy

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from vitlab.config import ModelConfig
from vitlab.core.errors import UserError
from vitlab.core.random import Draws
from vitlab.models.build import build_model
from vitlab.models.drop_path import install_drop_path

MICRO = ModelConfig("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=64, depth=4, num_heads=4)
CPU = torch.device("cpu")


def micro(rate: float):
    torch.manual_seed(0)
    model = build_model(MICRO, 5)
    return model, install_drop_path(model, rate)


def test_the_rates_rise_as_timms_do():
    _, masks = micro(0.2)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=4, drop_path_rate=0.2)
    rates = [getattr(d, "drop_prob", 0.0) for b in theirs.blocks for d in (b.drop_path1, b.drop_path2)]
    np.testing.assert_allclose(1 - masks.keep[:, 0].numpy(), rates, atol=1e-7)


def test_masks_have_the_rate_and_keep_the_mean():
    _, masks = micro(0.4)
    masks.draw(Draws(1, 2, np.arange(20_000)), CPU)
    kept = (masks.scale > 0).double().mean(1)
    error = (masks.keep[:, 0] * (1 - masks.keep[:, 0]) / 20_000).sqrt().clamp_min(1e-9)
    deviations = (kept - masks.keep[:, 0]).abs() / error
    assert deviations[2:].max() < 4 and kept[0] == kept[1] == 1
    torch.testing.assert_close(masks.scale.mean(1), torch.ones(8), atol=0.02, rtol=0)
    branches = np.corrcoef((masks.scale[2:] > 0).numpy())
    assert np.abs(branches - np.eye(6)).max() < 4 / np.sqrt(20_000), "branches are dropped independently"


def test_a_sample_drops_the_same_branches_in_any_batch():
    model, masks = micro(0.5)
    model.train()
    images, draws = torch.randn(8, 3, 16, 16), Draws(0, 3, np.arange(8), np.array([0, 1] * 4))
    masks.draw(draws, CPU)
    whole, scale = model(images), masks.scale.clone()
    assert len(scale.unique()) > 2
    for part in (slice(0, 2), slice(2, 8)):
        masks.draw(draws.select(part), CPU)
        torch.testing.assert_close(masks.scale, scale[:, part], atol=0, rtol=0)
        torch.testing.assert_close(model(images[part]), whole[part])
    torch.manual_seed(99)
    masks.draw(draws, CPU)
    assert torch.equal(masks.scale, scale), "torch's generator has no say"
    masks.draw(Draws(0, 4, np.arange(8)), CPU)
    assert not torch.equal(masks.scale, scale), "another epoch, other masks"


def test_a_dropped_branch_adds_nothing_and_a_kept_one_is_scaled():
    model, masks = micro(0.5)
    masks.draw(Draws(0, 0, np.arange(2)), CPU)
    masks.scale = torch.zeros(8, 2)
    masks.scale[:, 1] = 2.0
    model.train()
    tokens = torch.randn(2, 17, 64)
    block = model.blocks[-1]
    out = block(tokens)
    assert torch.equal(out[0], tokens[0])
    kept = tokens[1:]
    kept = kept + 2 * block.attn(block.norm1(kept))
    kept = kept + 2 * block.mlp(block.norm2(kept))
    torch.testing.assert_close(out[1:], kept)


def test_before_the_first_draw_nothing_is_dropped():
    model, _ = micro(0.5)
    plain, _ = micro(0.0)
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(model.train()(images), plain.train()(images))


def test_evaluation_drops_nothing():
    model, masks = micro(0.5)
    plain, _ = micro(0.0)
    masks.draw(Draws(0, 0, np.arange(3)), CPU)
    images = torch.randn(5, 3, 16, 16)  # not even the same batch
    assert torch.equal(model.eval()(images), plain.eval()(images))
    assert list(model.state_dict()) == list(plain.state_dict()), "checkpoints stay timm's"


def test_new_masks_compile_nothing_anew():
    model, masks = micro(0.5)
    model.train()
    graphs = []

    def backend(graph, _example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    images = torch.randn(4, 3, 16, 16)
    for epoch in range(4):
        masks.draw(Draws(0, epoch, np.arange(4)), CPU)
        torch.testing.assert_close(compiled(images), model(images))
    assert len(graphs) == 1


@pytest.mark.slow
def test_masks_stay_at_one_place_in_memory():
    model, masks = micro(0.5)
    before = copy.deepcopy(masks)
    masks.draw(Draws(0, 0, np.arange(4)), CPU)
    place, first = masks.scale.data_ptr(), masks.scale.clone()
    graph = torch.compile(model.train(), backend="aot_eager")
    graph(torch.randn(4, 3, 16, 16)).sum().backward()
    assert hasattr(masks.scale, "_dynamo_static_input_type"), "torch takes it for a tensor that does not move"
    masks.draw(Draws(0, 1, np.arange(4)), CPU)
    assert masks.scale.data_ptr() == place and not torch.equal(masks.scale, first)
    graph(torch.randn(4, 3, 16, 16)).sum().backward()
    assert before.scale.shape == (8, 1), "a copy has its own"
    masks.draw(Draws(0, 1, np.arange(6)), CPU)
    assert masks.scale.shape == (8, 6)


def test_a_module_that_is_called_twice_is_compiled_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = DropPath(0.5)

        def forward(self, x):
            return x + self.drop(x) + self.drop(2 * x)

    model, graphs = Twice(), []
    masks = install_drop_path(model, 0.5, {"drop": 2})

    def backend(graph, _example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model.train(), backend=backend)
    for epoch in range(12):
        masks.draw(Draws(0, epoch, np.arange(4)), CPU)
        expected = 1 + masks.scale[0] + 2 * masks.scale[1]
        assert torch.equal(compiled(torch.ones(4, 3)), expected.view(-1, 1).expand(-1, 3))
    assert len(graphs) == 1


def test_a_model_without_such_branches_is_refused():
    with pytest.raises(UserError, match=r"recipe\.drop_path: Linear"):
        install_drop_path(nn.Linear(2, 2), 0.1)
    install_drop_path(nn.Linear(2, 2), 0.0).draw(Draws(0, 0, np.arange(2)), CPU)
