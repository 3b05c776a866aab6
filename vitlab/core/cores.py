"""CPU cores that this process may use: its affinity, and the quota of its control groups (containers, Slurm)."""

from __future__ import annotations

import math
import os
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use, at least 1. A quota of 1.5 cores counts as 2. `root` is `/` but in tests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """The quotas, in cores, of this process's control groups and of all groups above them; versions 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        own = base / group.lstrip("/")
        for folder in (own, *own.parents):
            found += _quota(folder)
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
