"""From uint8 crops to the model's input: flip, policy, normalise, erase."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitlab.config import AugmentConfig, DatasetConfig
from vitlab.data.augment.erasing import erase_boxes, fill_with_noise
from vitlab.data.augment.operations import build_operations
from vitlab.data.augment.policies import Plan, plan_auto_augment, plan_color_jitter, plan_rand_augment
from vitlab.data.transfer import to_device
from vitlab.draws import Draws

CACHED_PIXELS = 2**16
"""On a CPU, operations take this many pixels at a time: what they work on then stays in the cache."""


class Augment:
    """One condition of the study, as a function of images and draws.

    The order is timm's and DeiT's: flip, AutoAugment or RandAugment, colour jitter, normalise, erase.
    """

    def __init__(self, augment: AugmentConfig, dataset: DatasetConfig) -> None:
        self.config, self.hflip = augment, dataset.hflip
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (dataset.mean, dataset.std))
        red, green, blue = (min(255, round(255 * m)) for m in dataset.mean)
        self.operations = build_operations((red, green, blue), augment.interpolation)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 images (B, 3, S, S) on any device → normalised float32 (B, 3, S, S)."""
        output = self.normalise(self.pixels(images, draws))
        if self.config.erase:
            boxes = erase_boxes(self.config.erase, images.shape[2], images.shape[3], draws)
            fill_with_noise(output, boxes, draws)
        return output

    def pixels(self, images: Tensor, draws: Draws) -> Tensor:
        """The part that works on grey levels: uint8 in, uint8 out."""
        images = images.clone()
        if self.hflip:
            rows = to_device(np.flatnonzero(draws.uniform("flip")[:, 0] < self.hflip), images.device)
            images.index_copy_(0, rows, images[rows].flip(3))
        if self.config.auto_augment == "original":
            self.carry_out(plan_auto_augment(draws), images)
        elif self.config.auto_augment:
            self.carry_out(plan_rand_augment(self.config.auto_augment, draws), images)
        if self.config.color_jitter:
            self.carry_out(plan_color_jitter(self.config.color_jitter, draws), images)
        return images

    def carry_out(self, plan: Plan, images: Tensor) -> None:
        """Apply a plan to the images in place; the samples that share an operation go through it together."""
        groups = plan.groups()
        if not groups:
            return
        rows = to_device(np.concatenate([rows for _, rows, _ in groups]), images.device)
        values = to_device(np.concatenate([v for _, _, v in groups]).astype(np.float32), images.device)
        pixels = images.shape[2] * images.shape[3]
        at_once = max(1, CACHED_PIXELS // pixels) if images.device.type == "cpu" else len(images)
        sizes = [len(rows) for _, rows, _ in groups]
        for (name, _, _), group, value in zip(groups, rows.split(sizes), values.split(sizes), strict=True):
            for part, parameter in zip(group.split(at_once), value.split(at_once), strict=True):
                images.index_copy_(0, part, self.operations[name](images[part], parameter))

    def normalise(self, images: Tensor) -> Tensor:
        """Grey levels 0 to 255 → (value - mean) / std in float32."""
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return images.float().sub_(self.mean).div_(self.std)
