"""Cores that a process may use: its affinity and the quotas of its control groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitlab.core.cores import usable_cores

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
    code += "from vitlab.core.cores import usable_cores; print(usable_cores())"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout == "1\n"
