"""Batch normalisation over the global batch, on any device: statistics are summed over the processes of a cell.

PyTorch's own SyncBatchNorm runs on accelerators only. The number of processes changes nothing but rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """`x` (B, C, ...) normalised by the mean and variance of each channel over the global batch."""
    values = x if x.dtype == torch.float64 else x.float()
    dims = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() // x.shape[1] * dist.get_world_size()  # every process has an equal share
    mean = _SumOverRanks.apply(values.sum(dims)) / count
    centred = values - mean.view(shape)
    variance = _SumOverRanks.apply(centred.square().sum(dims)) / count
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.detach().to(norm.running_mean), share)
            unbiased = variance.detach() * count / max(count - 1, 1)
            norm.running_var.lerp_(unbiased.to(norm.running_var), share)
    out = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out.to(x.dtype)


class _Synchronised:
    """Mixed into a module's own class, before it: what it does after the normalisation stays."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)  # pyright: ignore[reportAttributeAccessIssue]
        out = _normalised(self, x)
        for name in ("drop", "act"):  # timm's BatchNormAct2d
            if isinstance(after := getattr(self, name, None), nn.Module):
                out = after(out)
        return out


def synchronise(model: nn.Module) -> int:
    """Let every batch normalisation of `model` use the statistics of the global batch; returns how many there are.

    In place; parameters, buffers and their names stay.
    """
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for module in found:
        own = type(module)
        module.__class__ = type(f"Synchronised{own.__name__}", (_Synchronised, own), {})
    return len(found)
