"""Mixup, cutmix and label smoothing, within fixed groups of samples.

A group of `mix_group` consecutive samples of the global order shares one lambda, and the first sample is mixed with the
last, the second with the last but one, and so on, as timm's Mixup does with a whole batch (mode "batch"). The groups do
not depend on how a batch is split over devices.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from vitlab.config import AugmentConfig
from vitlab.core.device import to_device
from vitlab.core.random import Draws


def mix(
    augment: AugmentConfig, images: Tensor, labels: Tensor, *, num_classes: int, draws_of_groups: Draws
) -> tuple[Tensor, Tensor]:
    """Mix float images (B, 3, S, S) and turn labels (B,) into what the cross-entropy takes.

    Returns (images, targets): targets are (B, num_classes) float32 distributions where mixing or smoothing is on,
    else the labels themselves. `draws_of_groups` are of the B / mix_group groups. Raises ValueError where B is no
    multiple of the group, or the group is odd. Mixup: Zhang et al., ICLR 2018; cutmix: Yun et al., ICCV 2019.
    """
    if not augment.mixes:
        return images, smooth(labels, num_classes, augment.smoothing) if augment.smoothing else labels
    size, count = augment.mix_group, len(images) // augment.mix_group
    if count * size != len(images) or size % 2 or count != len(draws_of_groups):
        raise ValueError(
            f"augment.mix_group: {len(images)} samples do not make {len(draws_of_groups)} groups of {size}; "
            "give an even divisor of the batch"
        )
    lam, boxes, cuts = draw_mixing(augment, images.shape[2], images.shape[3], draws_of_groups)
    table = to_device(np.column_stack([lam, cuts, boxes]).astype(np.float32), images.device)
    share, cut, top, bottom, left, right = table.T.view(6, -1, 1, 1, 1, 1)

    weight = share  # of a sample in its own pixels: lambda everywhere (mixup), or 0 in the box and 1 around it (cutmix)
    if cuts.any():
        y = torch.arange(images.shape[2], device=images.device).view(1, 1, 1, -1, 1)
        x = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, 1, -1)
        outside = (y < top) | (y >= bottom) | (x < left) | (x >= right)
        weight = torch.where(cut > 0, outside.float(), share)  # (G, 1, 1, S, S)
    grouped = images.reshape(count, size, *images.shape[1:])
    mixed = torch.lerp(grouped.flip(1), grouped, weight)

    targets = smooth(labels, num_classes, augment.smoothing).view(count, size, num_classes)
    targets = torch.lerp(targets.flip(1), targets, share.view(-1, 1, 1))
    return mixed.view_as(images), targets.view(-1, num_classes)


def draw_mixing(
    augment: AugmentConfig, height: int, width: int, draws: Draws
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of G groups: lambda (G,) as applied, the cutmix box (G, 4) of top, bottom, left, right, and whether it
    is cutmix (G,) bool. Lambda is 1 where the group is left alone.

    The box is that of the timm that DeiT was trained with (0.3.2): half of its side, rounded down, to either side of
    its centre; lambda is then what the clipped box leaves.
    """
    uniform = draws.uniform("mix", 5)
    cuts = (
        uniform[:, 1] < augment.mixup_switch_prob
        if augment.mixup and augment.cutmix
        else np.full(len(draws), augment.cutmix > 0)
    )
    alpha = np.where(cuts, augment.cutmix or 1.0, augment.mixup or 1.0)
    lam = betaincinv(alpha, alpha, uniform[:, 2])
    lam[uniform[:, 0] >= augment.mixup_prob] = 1.0

    side = np.sqrt(1 - lam)
    cut_height, cut_width = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y, x = np.floor(uniform[:, 3] * height).astype(np.int64), np.floor(uniform[:, 4] * width).astype(np.int64)
    top, bottom = np.clip(y - cut_height // 2, 0, height), np.clip(y + cut_height // 2, 0, height)
    left, right = np.clip(x - cut_width // 2, 0, width), np.clip(x + cut_width // 2, 0, width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return np.where(cuts, kept, lam), np.stack([top, bottom, left, right], 1), cuts


def smooth(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """One-hot distributions (B, num_classes) with `smoothing` spread over all classes (Szegedy et al., CVPR 2016)."""
    one_hot = (labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device)).float()
    return one_hot * (1 - smoothing) + smoothing / num_classes
