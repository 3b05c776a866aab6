"""In which order an epoch visits the images: a function of the seed and the epoch, whatever the hardware."""

from __future__ import annotations

import numpy as np

from vitlab.core.random import permutation

_ROUND = 256
"""DeiT's repeated-augmentation sampler takes a multiple of so many samples per epoch."""


def epoch_order(num_images: int, seed: int, epoch: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Which image each sample of an epoch is, and which copy of it: two (N,) int64 arrays.

    With `repeats` k > 1, every image of the shuffled order stands k times in a row and the first N samples are
    taken: an epoch then sees about 1/k of the images k times each, another part in every epoch, on one device as on
    many (repeated augmentation: Hoffer et al., CVPR 2020; Berman et al., 2019; DeiT's RASampler).
    """
    order = permutation(seed, "order", epoch, num_images)
    if repeats == 1:
        return order, np.zeros(num_images, dtype=np.int64)
    length = epoch_length(num_images, repeats)
    place = np.arange(length)
    return order[place // repeats], place % repeats


def epoch_length(num_images: int, repeats: int) -> int:
    """Samples of an epoch before the last incomplete batch is dropped."""
    return num_images // _ROUND * _ROUND if repeats > 1 and num_images >= _ROUND else num_images
