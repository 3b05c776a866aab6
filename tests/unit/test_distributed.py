"""Batch normalisation over two processes is that over one, with its gradients; accumulation is refused."""

from __future__ import annotations

import multiprocessing as mp
import sys

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitlab.config import ConfigError, ModelConfig
from vitlab.models.build import build_model
from vitlab.models.trainable import batch_norms, require_whole_batches
from vitlab.train.distributed import synchronise_batch_norms
from vitlab.train.optim import MovingAverage


def small(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(0)
    act = BatchNormAct2d(4)
    act.act = nn.SiLU()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), act, nn.Flatten(), nn.Linear(144, 3),
        nn.BatchNorm1d(3),
    ).double()  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    return model.train()


def losses_and_state(network: nn.Module, model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """After two steps: gradients and buffers."""
    for step in range(2):
        network.zero_grad()
        (network(images + step) ** 3).mean().backward()
    found = {f"grad {name}": p.grad.clone() for name, p in model.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def images() -> torch.Tensor:
    return torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def of_rank(rank: int, folder: str, momentum: float | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = small(momentum)
    assert synchronise_batch_norms(model) == 3 and list(model.state_dict()) == list(small(momentum).state_dict())
    network = DistributedDataParallel(model)
    torch.save(losses_and_state(network, model, images().chunk(2)[rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    sys.exit(0)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_two_processes_are_one(tmp_path, momentum):
    context = mp.get_context("fork")
    processes = [context.Process(target=of_rank, args=(rank, str(tmp_path), momentum)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    model = small(momentum)
    one = losses_and_state(model, model, images())
    for rank in range(2):
        of_two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in one.items():
            torch.testing.assert_close(of_two[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_one_process_uses_pytorchs_own():
    model, other = small(), small()
    synchronise_batch_norms(model)
    torch.testing.assert_close(model(images()), other(images()), rtol=0, atol=0)
    torch.testing.assert_close(model.eval()(images()), other.eval()(images()), rtol=0, atol=0)


def test_parts_of_a_batch_are_refused_and_so_is_seeing_it_twice():
    model = build_model(ModelConfig("test_resnet", image_size=32), 10)
    assert len(batch_norms(model)) > 10
    require_whole_batches(model, 32, None, False)
    require_whole_batches(model, 32, 32, False)
    with pytest.raises(ConfigError, match=r"device_batch: got 8, and batch normalisation .*device_batch=32"):
        require_whole_batches(model, 32, 8, False)
    with pytest.raises(ConfigError, match=r"model\.grad_checkpointing: .*every batch twice"):
        require_whole_batches(model, 32, None, True)
    require_whole_batches(build_model(ModelConfig("test_convnext", image_size=32), 10), 32, 8, True)


def test_the_moving_average_keeps_the_statistics_too():
    model = small()
    average = MovingAverage(model, 0.5, warmup=False)
    model(images())
    average.update(0)
    expected = 0.5 * torch.zeros(4, dtype=torch.float64) + 0.5 * model[1].running_mean
    torch.testing.assert_close(average.model[1].running_mean, expected)
