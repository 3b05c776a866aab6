"""Parameter groups, learning rates and the moving average compared with timm's."""

import dataclasses

import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from vitlab.config import ConfigError, ModelConfig, RecipeConfig, choice
from vitlab.models.build import build_model
from vitlab.train.optim import MovingAverage, build_optimizer, learning_rate

RECIPE = RecipeConfig(epochs=20, batch_size=64, lr=1e-2, warmup_epochs=3, min_lr=1e-5, warmup_lr=1e-6)


def micro():
    return build_model(choice("model", "vit_micro"), 10)


def timm_scheduler(recipe, by_epoch, steps):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=recipe.peak_lr)
    unit = 1 if by_epoch else steps
    scheduler = CosineLRScheduler(
        optimizer, t_initial=recipe.epochs * unit, lr_min=recipe.min_lr, warmup_t=int(recipe.warmup_epochs * unit),
        warmup_lr_init=recipe.warmup_lr, t_in_epochs=by_epoch,
    )  # fmt: skip
    return optimizer, scheduler


def test_rate_by_step_is_timms_cosine():
    optimizer, scheduler = timm_scheduler(RECIPE, by_epoch=False, steps=7)
    for step in range(20 * 7):
        scheduler.step_update(step)
        assert learning_rate(RECIPE, step, 7) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_rate_by_epoch_is_deits():
    """DeiT steps after an epoch with that epoch's index: epochs 0 and 1 share the first rate."""
    recipe = dataclasses.replace(RECIPE, schedule_by="epoch")
    optimizer, scheduler = timm_scheduler(recipe, by_epoch=True, steps=7)
    for epoch in range(20):
        rate = optimizer.param_groups[0]["lr"]
        assert learning_rate(recipe, epoch * 7, 7) == learning_rate(recipe, epoch * 7 + 6, 7) == pytest.approx(rate)
        scheduler.step(epoch)
    assert learning_rate(recipe, 0, 7) == learning_rate(recipe, 7, 7) == 1e-6


def test_weight_decay_spares_what_timm_spares():
    model = micro()
    ours = build_optimizer(model, RecipeConfig(epochs=1, batch_size=8, lr=1e-3, weight_decay=0.05)).param_groups
    theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    for group in ours:
        (match,) = [g for g in theirs if g["weight_decay"] == group["weight_decay"]]
        assert {id(p) for p in group["params"]} == {id(p) for p in match["params"]}


def test_moving_average_is_a_recursion():
    model = nn.Linear(2, 2)
    average = MovingAverage(model, 0.9, warmup=True)
    expected = model.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 2, generator=torch.Generator().manual_seed(step)))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert torch.allclose(average.model.weight, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["vit_tiny_16_224", "vit_small_16_224", "vit_base_16_224"])
def test_published_sizes(name):
    """Parameters of DeiT's Table 1 (5.7 M, 22 M, 86 M); the book's log says 5,717,416 for the smallest."""
    with torch.device("meta"):
        count = sum(p.numel() for p in build_model(choice("model", name), 1000).parameters())
    assert count == {"vit_tiny_16_224": 5_717_416, "vit_small_16_224": 22_050_664, "vit_base_16_224": 86_567_656}[name]


def test_an_impossible_model_is_named():
    with pytest.raises(ConfigError, match=r"model\.name.*vit_tiny_patch16_224"):
        build_model(ModelConfig(name="vit_tiny_patch16_22"), 10)
    with pytest.raises(ConfigError, match=r"model\.name.*resnet18.*model\.num_heads=3"):
        build_model(ModelConfig(name="resnet18", num_heads=3), 10)


@pytest.mark.parametrize("name", ["lamb", "lion", "muon", "adan", "nadamw", "sgdw"])
def test_timms_other_optimizers_have_timms_groups_and_constants(name):
    recipe = RecipeConfig(epochs=1, batch_size=8, lr=1e-3, weight_decay=0.05, optimizer=name)
    models = micro(), micro()
    ours = build_optimizer(models[0], recipe)
    theirs = create_optimizer_v2(models[1], opt=name, lr=recipe.peak_lr, weight_decay=0.05)
    assert type(ours) is type(theirs) and len(ours.param_groups) == len(theirs.param_groups)
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert len(group["params"]) == len(other["params"])
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
    before = [p.detach().clone() for p in models[0].parameters()]
    models[0](torch.randn(2, 3, 16, 16)).square().sum().backward()
    ours.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, models[0].parameters(), strict=True))
    ours.load_state_dict(ours.state_dict())


def test_an_unknown_optimizer_is_named(compose_config):
    with pytest.raises(ConfigError, match=r"recipe\.optimizer: got 'adamv'.*lamb.*") as error:
        compose_config("recipe.optimizer=adamv")
    assert error.value.ways and compose_config(error.value.ways[0])
    with pytest.raises(ConfigError, match="second derivatives"):
        compose_config("recipe.optimizer=adahessian")


def test_drop_path_rates_and_masks():
    from vitlab.core.random import Draws
    from vitlab.models.drop_path import DropPath, install_drop_path

    model = micro()
    masks = install_drop_path(model, 0.5)
    assert [m.branch for m in model.modules() if isinstance(m, DropPath)] == [0, 1, 2, 3, 4, 5]
    draws = Draws(0, 0, np.arange(20_000))
    masks.draw(draws, torch.device("cpu"))
    kept = (masks.scale > 0).float().mean(1)
    assert torch.allclose(kept, torch.tensor([1, 1, 0.75, 0.75, 0.5, 0.5]), atol=0.012)
    assert torch.allclose(masks.scale.mean(1), torch.ones(6), atol=0.025)
    images = torch.randn(6, 3, 16, 16)
    model.train()
    masks.draw(draws.select(slice(0, 6)), images.device)
    whole = model(images)
    masks.draw(draws.select(slice(2, 4)), images.device)
    assert torch.allclose(whole[2:4], model(images[2:4]), atol=1e-5)
    model.eval()
    assert not torch.allclose(whole, model(images), atol=1e-3)


def test_the_rates_of_recipe_deit_are_deits():
    """DeiT's main.py: timm's scheduler, stepped after each epoch with that epoch's index; epochs 0 and 1 at 1e-6."""
    recipe, steps = choice("recipe", "deit"), 1251
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.peak_lr)
    scheduler = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=5)
    deits = []
    for epoch in range(300):
        deits.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    assert deits[:2] == [1e-6, 1e-6] and not recipe.ema_warmup
    ours = [learning_rate(recipe, epoch * steps, steps) for epoch in range(300)]
    last = [learning_rate(recipe, (epoch + 1) * steps - 1, steps) for epoch in range(300)]
    assert ours == pytest.approx(deits, rel=1e-12) and last == ours
    by_step = dataclasses.replace(recipe, schedule_by="step")
    ratios = [learning_rate(by_step, epoch * steps, steps) / deits[epoch] for epoch in range(1, 7)]
    assert ratios == pytest.approx([200.8, 1.995, 1.499, 1.333, 1.249, 1.000], abs=5e-4)
