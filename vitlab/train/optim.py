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

    def weight(self, step: int) -> float:
        """Of the weights in the average after optimizer step `step` (from 0)."""
        return 1 - (min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay)

    def update(self, step: int) -> None:
        """Fold in the weights after optimizer step `step` (from 0)."""
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._source, self.weight(step))

    def fold_in(self, weight: Tensor) -> None:
        """As `update`, with the weight () in a tensor: what is compiled is then compiled once for all steps."""
        with torch.no_grad():
            change = torch._foreach_sub(self._source, self._average)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(self._average, change)


class Update:
    """What ends a step: the optimizer's update at the step's learning rate, then the moving average's.

    `compiled`: both as one compiled function. The learning rate and the average's weight are tensors in it, so that no
    step compiles again. PyTorch does not compile its fused optimizers: the update is then that of its loops over
    tensors, which compiling fuses, the same to rounding. The optimizer's groups keep their own settings outside of it,
    and so do checkpoints.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, average: MovingAverage | None = None, *, compiled: bool = False
    ) -> None:
        self.optimizer, self.average, self.number = optimizer, average, 0
        self._compiled = torch.compile(self._both) if compiled else None
        device = optimizer.param_groups[0]["params"][0].device
        self._rate, self._weight = torch.zeros((), device=device), torch.zeros((), device=device)
        on_gpu = device.type == "cuda"  # elsewhere AdamW takes no rate in a tensor for all parameters at once
        self._inside = {"fused": False, "foreach": on_gpu or None, "capturable": on_gpu}

    def at(self, rate: float, number: int) -> None:
        """Say of the coming step that it is optimizer step `number` (from 0), and its learning rate."""
        self.number = number
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self) -> None:
        if self._compiled is None:
            self.optimizer.step()
            if self.average:
                self.average.update(self.number)
            return
        groups = self.optimizer.param_groups
        self._rate.fill_(groups[0]["lr"])
        if self.average:
            self._weight.fill_(self.average.weight(self.number))
        own = [{key: group[key] for key in ("lr", *self._inside) if key in group} for group in groups]
        for group, kept in zip(groups, own, strict=True):
            group |= {key: value for key, value in self._inside.items() if key in kept} | {"lr": self._rate}
        try:
            self._compiled()
        finally:
            for group, kept in zip(groups, own, strict=True):
                group |= kept

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def _both(self) -> None:
        self.optimizer.step()
        if self.average:
            self.average.fold_in(self._weight)
