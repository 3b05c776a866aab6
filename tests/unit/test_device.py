"""A process computes on the GPU that its rank has, whatever it does there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vitlab.core.device import device_name, pick_device, shared_memory, to_device, usable_cores
from vitlab.core.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, as far as torch is asked; gives the one that is made current."""
    current: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return current


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_each_rank_has_its_own_gpu(wanted, gpus, monkeypatch):
    assert pick_device(wanted) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device(wanted) == torch.device("cuda", 1) and gpus == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="devices: process 2 has no GPU of its own; 2 are visible"):
        pick_device(wanted)
    assert pick_device("cpu") == torch.device("cpu"), "any number of processes has it"


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_what_the_machine_lacks_is_refused(kind, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"device: {kind} was asked for and this machine has none; use device=cpu"):
        pick_device(kind)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")


def test_a_device_has_the_name_that_records_and_estimates_use(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device.index}")
    names = [device_name(torch.device(d)) for d in ("cpu", "mps", "cuda:1")]
    assert names == ["riscv64 CPU", "mps", "GPU 1"]


def test_an_array_is_copied_as_it_is():
    array = np.arange(12, dtype=np.int64).reshape(3, 4).T
    copied = to_device(array, torch.device("cpu"))
    assert copied.dtype == torch.int64 and copied.is_contiguous() and np.array_equal(copied.numpy(), array)


MANY = set(range(64))


def groups(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A `/` with this /proc/self/cgroup and these files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership, encoding="utf-8")
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/job_1\n", {"a/job_1/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),
        ("0::/a/job_1\n", {"a/job_1/cpu.max": "300000 100000\n", "a/cpu.max": "400000 100000\n"}, 3),
        ("2:memory:/x\n1:cpu,cpuacct:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "600000\n",
                                                    "cpu/x/cpu.cfs_period_us": "100000\n"}, 6),
        ("1:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/../elsewhere\n", {"cpu.max": "700000 100000\n"}, 7),
        ("", {}, 64),
    ],
)  # fmt: skip
def test_a_quota_bounds_the_cores(tmp_path, monkeypatch, membership, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: MANY, raising=False)
    assert usable_cores(groups(tmp_path, membership, files)) == cores


def test_without_control_groups_the_affinity_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert usable_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_an_affinity_that_was_set_is_respected():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from vitlab.core.device import usable_cores; print(usable_cores())"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout == "1\n"


def test_shared_memory_is_that_of_dev_shm(tmp_path):
    free, there = shared_memory(tmp_path)
    assert free == there == 1 << 62, "no such folder"
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    free, there = shared_memory(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    assert there == pytest.approx(usage.total, rel=0.01) and free == pytest.approx(usage.free, rel=0.05)
