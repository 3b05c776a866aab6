"""Stochastic depth (Huang et al., ECCV 2016) whose masks come from counters, not from a global generator.

Which residual branches a sample skips then depends on (seed, epoch, sample) alone: not on the device, the number of
processes or how the batch is split.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import DropPath as TimmDropPath
from torch import Tensor, nn

from vitlab.core.device import to_device
from vitlab.core.errors import ConfigError
from vitlab.core.random import Draws


class DropPath(nn.Module):
    """A residual branch (B, ...) times its row of the masks: 0 for samples that skip it, 1 / keep for the others.

    A module that a forward pass calls `calls` times has as many rows, from `branch` on, and takes them in turn.
    """

    def __init__(self, masks: DropPathMasks, branch: int, calls: int = 1) -> None:
        super().__init__()
        self._masks = [masks]  # in a list, so that it is not registered as part of the model
        self.branch, self.calls, self.called = branch, calls, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        row = self.branch
        if self.calls > 1:
            row += self.called
            self.called = (self.called + 1) % self.calls  # not higher: a compiled model is compiled for each number
        scale = self._masks[0].scale[row]
        return x * scale.to(x).view(-1, *[1] * (x.ndim - 1))


class DropPathMasks:
    """The masks of one forward pass over B samples, (branches, B); `draw` before each, after the last one's backward.

    They stay at one place in the device's memory: a model that is recorded as CUDA graphs reads them from there, and
    PyTorch takes the tensors that belong to modules for such that do not move.
    """

    def __init__(self, rates: list[float]) -> None:
        self.keep = torch.tensor([[1 - rate] for rate in rates])
        self.scale = torch.ones(len(rates), 1)  # until the first draw nothing is dropped, in any batch

    def draw(self, draws: Draws, device: torch.device) -> None:
        """Fix which of the branches each of the B samples skips, from the stream "drop_path"."""
        if not len(self.keep):
            return
        uniform = torch.from_numpy(draws.uniform("drop_path", len(self.keep))).T  # (branches, B) float64
        scale = to_device(((uniform < self.keep) / self.keep).float().numpy(), device)
        if self.scale.shape == scale.shape and self.scale.device == scale.device:
            self.scale.copy_(scale)
        else:
            self.scale = scale


def has_branches(model: nn.Module) -> bool:
    """Whether it is a list of blocks with two residual branches each, as timm's ViT is."""
    blocks = getattr(model, "blocks", None)
    blocks = list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
    return bool(blocks) and all(hasattr(b, "drop_path1") and hasattr(b, "drop_path2") for b in blocks)


def install_drop_path(model: nn.Module, rate: float, calls: Mapping[str, int] | None = None) -> DropPathMasks:
    """Put stochastic depth on the residual branches of `model`, with rates rising from 0 to `rate`.

    Where `has_branches`, block i of L has i / (L - 1) of `rate` on both, as in timm. Any other model was built with
    timm's own stochastic depth of that rate, which is replaced module by module; `calls` says how often a forward pass
    calls each. Raises ConfigError for a model without either.
    """
    if rate == 0:
        return DropPathMasks([])
    if not has_branches(model):
        return _replace(model, calls or {})
    blocks = list(model.blocks)  # pyright: ignore[reportArgumentType]
    rates = torch.linspace(0, rate, len(blocks)).tolist()
    masks = DropPathMasks([r for r in rates for _ in range(2)])
    for i, block in enumerate(blocks):
        block.drop_path1, block.drop_path2 = DropPath(masks, 2 * i), DropPath(masks, 2 * i + 1)
    return masks


def _replace(model: nn.Module, calls: Mapping[str, int]) -> DropPathMasks:
    """The counter-based module in place of each of timm's that drops something."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, TimmDropPath)]
    found = [(name, module, calls.get(name, 1)) for name, module in found if module.drop_prob and calls.get(name, 1)]
    if not found:
        raise ConfigError("recipe.drop_path", f"{type(model).__name__} has no residual branches to drop; set it to 0")
    masks = DropPathMasks([module.drop_prob for _, module, times in found for _ in range(times)])
    branch = 0
    for name, module, times in found:
        if not module.scale_by_keep:
            raise ConfigError("recipe.drop_path", f"{type(model).__name__} keeps its branches unscaled; set it to 0")
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, DropPath(masks, branch, times))
        branch += times
    return masks
