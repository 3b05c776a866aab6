"""The optimizer, the learning rate of every step, and the moving average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from vitlab.config import RecipeConfig
from vitlab.config.check import OWN_OPTIMIZERS


def build_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over two groups: weight decay on matrices, none on vectors, class and position tokens (DeiT).

    Any other of timm's names is built by timm, over timm's groups, which are the same, with its own constants.
    """
    if recipe.optimizer not in OWN_OPTIMIZERS:
        return create_optimizer_v2(model, opt=recipe.optimizer, lr=recipe.peak_lr, weight_decay=recipe.weight_decay)
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # pyright: ignore
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, eps=recipe.eps, fused=fused)


def learning_rate(recipe: RecipeConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step `step` (from 0).

    Linear from `warmup_lr` over `warmup_epochs`, then a cosine from the peak to `min_lr` whose angle counts from the
    first step, warm-up included (timm's CosineLRScheduler). `schedule_by=epoch` is DeiT's stepping: after an epoch
    with that epoch's index, so that the first two epochs share one rate.
    """
    epoch = step // steps_per_epoch
    time = max(epoch - 1, 0) if recipe.schedule_by == "epoch" else step / steps_per_epoch
    peak = recipe.peak_lr
    if time < recipe.warmup_epochs:
        return recipe.warmup_lr + (peak - recipe.warmup_lr) * time / recipe.warmup_epochs
    if recipe.schedule == "constant":
        return peak
    return recipe.min_lr + (peak - recipe.min_lr) * (1 + math.cos(math.pi * time / recipe.epochs)) / 2


class MovingAverage:
    """Exponential moving average of a model's weights (Polyak averaging, as timm's ModelEma), with a warm-up."""

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self._average: list[Tensor] = list(self.model.parameters())
        self._source: list[Tensor] = [p.detach() for p in model.parameters()]
        pairs = list(zip(self.model.buffers(), model.buffers(), strict=True))  # batch normalisation's statistics
        self._average += [own for own, _ in pairs if own.is_floating_point()]
        self._source += [theirs for own, theirs in pairs if own.is_floating_point()]

    def update(self, step: int) -> None:
        """Fold in the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._source, 1 - decay)
