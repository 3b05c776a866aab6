"""From uint8 crops to the model's input: flip, policy, normalise, erase."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitlab.config import AugmentConfig, DatasetConfig
from vitlab.data.augment.noise import counter_normal
from vitlab.data.augment.operations import build_operations
from vitlab.data.augment.policies import Plan, plan_auto_augment, plan_color_jitter, plan_rand_augment
from vitlab.draws import Draws

ERASE_AREA = (0.02, 1 / 3)
ERASE_ASPECT = (0.3, 1 / 0.3)
ERASE_TRIES = 10


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
        return self.erase(self.normalise(self.pixels(images, draws)), draws)

    def pixels(self, images: Tensor, draws: Draws) -> Tensor:
        """The part that works on grey levels: uint8 in, uint8 out."""
        if self.hflip:
            flipped = _to_device(draws.uniform("flip")[:, 0] < self.hflip, images)
            images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
        if self.config.auto_augment == "original":
            images = self.apply(images, plan_auto_augment(draws))
        elif self.config.auto_augment:
            images = self.apply(images, plan_rand_augment(self.config.auto_augment, draws))
        if self.config.color_jitter:
            images = self.apply(images, plan_color_jitter(self.config.color_jitter, draws))
        return images

    def apply(self, images: Tensor, plan: Plan) -> Tensor:
        """Carry out a plan, step by step; the samples that share an operation go through it together."""
        images = images.clone()
        for names, values in zip(plan.names.T, plan.values.T, strict=True):
            for name in sorted(set(names) - {""}):
                rows = np.flatnonzero(names == name)
                at = _to_device(rows, images)
                changed = self.operations[name](images[at], _to_device(values[rows].astype(np.float32), images))
                images.index_copy_(0, at, changed)
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Grey levels 0 to 255 → (value - mean) / std in float32."""
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return (images.float() - self.mean) / self.std

    def erase(self, images: Tensor, draws: Draws) -> Tensor:
        """Random erasing (Zhong et al., AAAI 2020) of normalised images, with per-pixel noise: timm's `pixel` mode."""
        if not self.config.erase:
            return images
        boxes = erase_boxes(self.config.erase, images.shape[2], images.shape[3], draws)
        rows = np.flatnonzero(boxes[:, 2] > 0)
        if not len(rows):
            return images
        top, left, height, width = _to_device(boxes[rows], images).T.view(4, -1, 1, 1, 1)
        y = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
        x = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        keys = _to_device(draws.select(rows).bits("erase_noise", 1)[:, 0].view(np.int64), images)
        noise = counter_normal(keys, images.shape[1:])
        at = _to_device(rows, images)
        return images.index_copy(0, at, torch.where(inside, noise, images[at]))


def erase_boxes(probability: float, height: int, width: int, draws: Draws) -> np.ndarray:
    """Boxes (B, 4) int64 of top, left, height, width; height 0 where nothing is erased (timm's RandomErasing)."""
    numbers = draws.uniform("erase_box", 4 * ERASE_TRIES).reshape(len(draws), 4, ERASE_TRIES)
    area = height * width * (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * numbers[:, 0])
    low, high = (math.log(v) for v in ERASE_ASPECT)
    aspect = np.exp(low + (high - low) * numbers[:, 1])
    h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    rows, first = np.arange(len(draws)), fits.argmax(1)
    h, w = h[rows, first], w[rows, first]
    top = np.floor(numbers[rows, 2, first] * (height - h + 1))
    left = np.floor(numbers[rows, 3, first] * (width - w + 1))
    boxes = np.stack([top, left, h, w], 1).astype(np.int64)
    boxes[~fits.any(1) | (draws.uniform("erase")[:, 0] >= probability)] = 0
    return boxes


def _to_device(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device, non_blocking=True)
