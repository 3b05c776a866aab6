"""The device that a process computes on: which it is, what it is called, how arrays get there."""

from __future__ import annotations

import os
import platform

import numpy as np
import torch
from torch import Tensor

from vitlab.core.errors import ConfigError


def pick_device(wanted: str) -> torch.device:
    """This process's device for `device=auto|cpu|cuda|mps`; `auto` prefers CUDA, then MPS.

    Of several GPUs it is the one whose number LOCAL_RANK gives (0 without it), which becomes CUDA's current device.
    Raises ConfigError where there is none.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    if (wanted == "cuda" and not cuda) or (wanted == "mps" and not mps):
        raise ConfigError("device", f"{wanted} was asked for and this machine has none; use device=cpu or device=auto")
    if wanted != "cuda":
        return torch.device(wanted)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            "devices", f"process {local_rank} has no GPU of its own; {torch.cuda.device_count()} are visible"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """The kind of a device, as people and cost estimates know it: "NVIDIA H100", "x86_64 CPU", "mps"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU" if device.type == "cpu" else device.type


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on `device`. To a GPU it goes by way of pinned memory: pageable memory would wait for earlier work."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
