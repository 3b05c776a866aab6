"""How many samples one device takes at a time, and how long that takes. Speed and memory only: the global batch stays
what the recipe says."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vitlab.config import CellConfig, ConfigError
from vitlab.models.trainable import batch_norms
from vitlab.train.evaluate import autocast
from vitlab.train.optim import build_optimizer

_CPU_TOKENS = 64 * 197
"""On a CPU larger micro-batches bring no speed: about 64 images of 224 pixels in patches of 16."""


def choose_device_batch(
    model: nn.Module, cell: CellConfig, share: int, device: torch.device, device_share: float = 1.0
) -> int:
    """The largest micro-batch that divides `share`, respects the mixing groups and fits into `device_share` of the
    device's memory, which others share.

    On CUDA it is found by trying a forward and backward pass. Raises ConfigError where not even the smallest fits.
    """
    group = cell.augment.mix_group if cell.augment.mixes else 1
    whole = cell.recipe.train_mode == "train" and bool(batch_norms(model))  # which sees all of the batch at once
    sizes = [share] if whole else [n for n in range(share, 0, -1) if share % n == 0 and n % group == 0]
    if device.type != "cuda":
        if whole:
            return share
        tokens = (cell.model.image_size // (cell.model.patch_size or 16)) ** 2 + 1
        return next((n for n in sizes if n * tokens <= _CPU_TOKENS), sizes[-1])
    return next((n for n in sizes if _fits(model, cell, n, device, device_share)), None) or _refuse(sizes[-1])


def _refuse(smallest: int) -> int:
    raise ConfigError(
        "device_batch",
        f"even {smallest} samples do not fit on the device; use model.grad_checkpointing=true, more "
        "devices, fewer cells on each (study.cells_per_device) or a smaller augment.mix_group",
    )


def limit_memory(device: torch.device, device_share: float) -> None:
    """Let this process take no more than its share of a GPU's memory, so that none takes another's."""
    if device.type == "cuda" and device_share < 1:
        torch.cuda.set_per_process_memory_fraction(0.95 * device_share, device)


def seconds_of_steps(
    model: nn.Module, cell: CellConfig, sizes: Sequence[int], device: torch.device, rounds: int = 3
) -> list[float]:
    """Seconds of a training pass with its update over so many random images, the best of `rounds`, for each size."""
    optimizer = build_optimizer(model, cell.recipe)
    model.train()
    side, found = cell.model.image_size, []
    for size in sizes:
        images = torch.rand(size, 3, side, side, device=device)
        labels = torch.zeros(size, dtype=torch.int64, device=device)
        best = float("inf")
        for number in range(rounds + 1):
            began = time.perf_counter()
            with autocast(device, cell.recipe.precision):
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                best = min(best, time.perf_counter() - began)
        found.append(best)
    return found


def _fits(model: nn.Module, cell: CellConfig, size: int, device: torch.device, device_share: float) -> bool:
    """Whether a training pass over `size` samples leaves a tenth of this process's share of the memory free."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    model.eval()  # stochastic depth has no masks yet; it needs no memory to speak of
    try:
        images = torch.zeros(size, 3, cell.model.image_size, cell.model.image_size, device=device)
        with autocast(device, cell.recipe.precision):
            loss = F.cross_entropy(model(images).float(), torch.zeros(size, dtype=torch.int64, device=device))
        loss.backward()
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved(device) < 0.9 * device_share * total
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
