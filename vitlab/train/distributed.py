"""The processes of one cell: how they start and meet, what they sum, and batch normalisation over the global batch."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitlab.core.errors import UserError


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world_from_environment() -> World:
    """The world that torchrun, submitit or `spawn_ranks` describes in RANK and WORLD_SIZE."""
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextlib.contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Inside, the processes of this world are one group (NCCL on CUDA, else Gloo); joining twice is joining once."""
    if world.size == 1 or dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    bound = device if backend == "nccl" else None
    dist.init_process_group(
        backend, rank=world.rank, world_size=world.size, timeout=timedelta(minutes=30), device_id=bound
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all processes, in place; the tensor itself where there is one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def max_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of each of `values` over all processes."""
    largest = torch.tensor(values, dtype=torch.float32, device=device)
    if dist.is_initialized():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


def gather_values(value: Any) -> list[Any] | None:
    """Every rank's `value`, in rank order, on rank 0; None elsewhere."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


def broadcast(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextlib.contextmanager
def spawn_ranks(devices: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> Iterator[None]:
    """Inside, this process is rank 0 of `devices`, and `function(*arguments)` runs in a new process as each other rank.

    The processes are forked, so it must be entered before CUDA is touched. Raises RuntimeError where one fails.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices)}
    context = mp.get_context("fork")
    others = [context.Process(target=_enter, args=(r, function, arguments)) for r in range(1, devices)]
    for process in others:
        process.start()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0"}
    try:
        yield
    except BaseException:
        for process in others:
            process.kill()
        raise
    finally:
        for process in others:
            process.join()
    if failed := [r for r, process in enumerate(others, start=1) if process.exitcode]:
        raise RuntimeError(f"process {failed[0]} of {devices} ended with exit code {others[failed[0] - 1].exitcode}")


def _enter(rank: int, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    try:
        function(*arguments)
    except UserError as error:  # the user's: a line, as rank 0 says it, and no traceback
        sys.exit(f"vitlab: process {rank}: {error}")


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


def synchronise_batch_norms(model: nn.Module) -> int:
    """Let every batch normalisation of `model` use the statistics of the global batch; returns how many there are.

    In place; parameters, buffers and their names stay. PyTorch's own SyncBatchNorm runs on accelerators only. The
    number of processes changes nothing but rounding.
    """
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for module in found:
        own = type(module)
        module.__class__ = type(f"Synchronised{own.__name__}", (_Synchronised, own), {})
    return len(found)
