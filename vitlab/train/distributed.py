"""Processes of one cell: who am I, how do we meet, how are we started on one machine."""

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
