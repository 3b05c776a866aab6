"""From uint8 crops to the model's input: flip, policy, normalise, erase."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vitlab.config import AugmentConfig, DatasetConfig, parse_policies
from vitlab.core.device import to_device
from vitlab.core.plugins import POLICIES
from vitlab.core.random import Draws
from vitlab.data.augment.erasing import erase_boxes, fill_with_noise
from vitlab.data.augment.operations import Operations, build_operations
from vitlab.data.augment.policies import Plan, Stage, plan_color_jitter, plan_flip

CACHED_PIXELS = 2**17
"""On a CPU, operations take this many pixels at a time: what they work on then stays in the cache."""


class Augment:
    """One condition of the study, as a function of images and draws.

    The order is timm's and DeiT's: flip, AutoAugment or RandAugment, colour jitter, normalise, erase.
    """

    def __init__(self, augment: AugmentConfig, dataset: DatasetConfig) -> None:
        self.config, self.hflip = augment, dataset.hflip
        self.policies = parse_policies(augment.auto_augment)
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (dataset.mean, dataset.std))
        red, green, blue = (min(255, round(255 * m)) for m in dataset.mean)
        self.operations = build_operations((red, green, blue), augment.interpolation)
        self._scale = _scale

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 images (B, 3, S, S) on any device → normalised float32 (B, 3, S, S)."""
        output = self.normalise(self.pixels(images, draws))
        if self.config.erase:
            boxes = erase_boxes(self.config.erase, images.shape[2], images.shape[3], draws)
            fill_with_noise(output, boxes, draws)
        return output

    def pixels(self, images: Tensor, draws: Draws) -> Tensor:
        """The part that works on grey levels: uint8 in, uint8 out."""
        plans: list[Plan] = []  # carried out together, as far as no stage comes between them
        for stage in self.stages(draws):
            if isinstance(stage, Plan):
                plans.append(stage)
            else:
                images = stage(self.carry_out(Plan.one_after_another(plans), images), self.carry_out)
                plans = []
        return self.carry_out(Plan.one_after_another(plans), images)

    def stages(self, draws: Draws) -> Iterator[Plan | Stage]:
        """What happens to every sample's grey levels, in this order."""
        if self.hflip:
            yield plan_flip(self.hflip, draws)
        for name, options in self.policies:
            yield POLICIES[name](options, draws)
        if self.config.color_jitter:
            yield plan_color_jitter(self.config.color_jitter, draws)

    def carry_out(self, plan: Plan, images: Tensor) -> Tensor:
        """The images after all of the plan's steps. In each, they are sorted by operation, and back again."""
        steps = plan.steps()
        if not steps:
            return images
        moves = [steps[0].order]
        for before, after in pairwise(steps):  # from one step's order straight to the next one's
            moves.append(np.argsort(before.order)[after.order])
        moves.append(np.argsort(steps[-1].order))
        moves = to_device(np.stack(moves), images.device)
        values = to_device(np.stack([step.values for step in steps]), images.device)
        at_once = len(images)
        if images.device.type == "cpu":
            at_once = max(1, CACHED_PIXELS // (images.shape[2] * images.shape[3]))
        for step, move, value in zip(steps, moves[:-1], values, strict=True):
            parts = zip(step.names, _reorder(images, move).split(step.sizes), value.split(step.sizes), strict=True)
            images = _join([done for part in parts for done in self._apply(*part, at_once)])
        return _reorder(images, moves[-1])

    def _apply(self, name: str, images: Tensor, values: Tensor, at_once: int) -> list[Tensor]:
        if not name:
            return [images]
        operation = self.operations[name]
        return [operation(*part) for part in zip(images.split(at_once), values.split(at_once), strict=True)]

    def normalise(self, images: Tensor) -> Tensor:
        """Grey levels 0 to 255 → (value - mean) / std in float32."""
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return self._scale(images, self.mean, self.std)

    def compiled(self, images: Tensor, draws: Draws) -> tuple[Augment, dict[str, str]]:
        """This condition with its operations compiled, and those that are not → why.

        Only what gives the same bits on these images as it is written is taken: each operation that they meet runs
        both ways on them. An operation that they do not meet stays as it is written.
        """
        trial, out = copy.copy(self), copy.copy(self)
        kept: dict[str, Operation] = {}
        refused: dict[str, str] = {}

        def both(name: str, written: Operation, fast: Operation) -> Operation:
            def run(*arguments: Tensor) -> Tensor:
                expected = written(*arguments)
                try:
                    found = fast(*arguments)
                    if different := int((found != expected).sum()):
                        refused.setdefault(name, f"{different:,} of {expected.numel():,} values differ")
                except Exception as error:  # what cannot be compiled raises an error of its own kind
                    refused.setdefault(name, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200])
                kept[name] = fast
                return expected

            return run

        trial.operations = _Tried(lambda name: both(name, self.operations[name], _compile(self.operations[name])))
        trial._scale = both("normalise", self._scale, _compile(self._scale))
        trial(images, draws)
        taken = {name: operation for name, operation in kept.items() if name not in refused}
        if "normalise" in taken:
            out._scale = _or_written("normalise", taken.pop("normalise"), self._scale)
        fast = {name: _or_written(name, operation, self.operations[name]) for name, operation in taken.items()}
        out.operations = Operations({**self.operations, **fast})
        return out, refused


Operation = Callable[..., Tensor]


class _Tried(Operations):
    """Operations that are made by `make` when they are first needed."""

    def __init__(self, make: Callable[[str], Operation]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Operation:
        self[name] = self.make(name)
        return self[name]


_EAGER_ROUNDING = ("emulate_precision_casts", "eager_numerics.division_rounding")
"""Options of torch.compile that keep products and sums apart and divide exactly, as PyTorch's own kernels do."""


def _compile(operation: Operation) -> Operation:
    """`operation`, compiled once for any number of images."""
    known = torch._inductor.list_options()
    options: dict[str, str | int | bool | Callable] = {name: True for name in _EAGER_ROUNDING if name in known}
    compiled = torch.compile(operation, options=options)

    def run(images: Tensor, *others: Tensor) -> Tensor:
        for tensor in (images, *others):
            if len(tensor) == len(images):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # the number of images; their size is fixed
        return compiled(images, *others)

    return run


def _or_written(name: str, fast: Operation, written: Operation) -> Operation:
    """`fast`, or `written` from where another number of images cannot be compiled: it gives the same bits."""
    from torch._dynamo.exc import TorchDynamoException  # a second, and only for those who compile

    failed = False

    def run(*arguments: Tensor) -> Tensor:
        nonlocal failed
        if not failed:
            try:
                return fast(*arguments)
            except TorchDynamoException as error:
                failed = True
                why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
                print(f"{name} cannot be compiled any more, and runs as it is written: {why}", flush=True)
        return written(*arguments)

    return run


def _scale(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (images - mean).div_(std)


def _reorder(images: Tensor, order: Tensor) -> Tensor:
    return _wide(images).index_select(0, order).view(torch.uint8).view(-1, *images.shape[1:])


def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat([_wide(part) for part in parts]).view(torch.uint8).view(-1, *parts[0].shape[1:])


def _wide(images: Tensor) -> Tensor:
    """(n, 3, H, W) bytes as (n, …) words of eight where they divide: a GPU moves them several times as fast."""
    flat = images.contiguous().view(len(images), -1)
    return flat.view(torch.int64) if flat.shape[1] % 8 == 0 else flat
