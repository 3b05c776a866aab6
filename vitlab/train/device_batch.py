"""How many samples one device takes at a time. Speed and memory only: the global batch stays what the recipe says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vitlab.config import CellConfig, ConfigError
from vitlab.models.trainable import batch_norms
from vitlab.train.evaluate import autocast

_CPU_TOKENS = 64 * 197
"""On a CPU larger micro-batches bring no speed: about 64 images of 224 pixels in patches of 16."""


def choose_device_batch(model: nn.Module, cell: CellConfig, share: int, device: torch.device) -> int:
    """The largest micro-batch that divides `share`, respects the mixing groups and fits the device.

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
    return next((n for n in sizes if _fits(model, cell, n, device)), None) or _refuse(sizes[-1])


def _refuse(smallest: int) -> int:
    raise ConfigError(
        "device_batch",
        f"even {smallest} samples do not fit on the device; use model.grad_checkpointing=true, more "
        "devices or a smaller augment.mix_group",
    )


def _fits(model: nn.Module, cell: CellConfig, size: int, device: torch.device) -> bool:
    """Whether a training pass over `size` samples leaves a tenth of the device's memory free."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    model.eval()  # stochastic depth has no masks yet; it needs no memory to speak of
    try:
        images = torch.zeros(size, 3, cell.model.image_size, cell.model.image_size, device=device)
        with autocast(device, cell.recipe.precision):
            loss = F.cross_entropy(model(images).float(), torch.zeros(size, dtype=torch.int64, device=device))
        loss.backward()
        return torch.cuda.max_memory_reserved(device) < 0.9 * torch.cuda.get_device_properties(device).total_memory
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
