"""Whether a model of timm's keeps the promise that workers, devices and restarts change nothing, tried before training.

timm's VisionTransformer does. Any other model makes one step on two images that take no memory (PyTorch's meta device),
under a mode that sees every operation: one that draws random numbers from a global generator is refused, by name.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import DropPath as TimmDropPath
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from vitlab.config import ModelConfig
from vitlab.core.errors import ConfigError

_IMAGES = 2
_RANDOM = (
    "bernoulli", "rand", "normal", "uniform", "native_dropout", "dropout", "multinomial", "exponential", "geometric",
    "cauchy", "log_normal", "random", "poisson", "rrelu",
)  # fmt: skip
"""How the names of PyTorch's operations begin that draw from a generator."""


@dataclass(frozen=True)
class TriedModel:
    """What one step showed."""

    calls: Mapping[str, int] = field(default_factory=dict)
    """Module of timm's stochastic depth → how many times a forward pass calls it."""
    unused: tuple[str, ...] = ()
    """Parameters that the loss does not depend on."""


class _Counted(nn.Module):
    """In place of stochastic depth: passes everything on, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return x


class _RandomOperations(TorchDispatchMode):
    """Collects the names of the operations that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2].lstrip("_")
        if name.startswith(_RANDOM):
            self.found.add(name.rstrip("_"))
        return func(*args, **(kwargs or {}))


def try_training(network: nn.Module, model: ModelConfig, num_classes: int) -> TriedModel:
    """One step of a copy of `network`, on the meta device where it runs there.

    Raises ConfigError, naming the model and the reason, for one that cannot keep the promise or cannot be trained on
    images of this size.
    """
    if isinstance(network, VisionTransformer):
        return TriedModel()
    for name, module in network.named_modules():
        if getattr(module, "running_var", None) is not None and not isinstance(module, _BatchNorm):
            _refuse(
                model, f"{name} ({type(module).__name__}) keeps statistics of batches that are not synchronised here"
            )
    try:
        return _step(network, model, num_classes, torch.device("meta"))
    except ConfigError:
        raise
    except Exception:  # an operation that has no meta kernel, or a tensor that is no buffer
        return _step(network, model, num_classes, torch.device("cpu"))


def _step(network: nn.Module, model: ModelConfig, num_classes: int, device: torch.device) -> TriedModel:
    tried = copy.deepcopy(network).to(device).train()
    counted = {}
    for name, module in list(tried.named_modules()):
        if isinstance(module, TimmDropPath) and module.drop_prob:
            counted[name] = _Counted()
            parent, _, last = name.rpartition(".")
            setattr(tried.get_submodule(parent), last, counted[name])
    images = torch.zeros(_IMAGES, 3, model.image_size, model.image_size, device=device)
    try:
        with _RandomOperations() as operations, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = tried(images)
            fits = isinstance(logits, Tensor) and tuple(logits.shape) == (_IMAGES, num_classes)
            if fits:
                logits.float().sum().backward()
    except Exception as error:
        if device.type == "meta":
            raise
        reason = " ".join(str(error).split())[:160]
        _refuse(model, f"it does not take images of {model.image_size} pixels ({type(error).__name__}: {reason})")
    if not fits:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        _refuse(model, f"while training its output is {shown}, not one row of class scores for each image")
    if operations.found:
        drawn = ", ".join(sorted(operations.found))
        _refuse(
            model,
            f"it draws random numbers from a global generator while training ({drawn}), as dropout does, so that "
            "the number of workers and devices, or a restart, would change its results",
        )  # fmt: skip
    for name, module in counted.items():
        if any(rows != _IMAGES for rows in module.rows):
            raise ConfigError(
                "recipe.drop_path",
                f"{name} of {model.name!r} drops parts of an image, not whole samples, which no counter decides",
                ["recipe.drop_path=0"],
            )
    unused = tuple(name for name, p in tried.named_parameters() if p.requires_grad and p.grad is None)
    return TriedModel({name: len(module.rows) for name, module in counted.items()}, unused)


def _refuse(model: ModelConfig, reason: str) -> None:
    raise ConfigError("model.name", f"{model.name!r} cannot be trained here: {reason}; other models of timm's can")


def batch_norms(network: nn.Module) -> list[str]:
    """The names of the modules of batch normalisation."""
    return [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]


def require_whole_batches(network: nn.Module, share: int, device_batch: int | None, checkpointing: bool) -> None:
    """Raise ConfigError where batch normalisation would see parts of a step's batch, or see it twice.

    `share` is this process's part of the global batch; across processes the statistics are synchronised.
    """
    named = batch_norms(network)
    if named and device_batch not in (None, share):
        raise ConfigError(
            "device_batch",
            f"got {device_batch}, and batch normalisation ({named[0]} and {len(named) - 1} more) has to see the whole "
            "batch of a step: gradient accumulation would change the experiment",
            [f"device_batch={share}", "device_batch=null"],
        )
    if named and checkpointing:
        raise ConfigError(
            "model.grad_checkpointing",
            f"batch normalisation ({named[0]} and {len(named) - 1} more) would see every batch twice",
            ["model.grad_checkpointing=false"],
        )
