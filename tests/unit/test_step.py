"""The step: waits for nothing, reduces once, is compiled where that works, and takes what fits."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode

from vitlab.config import CellConfig, ConfigError, PretrainConfig, choice
from vitlab.data.augment import Augment
from vitlab.data.loader import Batch
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
