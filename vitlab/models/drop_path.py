"""Stochastic depth (Huang et al., ECCV 2016) whose masks come from counters, not from a global generator.

Which residual branches a sample skips then depends on (seed, epoch, sample) alone: not on the device, the number of
processes or how the batch is split.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitlab.core.errors import ConfigError
from vitlab.core.random import Draws


class DropPath(nn.Module):
    """A residual branch (B, ...) times its row of the masks: 0 for samples that skip it, 1 / keep for the others."""

    def __init__(self, masks: DropPathMasks, branch: int) -> None:
        super().__init__()
        self._masks = [masks]  # in a list, so that it is not registered as part of the model
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        scale = self._masks[0].scale[self.branch]
        return x * scale.to(x).view(-1, *[1] * (x.ndim - 1))


class DropPathMasks:
    """The masks of one forward pass over B samples, (branches, B); `draw` before each."""

    def __init__(self, rates: list[float]) -> None:
        self.keep = torch.tensor([[1 - rate] for rate in rates])
        self.scale = torch.ones(len(rates), 1)  # until the first draw nothing is dropped, in any batch

    def draw(self, draws: Draws, device: torch.device) -> None:
        """Fix which of the branches each of the B samples skips, from the stream "drop_path"."""
        if not len(self.keep):
            return
        uniform = torch.from_numpy(draws.uniform("drop_path", len(self.keep))).T  # (branches, B) float64
        scale = ((uniform < self.keep) / self.keep).float()
        self.scale = scale.to(device, non_blocking=True)


def install_drop_path(model: nn.Module, rate: float) -> DropPathMasks:
    """Put stochastic depth on both residual branches of every block, with rates rising linearly from 0 to `rate`.

    The rates are timm's: block i of L has i / (L - 1) of `rate`. Raises ConfigError for a model without such blocks.
    """
    if rate == 0:
        return DropPathMasks([])
    blocks = list(getattr(model, "blocks", []))
    if not blocks or not all(hasattr(b, "drop_path1") and hasattr(b, "drop_path2") for b in blocks):
        raise ConfigError("recipe.drop_path", f"{type(model).__name__} has no residual branches to drop; set it to 0")
    rates = torch.linspace(0, rate, len(blocks)).tolist()
    masks = DropPathMasks([r for r in rates for _ in range(2)])
    for i, block in enumerate(blocks):
        block.drop_path1, block.drop_path2 = DropPath(masks, 2 * i), DropPath(masks, 2 * i + 1)
    return masks
