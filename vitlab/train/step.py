"""One optimizer step: augment, forward, backward, update; nothing in it waits for the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitlab.config import CellConfig
from vitlab.core.random import Draws
from vitlab.data.augment import Augment, mix
from vitlab.data.loader import Batch
from vitlab.train.distributed import World
from vitlab.train.evaluate import autocast


def why_not_compiled(wanted: bool, device: torch.device) -> str | None:
    """Why the step is not compiled here, or None where it is; compiling changes its speed, not the experiment.

    On CUDA torch.compile is tried on one line: a missing C compiler, Triton or Python header shows there, in a second,
    and the step then runs as it is written. A small ViT's step on a CPU is slower compiled (docs/performance.md).
    """
    if not wanted:
        return "recipe.compile=false"
    if device.type != "cuda":
        return f"device {device.type}: compiled only on cuda"
    try:
        torch.compile(_one_line)(torch.ones(8, device=device))
    except Exception as error:  # each missing part raises an error of its own kind
        reason = f"torch.compile does not work here, the step runs uncompiled: {_first_line(error)}"
        print(reason, flush=True)
        return reason
    return None


def _one_line(x: Tensor) -> Tensor:
    return x * 2 + 1


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]


def compile_and_replicate(model: nn.Module, compiled: bool, world: World, device: torch.device) -> nn.Module:
    """`model` as the step calls it: compiled or not, and replicated over the processes."""
    network: nn.Module = torch.compile(model) if compiled else model  # pyright: ignore
    if world.size > 1:
        network = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    return network


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    augment: Augment,
    masks: Any,
    cell: CellConfig,
    epoch: int,
    share: int,
) -> Tensor:
    """One optimizer step on this process's `share` of the global batch; returns the mean loss, on the device."""
    total = torch.zeros((), device=micro_batches[0].images.device)
    for number, batch in enumerate(micro_batches):
        draws = Draws(cell.seed, epoch, batch.index, batch.repetition)
        group = cell.augment.mix_group
        groups = Draws(cell.seed, epoch, batch.position[::group] // group)
        images = augment(batch.images, draws)  # (b, 3, S, S) float32
        images, targets = mix(
            cell.augment, images, batch.labels, num_classes=_num_classes(network), draws_of_groups=groups
        )
        masks.draw(draws, images.device)
        last = number == len(micro_batches) - 1
        replicated = isinstance(network, DistributedDataParallel)
        if replicated:
            network.require_backward_grad_sync = last  # one all-reduce a step, not one a micro-batch
        with autocast(images.device, cell.recipe.precision):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), targets) * (len(images) / share)
        loss.backward()
        total += loss.detach()
    if cell.recipe.clip_grad:
        nn.utils.clip_grad_norm_(network.parameters(), cell.recipe.clip_grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _num_classes(network: nn.Module) -> int:
    inner = getattr(network, "module", network)
    return int(getattr(inner, "_orig_mod", inner).num_classes)  # pyright: ignore[reportArgumentType]
