"""One optimizer step: augment, forward, backward, update; nothing in it waits for the device.

How many samples a device takes at a time changes speed and memory only: the global batch stays what the recipe says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from vitlab.config import CellConfig, ConfigError
from vitlab.core.device import usable_cores
from vitlab.core.random import Draws
from vitlab.data.augment import Augment, mix
from vitlab.data.loader import Batch
from vitlab.models.trainable import batch_norms
from vitlab.train.distributed import World
from vitlab.train.evaluate import autocast
from vitlab.train.optim import Update, build_optimizer

_CPU_TOKENS = 64 * 197
"""On a CPU larger micro-batches bring no speed: about 64 images of 224 pixels in patches of 16."""


def why_not_compiled(wanted: bool, device: torch.device, on: Sequence[str] = ("cuda",)) -> str | None:
    """Why the step is not compiled here, or None where it is; compiling changes its speed, not the experiment.

    Where it is done, `on` these kinds of device, torch.compile is tried on one line: a missing C compiler, Triton or
    Python header shows there, in a second, and the step then runs as it is written. A small ViT's step on a CPU is
    slower compiled (docs/performance.md).
    """
    if not wanted:
        return "recipe.compile=false"
    if device.type not in on:
        return f"device {device.type}: compiled only on cuda"
    try:
        torch.compile(_one_line)(torch.ones(8, device=device))
    except Exception as error:  # each missing part raises an error of its own kind
        reason = f"torch.compile does not work here, the step runs uncompiled: {first_line(error)}"
        print(reason, flush=True)
        return reason
    return None


def require_tunable(device: torch.device, compiled: bool) -> None:
    """Raise ConfigError where there is nothing to choose from."""
    if device.type == "cuda" or (device.type == "cpu" and compiled):
        return
    if device.type == "cpu":
        raise ConfigError(
            "tune", "on a CPU there is only torch.compile to try, and recipe.compile=false",
            ["recipe.compile=true", "tune=false"],
        )  # fmt: skip
    raise ConfigError("tune", f"there is nothing to try on the device {device.type}", ["tune=false"])


def _one_line(x: Tensor) -> Tensor:
    return x * 2 + 1


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]


@dataclass(frozen=True)
class Speed:
    """How a step is run. What it computes stays: `augment` and `stream` change no bit, the others the rounding."""

    compile: str | None = None
    """The mode of torch.compile for the model; None: it runs as it is written."""
    attention: Literal["default", "cudnn"] = "default"
    """The kernel: PyTorch's own choice (Flash where it can), or cuDNN's."""
    update: bool = False
    """Whether the optimizer's update and the moving average's are compiled (`optim.Update`)."""
    augment: bool = False
    """Whether the operations on images are compiled (`Augment.compiled`)."""
    stream: bool = False
    """Whether images are augmented on a CUDA stream of their own, one step ahead."""

    @property
    def rounding(self) -> str:
        """What of it can change the last bits, as it is recorded and compared: "compile=default attention=cudnn"."""
        parts = [f"compile={self.compile}"] if self.compile else []
        parts += [f"attention={self.attention}"] if self.attention != "default" else []
        return " ".join([*parts, *["update=compiled"] * self.update]) or "as written"


AS_WRITTEN = Speed()
TUNED_KERNELS = "max-autotune-no-cudagraphs"
"""The mode in which PyTorch tries several kernels for each product of matrices."""
GRAPHS = "max-autotune"
"""The mode in which PyTorch records the model's kernels as CUDA graphs."""


def compile_and_replicate(model: nn.Module, mode: str | None, world: World, device: torch.device) -> nn.Module:
    """`model` as the step calls it: compiled in this mode, or None as it is written; replicated over the processes.

    It is compiled for one size of micro-batch: where a smaller one is needed later, PyTorch would compile for any size.
    """
    if mode in (TUNED_KERNELS, GRAPHS):
        from torch._inductor import select_algorithm

        select_algorithm.PRINT_AUTOTUNE = False  # a table on the screen for each product of matrices
    network: nn.Module = model if mode is None else torch.compile(model, mode=mode, dynamic=False)  # pyright: ignore
    if world.size > 1:
        network = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    return network


@dataclass(frozen=True)
class Inputs:
    """A micro-batch as the model takes it: `images` (b, 3, S, S) float32, and `targets` as the cross-entropy does."""

    batch: Batch
    draws: Draws
    images: Tensor
    targets: Tensor

    @staticmethod
    def of(batch: Batch, augment: Augment, cell: CellConfig, epoch: int, num_classes: int) -> Inputs:
        """Augment and mix a micro-batch of `epoch`."""
        draws = Draws(cell.seed, epoch, batch.index, batch.repetition)
        group = cell.augment.mix_group
        groups = Draws(cell.seed, epoch, batch.position[::group] // group)
        images = augment(batch.images, draws)
        images, targets = mix(cell.augment, images, batch.labels, num_classes=num_classes, draws_of_groups=groups)
        return Inputs(batch, draws, images, targets)


def ahead(
    steps: Iterator[list[Batch]], inputs_of: Callable[[Batch], Inputs], stream: torch.cuda.Stream | None
) -> Iterator[list[Inputs]]:
    """The inputs of each step, one step ahead: the device augments the next step's images while this one runs.

    They are queued on `stream`, copies to the device included; without one (not CUDA) on the only queue there is.
    """
    waiting: list[Inputs] | None = None
    waiting_for: Any = None
    while True:
        with torch.cuda.stream(stream) if stream else nullcontext():
            batches = next(steps, None)
            following = None if batches is None else [inputs_of(batch) for batch in batches]
            queued = stream.record_event() if stream else None
        if waiting is not None:
            if stream is not None and waiting_for is not None:
                current = torch.cuda.current_stream()
                current.wait_event(waiting_for)
                for tensor in (t for inputs in waiting for t in (inputs.images, inputs.targets)):
                    tensor.record_stream(current)  # so that its memory is not given to others before the step has run
            yield waiting
        if following is None:
            return
        waiting, waiting_for = following, queued


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer | Update,
    micro_batches: Sequence[Batch | Inputs],
    augment: Augment,
    masks: Any,
    cell: CellConfig,
    epoch: int,
    share: int,
    speed: Speed = AS_WRITTEN,
) -> Tensor:
    """One optimizer step on this process's `share` of the global batch; returns the mean loss, on the device."""
    total = torch.zeros((), device=micro_batches[0].images.device)
    if speed.compile == GRAPHS:
        torch.compiler.cudagraph_mark_step_begin()
    for number, batch in enumerate(micro_batches):
        inputs = batch if isinstance(batch, Inputs) else Inputs.of(batch, augment, cell, epoch, _num_classes(network))
        images = inputs.images
        masks.draw(inputs.draws, images.device)
        last = number == len(micro_batches) - 1
        replicated = isinstance(network, DistributedDataParallel)
        if replicated:
            network.require_backward_grad_sync = last  # one all-reduce a step, not one a micro-batch
        with _attention(speed):  # of the backward pass too, which computes checkpointed blocks again
            with autocast(images.device, cell.recipe.precision):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), inputs.targets) * (len(images) / share)
            loss.backward()
        total += loss.detach()
    if cell.recipe.clip_grad:
        nn.utils.clip_grad_norm_(network.parameters(), cell.recipe.clip_grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


ATTENTION = {"cudnn": SDPBackend.CUDNN_ATTENTION}


@contextmanager
def _attention(speed: Speed) -> Iterator[None]:
    """Inside, attention has the kernel of `speed`, or fails where that cannot compute it.

    What is compiled inside is not kept on the disk by AOTAutograd, whose cache (torch 2.11 to 2.14 at least) does not
    know the kernel from PyTorch's own choice: each would be given the other's graph. Inductor's cache does.
    """
    if speed.attention == "default":
        yield
        return
    from torch._functorch import config

    with sdpa_kernel(ATTENTION[speed.attention]), config.patch(enable_autograd_cache=False):
        yield


def _num_classes(network: nn.Module) -> int:
    inner = getattr(network, "module", network)
    return int(getattr(inner, "_orig_mod", inner).num_classes)  # pyright: ignore[reportArgumentType]


def choose_device_batch(
    model: nn.Module, cell: CellConfig, share: int, device: torch.device, device_share: float = 1.0
) -> int:
    """The largest micro-batch that divides `share`, respects the mixing groups and fits into `device_share` of the
    device's memory, which others share.

    On CUDA it is found by trying a forward and backward pass. Raises ConfigError where not even the smallest fits.
    """
    group = cell.augment.mix_group if cell.augment.mixes else 1
    whole = cell.recipe.train_mode == "train" and bool(batch_norms(model))  # which sees all of the batch at once
    sizes = [share] if whole else [n for n in range(share, 0, -1) if share % n == 0 and n % group == 0]
    if device.type != "cuda":
        if whole:
            return share
        tokens = (cell.model.image_size // (cell.model.patch_size or 16)) ** 2 + 1
        return next((n for n in sizes if n * tokens <= _CPU_TOKENS), sizes[-1])
    return next((n for n in sizes if _fits(model, cell, n, device, device_share)), None) or _refuse(sizes[-1])


def _refuse(smallest: int) -> int:
    raise ConfigError(
        "device_batch",
        f"even {smallest} samples do not fit on the device; use model.grad_checkpointing=true, more "
        "devices, fewer cells on each (study.cells_per_device) or a smaller augment.mix_group",
    )


CONTEXT_BYTES = 700_000_000
"""What each process takes of a GPU's memory for CUDA itself, outside of PyTorch's count: on an H100 500 to 600 MB."""


def memory_of(device: torch.device, device_share: float) -> int:
    """Bytes of a GPU's memory that a process with this share of it may take. Raises ConfigError where none are left."""
    total = torch.cuda.get_device_properties(device).total_memory
    if device_share >= 1:
        return total
    if (own := int(device_share * total) - CONTEXT_BYTES) > 0:
        return own
    raise ConfigError(
        "study.cells_per_device",
        f"{round(1 / device_share)} cells do not fit on a GPU of {total / 1e9:.0f} GB: each takes "
        f"{CONTEXT_BYTES / 1e9:.1f} GB before it has any weights",
    )


def limit_to_share(device: torch.device, device_share: float) -> None:
    """Let this process take no more than its share of a GPU's memory, so that none takes another's; and, to compile,
    of the cores."""
    if device.type == "cuda" and device_share < 1:
        own = memory_of(device, device_share) / memory_of(device, 1)
        torch.cuda.set_per_process_memory_fraction(own, device)
        from torch._inductor import config

        most = config.compile_threads or 1
        config.compile_threads = max(1, min(most, int(usable_cores() * device_share)))


def seconds_of_steps(
    model: nn.Module, cell: CellConfig, sizes: Sequence[int], device: torch.device, rounds: int = 3
) -> list[float]:
    """Seconds of a training pass with its update over so many random images, the best of `rounds`, for each size."""
    optimizer = build_optimizer(model, cell.recipe)
    model.train()
    side, found = cell.model.image_size, []
    for size in sizes:
        images = torch.rand(size, 3, side, side, device=device)
        labels = torch.zeros(size, dtype=torch.int64, device=device)
        best = float("inf")
        for number in range(rounds + 1):
            began = time.perf_counter()
            with autocast(device, cell.recipe.precision):
                loss = F.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                best = min(best, time.perf_counter() - began)
        found.append(best)
    return found


def _fits(model: nn.Module, cell: CellConfig, size: int, device: torch.device, device_share: float) -> bool:
    """Whether a training pass over `size` samples leaves a tenth of this process's share of the memory free."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    model.eval()  # stochastic depth has no masks yet; it needs no memory to speak of
    try:
        images = torch.zeros(size, 3, cell.model.image_size, cell.model.image_size, device=device)
        with autocast(device, cell.recipe.precision):
            loss = F.cross_entropy(model(images).float(), torch.zeros(size, dtype=torch.int64, device=device))
        loss.backward()
        return torch.cuda.max_memory_reserved(device) < 0.9 * memory_of(device, device_share)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
