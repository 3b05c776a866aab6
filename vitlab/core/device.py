"""What a process computes on: its device and how arrays get there, and the CPU cores that it may use."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.core.errors import ConfigError

if TYPE_CHECKING:  # a plan counts cores, and needs no torch
    import numpy as np
    import torch
    from torch import Tensor


def pick_device(wanted: str) -> torch.device:
    """This process's device for `device=auto|cpu|cuda|mps`; `auto` prefers CUDA, then MPS.

    Of several GPUs it is the one whose number LOCAL_RANK gives (0 without it), which becomes CUDA's current device.
    Raises ConfigError where there is none.
    """
    import torch

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
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU" if device.type == "cpu" else device.type


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on `device`. To a GPU it goes by way of pinned memory: pageable memory would wait for earlier work."""
    import numpy as np
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use, at least 1. A quota of 1.5 cores counts as 2. `root` is `/` but in tests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def free_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that this process may still take: of the machine, and of its control groups. `root` is `/` but in
    tests; where neither sets one, there is no limit."""
    limits = [float("inf")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for folder in _groups(root, "memory"):
        for most, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):  # no such file, or `max`: no limit
                numbers = [int((folder / name).read_text(encoding="utf-8")) for name in (most, used)]
                limits.append(max(0, numbers[0] - numbers[1]))
    return int(min(limits)) if min(limits) < float("inf") else 1 << 62


def shared_memory(root: Path = _ROOT) -> tuple[int, int]:
    """Bytes of /dev/shm that are free, and all of them: through it processes hand tensors over. `root` is `/` but in
    tests; where there is none, no limit is known."""
    try:
        found = os.statvfs(root / "dev/shm")
    except OSError:
        return 1 << 62, 1 << 62
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _quotas(root: Path) -> list[float]:
    """The quotas, in cores, of this process's control groups and of all groups above them."""
    return [quota for folder in _groups(root, "cpu") for quota in _quota(folder)]


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's control groups and of all groups above them; versions 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = base / group.lstrip("/")
        for folder in (own, *own.parents):
            found.append(folder)
            if folder == base:
                break
    return found


def _quota(folder: Path) -> list[float]:
    """The quota that one control group sets, as a list of none or one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{n}_us").read_text(encoding="utf-8") for n in ("quota", "period"))
        cores = float(quota) / float(period)
    except (OSError, ValueError):  # no such file, or `max`: no quota
        return []
    return [cores] if cores > 0 else []
