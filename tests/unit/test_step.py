"""The step: waits for nothing, reduces once, is compiled where that works, and takes what fits."""

import dataclasses
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from vitlab.config import CellConfig, ConfigError, PretrainConfig, choice
from vitlab.data.augment import Augment
from vitlab.data.loader import Batch, TrainLoader
from vitlab.data.sources.arrays import ArraySource
from vitlab.models.build import build_model
from vitlab.models.drop_path import install_drop_path
from vitlab.train import step
from vitlab.train.distributed import World
from vitlab.train.optim import build_optimizer
from vitlab.train.step import choose_device_batch, compile_and_replicate, train_step, why_not_compiled

CPU = torch.device("cpu")


class NoWaiting(TorchDispatchMode):
    """Raises where a value is read back from the device, or a shape depends on one."""

    READING = ("_local_scalar_dense", "item", "nonzero", "equal", "masked_select", "is_nonzero", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.READING), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def a_cell(**recipe):
    augment = dataclasses.replace(choice("augment", "deit"), mix_group=4)
    recipe = dataclasses.replace(choice("recipe", "quick"), batch_size=16, drop_path=0.2, clip_grad=1.0, **recipe)
    return CellConfig(choice("model", "vit_micro"), choice("dataset", "digits"), augment, PretrainConfig(), recipe)


def set_up(cell, size):
    torch.manual_seed(0)
    model = build_model(cell.model, 10)
    masks = install_drop_path(model, cell.recipe.drop_path)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    labels, index = torch.arange(16) % 10, np.arange(16)
    batches = [
        Batch(images[at], labels[at], index[at], np.zeros_like(index[at]), index[at])
        for at in (slice(start, start + size) for start in range(0, 16, size))
    ]
    return model, masks, batches, Augment(cell.augment, cell.dataset)


def test_no_value_is_read_back_within_a_step():
    cell = a_cell()
    model, masks, batches, augment = set_up(cell, 8)
    optimizer = build_optimizer(model, cell.recipe)
    train_step(model, optimizer, batches, augment, masks, cell, 0, 16)  # what is made once, is made
    with NoWaiting():
        loss = train_step(model, optimizer, batches, augment, masks, cell, 0, 16)
    assert loss.isfinite()
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        loss.item()


class NoPageableMemory(TorchDispatchMode):
    """Raises where a CPU's tensor is copied to the device `meta` but by `to_device`, which pins it."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.pinned = False
        modules = [m for name, m in sys.modules.items() if name.startswith("vitlab.") and hasattr(m, "to_device")]
        assert len(modules) > 5
        for module in modules:
            monkeypatch.setattr(module, "to_device", self.to_device)

    def to_device(self, array, device):
        self.pinned = True
        copied = torch.from_numpy(np.ascontiguousarray(array)).to(device)
        self.pinned = False
        return copied

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = [a.device.type for a in args if isinstance(a, torch.Tensor)]
        if func.overloadpacket.__name__ in ("_to_copy", "copy_") and found.device.type == "meta" and not self.pinned:
            assert "cpu" not in given, f"{func} of {args[-1].shape} waits for the device"
        return found


@pytest.mark.parametrize("condition", ["none", "deit_autoaug", "deit", "augmix", "three"])
def test_nothing_goes_to_the_device_by_pageable_memory(condition, monkeypatch):
    """The copy would wait for what the device does. `meta` stands for the device: a copy to it is a copy to a GPU."""
    meta = torch.device("meta")
    copies = NoPageableMemory(monkeypatch)
    cell = dataclasses.replace(a_cell(), augment=dataclasses.replace(choice("augment", condition), mix_group=4))
    source = ArraySource(np.zeros((32, 28, 28, 3), np.uint8), np.arange(32) % 10, tuple("0123456789"))
    loader = TrainLoader(source, cell.dataset, cell.augment, cell.recipe, image_size=16, seed=0, rank=0, world=1,
                         workers=0, micro_batch=16, device=meta)  # fmt: skip
    model = build_model(cell.model, 10)
    masks = install_drop_path(model, cell.recipe.drop_path)
    optimizer, augment = build_optimizer(model.to(meta), cell.recipe), Augment(cell.augment, cell.dataset)
    for batches in loader.epoch(0):  # what is copied once is copied
        train_step(model, optimizer, batches, augment, masks, cell, 0, 16)
    with copies:
        for batches in loader.epoch(1):
            train_step(model, optimizer, batches, augment, masks, cell, 1, 16)
    with pytest.raises(AssertionError, match="waits"), copies:
        torch.ones(2).to(meta)


def test_a_share_of_a_gpu_leaves_every_process_room_for_cuda(monkeypatch):
    fractions, device = [], torch.device("cuda", 0)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda share, _: fractions.append(share))
    monkeypatch.setattr(step, "usable_cores", lambda: 16)
    for cells, threads in ((1, 16), (4, 4), (16, 1), (40, 1)):
        with torch._inductor.config.patch(compile_threads=16):
            step.limit_to_share(device, 1 / cells)
            assert torch._inductor.config.compile_threads == threads
        assert cells * (step.memory_of(device, 1 / cells) + step.CONTEXT_BYTES * (cells > 1)) <= 80 * 10**9
    assert [round(share * 80) for share in fractions] == [19, 4, 1], "one cell alone has no limit"
    with pytest.raises(ConfigError, match=r"study\.cells_per_device: 120 cells do not fit on a GPU of 80 GB"):
        step.limit_to_share(device, 1 / 120)
    step.limit_to_share(CPU, 1 / 120)


@pytest.mark.slow
def test_a_graph_with_another_attention_kernel_is_not_taken_from_the_cache(monkeypatch, tmp_path):
    """AOTAutograd's cache does not know the kernel. The mathematical one stands for cuDNN's, which needs a GPU."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(step, "ATTENTION", {"cudnn": SDPBackend.MATH})

    def attention(q):
        return torch.nn.functional.scaled_dot_product_attention(q, q, q).sum()

    def fused(speed):
        torch._dynamo.reset()
        counters.clear()
        compiled, q = torch.compile(attention), torch.randn(2, 3, 64, 16, requires_grad=True)
        with step._attention(speed):
            compiled(q).backward()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
                compiled(q).backward()
        return any("flash_attention" in event.key for event in seen.key_averages()), dict(counters["aot_autograd"])

    own, other = step.Speed("default"), step.Speed("default", "cudnn")
    assert fused(own)[0] and not fused(other)[0]
    found, cache = fused(own)
    assert found and cache["autograd_cache_hit"] == 1, "what is compiled as PyTorch chooses is kept"


def test_gradients_of_a_step_are_reduced_once_however_many_micro_batches(tmp_path):
    cell = a_cell()
    model, masks, batches, augment = set_up(cell, 4)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        network = compile_and_replicate(model, None, World(0, 2), CPU)
        reduced = []

        def counted(state, bucket):
            reduced.append(bucket.index())
            return allreduce_hook(None, bucket)

        network.register_comm_hook(None, counted)
        optimizer = build_optimizer(model, cell.recipe)
        for number in range(3):
            reduced.clear()
            train_step(network, optimizer, batches, augment, masks, cell, number, 16)
            assert sorted(reduced) == sorted(set(reduced)), "a bucket was reduced twice in a step of 4 micro-batches"
            assert reduced
    finally:
        dist.destroy_process_group()


def test_where_nothing_can_be_compiled_the_step_runs_as_written(monkeypatch, capsys):
    def failing(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC.\nmore")

    monkeypatch.setattr(step.torch, "compile", failing)
    reason = why_not_compiled(True, torch.device("cuda"))
    assert reason and "runs uncompiled: RuntimeError: Failed to find C compiler" in reason and "\n" not in reason
    assert reason in capsys.readouterr().out
    assert why_not_compiled(False, torch.device("cuda")) == "recipe.compile=false"
    assert "compiled only on cuda" in str(why_not_compiled(True, CPU))
    model = torch.nn.Linear(2, 2)
    assert compile_and_replicate(model, None, World(), CPU) is model


def test_a_compiled_step_is_the_step_as_written():
    cell, losses = a_cell(), []
    for compiled in (False, True):
        model, masks, batches, augment = set_up(cell, 16)
        network = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = build_optimizer(model, cell.recipe)
        losses.append([float(train_step(network, optimizer, batches, augment, masks, cell, n, 16)) for n in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_smaller_micro_batch_is_compiled_for_its_size_too(monkeypatch):
    """After the device ran out of memory, say: code for all sizes would be slower."""
    shapes = []

    def backend(graph, example):
        shapes.append([size for tensor in example if isinstance(tensor, torch.Tensor) for size in tensor.shape])
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(step.torch, "compile", partial(torch.compile, backend=backend))
    for size in (16, 8, 4):
        model = set_up(a_cell(), 16)[0]
        compile_and_replicate(model, "default", World(), CPU)(torch.rand(size, 3, 16, 16))
    assert len(shapes) == 3 and all(type(size) is int for one in shapes for size in one)


@pytest.mark.parametrize(("limit", "share", "group", "expected"), [
    (1000, 1024, 1, 512), (1000, 768, 64, 768), (100, 96, 1, 96), (50, 96, 1, 48), (50, 96, 32, 32), (1, 7, 1, 1),
])  # fmt: skip
def test_the_largest_micro_batch_that_fits_is_found(monkeypatch, limit, share, group, expected):
    tried = []
    monkeypatch.setattr(step, "_fits", lambda model, cell, n, device, part: tried.append(n) or n <= limit)
    cell = a_cell()
    augment = dataclasses.replace(cell.augment, mix_group=group) if group > 1 else choice("augment", "none")
    cell = dataclasses.replace(cell, augment=augment)
    found = choose_device_batch(torch.nn.Identity(), cell, share, torch.device("cuda"))
    assert found == expected and share % found == 0 and tried == sorted(tried, reverse=True)


def test_where_not_even_the_smallest_fits_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(step, "_fits", lambda *_: False)
    with pytest.raises(ConfigError, match=r"device_batch: even 4 samples.*model\.grad_checkpointing=true"):
        choose_device_batch(torch.nn.Identity(), a_cell(), 16, torch.device("cuda"))
