"""A process computes on the GPU that its rank has, whatever it does there."""

import numpy as np
import pytest
import torch

from vitlab.core.device import device_name, pick_device, to_device
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
