"""Ways to run the step on a device: tried before training, the fastest kept for all cells that are trained alike.

The step's rounding (torch.compile's mode, the attention kernel, the compiled update) is chosen without augmentation and
kept in `OUTPUT_DIR/tuned`, so that the cells of a study have it in common; how images are augmented changes no bit, and
is chosen for each condition.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitlab.config import AugmentConfig, CellConfig, experiment
from vitlab.config.check import OWN_OPTIMIZERS
from vitlab.core.device import device_name
from vitlab.core.files import locked, make_folder, write_text
from vitlab.core.random import Draws
from vitlab.data.augment import Augment
from vitlab.data.loader import Batch
from vitlab.models.drop_path import DropPathMasks
from vitlab.train.distributed import World, broadcast
from vitlab.train.events import Interrupted, Staged
from vitlab.train.optim import MovingAverage, Update, build_optimizer
from vitlab.train.step import (
    AS_WRITTEN,
    GRAPHS,
    TUNED_KERNELS,
    Inputs,
    Speed,
    ahead,
    compile_and_replicate,
    first_line,
    train_step,
    why_not_compiled,
)

WORTH = 1.01
"""A way is taken where it is at least so many times as fast as the best before it: a trial is not more exact."""
LIMIT = 300.0
"""Seconds after which a trial begins nothing more."""
CHECKED = 512
"""Images on which compiled operations are compared with those that are written."""
Found = dict[str, float | str]
"""What was tried → images per second, or why there is no figure."""
Choosing = Generator[Staged, None, tuple[Speed, Found]]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was chosen, and of what."""

    speed: Speed
    tried: Found
    seconds: float = 0.0
    """Of the trial; 0 where an earlier one was kept."""

    def __str__(self) -> str:
        figures = [f"{way} {rate:,.0f}" for way, rate in self.tried.items() if isinstance(rate, float)]
        for why in dict.fromkeys(why for why in self.tried.values() if isinstance(why, str)):
            figures.append(f"{', '.join(way for way in self.tried if self.tried[way] == why)} {why}")
        took = f"a trial of {self.seconds:.0f} s" if self.seconds else "an earlier trial, kept"
        parts = [self.speed.rounding, *["compiled augmentation"] * self.speed.augment, *["stream"] * self.speed.stream]
        return f"tuned: {', '.join(parts)} ({took}, images/s: {'; '.join(figures)})"


def tune(
    folder: Path,
    model: nn.Module,
    masks: DropPathMasks,
    cell: CellConfig,
    *,
    micro_batch: int,
    parts: int,
    num_classes: int,
    device: torch.device,
    world: World,
    stop: Callable[[], bool],
) -> Generator[Staged, None, Tuned]:
    """The fastest way found to train `cell` with `parts` micro-batches a step on this device.

    Trials are kept in `folder` under a hash of all that they depend on; processes that need the same one wait for it.
    Weights, gradients and random generators are left as they are. Raises Interrupted once `stop()` is true.
    """
    rig = Rig(
        model, masks, cell, micro_batch=micro_batch, parts=parts, num_classes=num_classes, device=device, world=world,
        stop=stop,
    )  # fmt: skip
    about = {
        "device": device_name(device), "torch": torch.__version__, "processes": world.size, "micro_batch": micro_batch,
        "parts": parts, "classes": num_classes, "model": experiment(cell.model), "threads": torch.get_num_threads(),
        "recipe": {k: getattr(cell.recipe, k) for k in ("precision", "optimizer", "clip_grad", "compile", "drop_path")},
        "average": cell.recipe.ema_decay > 0, "checkpointing": cell.model.grad_checkpointing,
    }  # fmt: skip
    began = time.perf_counter()
    found: Tuned | None = None
    if world.is_main:
        try:
            step = yield from _kept(folder, about, rig.choose_rounding, stop)
            condition = about | {"augment": experiment(cell.augment), "rounding": step[0].rounding}
            rest = yield from _kept(folder, condition, lambda: rig.choose_augmentation(step[0]), stop)
            seconds = time.perf_counter() - began if step[2] or rest[2] else 0.0
            found = Tuned(rest[0], step[1] | rest[1], seconds)
        except Interrupted:
            if world.size == 1:
                raise
        finally:
            rig.clear()
    found = broadcast(found)
    if found is None:
        raise Interrupted("before the first step, while ways to run it were tried")
    return found


def compiled_augment(
    augment: Augment, cell: CellConfig, size: int, device: torch.device
) -> tuple[Augment, dict[str, str]]:
    """`augment` with its operations compiled where that gives the same bits on up to CHECKED random images, and the
    operations that stay as they are written → why."""
    index, side = np.arange(min(size, CHECKED)), cell.model.image_size
    generator = torch.Generator(device).manual_seed(0)
    shape = (len(index), 3, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)
    return augment.compiled(images, Draws(0, 0, index, np.zeros_like(index)))


def _kept(
    folder: Path, about: dict[str, Any], trial: Callable[[], Choosing], stop: Callable[[], bool]
) -> Generator[Staged, None, tuple[Speed, Found, bool]]:
    """The outcome of the trial that `about` describes: the one on the disk, or a new one, and whether it is new."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file = make_folder(folder) / f"{digest}.json"
    while True:
        with locked(file.with_suffix(".lock")) as held:
            if held:
                if (kept := _read(file)) is not None:
                    return *kept, False
                speed, tried = yield from trial()
                content = {"speed": dataclasses.asdict(speed), "images_per_second": tried, "about": about}
                write_text(file, json.dumps(content, indent=1, default=str) + "\n")
                return speed, tried, True
        if stop():
            raise Interrupted("before the first step, while another cell tried ways to run it")
        yield Staged("waits for the trial of another cell")


def _read(file: Path) -> tuple[Speed, Found] | None:
    """A kept outcome; None where there is none, or none that this version understands."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Speed(**content["speed"]), content["images_per_second"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Rig:
    """A copy of the model with its optimizer, which takes steps on random images, one way after another."""

    def __init__(
        self, model: nn.Module, masks: DropPathMasks, cell: CellConfig, *, micro_batch: int, parts: int,
        num_classes: int, device: torch.device, world: World, stop: Callable[[], bool] = lambda: False,
        limit: float = LIMIT,
    ) -> None:  # fmt: skip
        self.original, self.cell, self.device, self.world = (model, masks), cell, device, world
        self.size, self.parts, self.num_classes = micro_batch, min(parts, 2), num_classes
        self.accumulates, self.refused = parts > 1, dict[str, str]()
        self.built: tuple[Speed, nn.Module, Update, DropPathMasks] | None = None
        self.stop, self.limit = stop, limit
        self.began = time.perf_counter()  # of a trial, once it has waited for those of others
        self.tried, self.best = dict[str, float | str](), AS_WRITTEN
        on_gpu = device.type == "cuda"
        self.needs_cuda = None if on_gpu else "not tried: needs CUDA"
        why_not = why_not_compiled(cell.recipe.compile, device, on=("cuda", "cpu"))
        self.not_compiled = f"not tried: {why_not}" if why_not else None

    def choose_rounding(self) -> Choosing:
        """As written; compiled; cuDNN's attention; tuned kernels; the compiled update; CUDA graphs. Each is tried
        together with what was best before it."""
        self.tried, self.began, self.best = {}, time.perf_counter(), AS_WRITTEN
        several = "not tried: with several processes" if self.world.size > 1 else None
        optimizer = self.cell.recipe.optimizer
        other = None if optimizer in OWN_OPTIMIZERS else f"not tried: recipe.optimizer={optimizer}"
        yield from self._try("as written", self.best, None)
        for way, change, skip in (
            ("compile=default", {"compile": "default"}, self.not_compiled),
            ("attention=cudnn", {"attention": "cudnn"}, self.needs_cuda),
            (f"compile={TUNED_KERNELS}", {"compile": TUNED_KERNELS}, self.not_compiled or self.needs_cuda),
            ("update=compiled", {"update": True}, self.not_compiled or self.needs_cuda or other),
            (f"compile={GRAPHS}", {"compile": GRAPHS}, self.not_compiled or self.needs_cuda or several),
        ):
            yield from self._better(way, change, skip)
        return self.best, self.tried

    def choose_augmentation(self, step: Speed) -> Choosing:
        """This condition's operations compiled, and on a stream of their own, in a step of this rounding."""
        self.tried, self.refused, self.began, condition = {}, {}, time.perf_counter(), self.cell.augment
        self.best = step
        if self.needs_cuda is None:
            yield from self._try("with augmentation", step, condition)
        skip = self.needs_cuda or self.not_compiled
        yield from self._better("augment=compiled", {"augment": True}, skip, condition)
        self.tried |= {f"operation {name}": f"not compiled: {why}" for name, why in self.refused.items()}
        skip = self.needs_cuda or ("not tried: a step takes several micro-batches" if self.accumulates else None)
        yield from self._better("augment=stream", {"stream": True}, skip, condition)
        return self.best, self.tried

    def _better(
        self, way: str, change: dict[str, Any], skip: str | None, augment: AugmentConfig | None = None
    ) -> Generator[Staged]:
        """Measure the best way with this change, which is the best where it is faster than everything so far."""
        if skip is None and time.perf_counter() - self.began > self.limit:
            skip = f"not tried: the trial had taken {self.limit:.0f} s"
        if skip is not None:
            self.tried[way] = skip
            return
        before = max((v for v in self.tried.values() if isinstance(v, float)), default=0.0)
        speed = dataclasses.replace(self.best, **change)
        yield from self._try(way, speed, augment)
        found = self.tried[way]
        if isinstance(found, float) and found > WORTH * before:
            self.best = speed

    def _try(self, way: str, speed: Speed, augment: AugmentConfig | None) -> Generator[Staged]:
        """Measure one way: its images per second, or the error with which it fails."""
        if self.stop():
            raise Interrupted("before the first step, while ways to run it were tried")
        yield Staged(f"tries {way}")
        try:
            self.tried[way] = self.images_per_second(speed, augment)
        except Exception as error:  # each kernel and backend fails with an error of its own kind
            self.tried[way] = f"failed: {first_line(error)}"
            self.clear()

    def images_per_second(self, speed: Speed, augment: AugmentConfig | None = None) -> float:
        """Of steps on random images, augmented as `augment` says; None: not at all."""
        cell = dataclasses.replace(self.cell, augment=augment or AugmentConfig())
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            return self.size * self.parts / self._seconds(speed, cell)

    def _seconds(self, speed: Speed, cell: CellConfig) -> float:
        network, update, masks = self._build(speed)
        engine = Augment(cell.augment, cell.dataset)
        side, index = cell.model.image_size, np.arange(self.size)
        images = torch.randint(0, 256, (self.size, 3, side, side), dtype=torch.uint8, device=self.device)
        labels = torch.randint(0, self.num_classes, (self.size,), device=self.device)
        batches = [Batch(images, labels, index, np.zeros_like(index), index)] * self.parts
        if speed.augment:
            engine, self.refused = compiled_augment(engine, cell, self.size, self.device)
        stream = torch.cuda.Stream(self.device) if speed.stream else None
        epochs = itertools.count()  # each step of an epoch of its own: other operations, other groups of images

        def inputs_of(batch: Batch) -> Inputs:
            return Inputs.of(batch, engine, cell, next(epochs), self.num_classes)

        steps: Iterator[Any] = itertools.repeat(batches)
        steps = ahead(steps, inputs_of, stream) if stream else steps

        def take(count: int) -> float:
            self._wait()
            began = time.perf_counter()
            for number in range(count):
                update.at(1e-5, number)
                whole = self.size * self.parts
                train_step(network, update, next(steps), engine, masks, cell, number, whole, speed)
            self._wait()
            return (time.perf_counter() - began) / count

        take(3)  # which compiles
        once = take(2)
        return take(min(100, max(3, int(1.5 / once))))

    def _build(self, speed: Speed) -> tuple[nn.Module, Update, DropPathMasks]:
        """The model as `speed` runs it: the one there is, where that does."""
        wanted = Speed(speed.compile, speed.attention, speed.update)
        if self.built is None or wanted != self.built[0]:
            self.clear()
            recipe = self.cell.recipe
            model, masks = copy.deepcopy(self.original)
            model.train(recipe.train_mode == "train")
            network = compile_and_replicate(model, speed.compile, World(), self.device)
            average = MovingAverage(model, recipe.ema_decay, recipe.ema_warmup) if recipe.ema_decay else None
            update = Update(build_optimizer(model, recipe), average, compiled=speed.update)
            self.built = wanted, network, update, masks
        return self.built[1:]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Give back the copy's memory, and forget what was compiled."""
        self.built = None
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
