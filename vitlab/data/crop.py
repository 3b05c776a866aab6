"""How an image becomes a square input: which part of it is used, by counters, and the one resizer of all data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitlab.config import DatasetConfig
from vitlab.core.device import to_device
from vitlab.core.random import Draws

TRIES = 10
"""Boxes tried before falling back to the centre (torchvision's RandomResizedCrop)."""


def random_resized_boxes(
    sizes: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> np.ndarray:
    """Random boxes (B, 4) int64 of top, left, height, width inside images of `sizes` (B, 2) height, width.

    Area uniform in `scale` of the image's, log aspect ratio uniform in `ratio`; the first of ten tries that fits,
    else the largest centred box within `ratio` (Szegedy et al., CVPR 2015; torchvision's RandomResizedCrop).
    """
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)  # (B, 1)
    numbers = draws.uniform("crop", 4 * TRIES).reshape(len(sizes), 4, TRIES)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[:, 0])
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * numbers[:, 1])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))  # (B, TRIES)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = np.where(fits.any(1), fits.argmax(1), 0)
    rows = np.arange(len(sizes))
    h, w = h[rows, first], w[rows, first]
    top = np.floor(numbers[rows, 2, first] * (height[:, 0] - h + 1))
    left = np.floor(numbers[rows, 3, first] * (width[:, 0] - w + 1))
    boxes = np.stack([top, left, h, w], 1).astype(np.int64)
    missed = ~fits.any(1)
    boxes[missed] = _central_boxes(sizes[missed], ratio)
    return boxes


def _central_boxes(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    height, width = sizes[:, 0], sizes[:, 1]
    aspect = width / height
    h = np.where(aspect < ratio[0], np.rint(width / ratio[0]), height)
    w = np.where(aspect > ratio[1], np.rint(height * ratio[1]), width)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], 1).astype(np.int64)


def padded_boxes(sizes: np.ndarray, pad: int, draws: Draws) -> np.ndarray:
    """Boxes (B, 4) of an image's own size, shifted by up to `pad` pixels each way; they may reach outside it."""
    shift = draws.integers("crop", 2 * pad + 1, 2) - pad
    return np.concatenate([shift, sizes], 1).astype(np.int64)


def whole_boxes(sizes: np.ndarray) -> np.ndarray:
    """Boxes (B, 4) that hold the whole image."""
    return np.concatenate([np.zeros_like(sizes), sizes], 1).astype(np.int64)


def central_square_boxes(sizes: np.ndarray, keep: float) -> np.ndarray:
    """Boxes (B, 4) float64 of the central square whose side is `keep` of the shorter side.

    Resize(size / keep) then CenterCrop(size) of torchvision sees the same square, up to a pixel of rounding.
    """
    side = sizes.min(1) * keep
    return np.stack([(sizes[:, 0] - side) / 2, (sizes[:, 1] - side) / 2, side, side], 1)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5 (Pillow's BICUBIC)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


KERNELS = {"bilinear": (lambda x: (1 - x.abs()).clamp_min(0), 1.0), "bicubic": (_cubic, 2.0)}
"""Interpolation → (weight at a distance in source pixels, support in source pixels)."""


def resampling_weights(
    start: np.ndarray,
    length: np.ndarray,
    source: int,
    size: int,
    interpolation: str,
    device: torch.device,
    beyond: bool,
) -> Tensor:
    """Weights (B, size, source) that resample `length` source pixels from `start` (both (B,)) to `size`.

    Pillow's semantics: the kernel widens with the reduction (antialiasing), pixel centres are at halves, weights sum
    to 1, and only pixels inside the box count (crop, then resize); with `beyond`, the image's other pixels count too
    (resize, then crop). Where the box reaches outside the image, that part counts as 0. Float64, rounded to 22 bits
    as Pillow's are: sums of weighted levels are then exact, in whatever order a device adds them.
    """
    kernel, support = KERNELS[interpolation]
    pad = max(0, int(np.ceil(max(-start.min(), (start + length - source).max())))) if len(start) else 0
    begin, extent = to_device(np.stack([start, length]).astype(_precise(device)), device).view(2, -1, 1, 1)
    scale = extent / size
    widen = scale.clamp_min(1.0)
    centre = begin + (torch.arange(size, device=device).view(1, -1, 1) + 0.5) * scale
    pixel = torch.arange(-pad, source + pad, device=device).view(1, 1, -1)
    reach = (pixel + 0.5 - centre) / widen
    weights = torch.where(reach.abs() < support, kernel(reach), 0.0)
    if not beyond:
        weights = torch.where((pixel + 1 > begin) & (pixel < begin + extent), weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights[..., pad : pad + source].mul(2.0**22).round_().mul_(2.0**-22)


def resize_crops(
    images: Tensor | Sequence[np.ndarray], boxes: np.ndarray, size: int | tuple[int, int], interpolation: str, *,
    beyond: bool = False, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Crop uint8 images to `boxes` (B, 4) of top, left, height, width and resize, antialiased, to `size` (a side, or
    height and width): (B, C, h, w). Where a box reaches outside its image, that part is black.

    `images` (B, C, H, W) of one size are resized together, where they are: Pillow's `crop(box).resize(size)` to the
    bit, or with `beyond` its `resize(size, box=box)`. (Pillow 13 goes vertically first where that is less work.) A
    sequence of images (H, W, C) of any sizes is resized one by one on the CPU by torch's SIMD kernels, which are
    faster there and within one level of Pillow's; `out` is where these are written, of the shape of the result. The
    boxes are the host's: nothing is read back from a device.
    """
    shape = (size, size) if isinstance(size, int) else size
    if isinstance(images, Tensor):
        assert out is None, "only for images of any sizes"
        return _resize_together(images, boxes, shape, interpolation, beyond)
    assert not beyond, "only for images of one size"
    squares = [_resize_one(image, box, shape, interpolation) for image, box in zip(images, boxes, strict=True)]
    return torch.stack(squares, out=out)


def _resize_together(
    images: Tensor, boxes: np.ndarray, size: tuple[int, int], interpolation: str, beyond: bool
) -> Tensor:
    """Separable: horizontal first, rounded to uint8 between the passes."""
    top, left, height, width = np.asarray(boxes, dtype=np.float64).T
    device = images.device
    across = resampling_weights(left, width, images.shape[-1], size[1], interpolation, device, beyond)  # (B, w, W)
    down = resampling_weights(top, height, images.shape[-2], size[0], interpolation, device, beyond)  # (B, h, H)
    rows = _to_levels(images.to(across.dtype) @ across.mT.unsqueeze(1))  # (B, C, H, w)
    return _to_levels(down.unsqueeze(1) @ rows).to(torch.uint8)


def _precise(device: torch.device) -> type:
    return np.float32 if device.type == "mps" else np.float64  # Apple's GPUs have no more


def _to_levels(values: Tensor) -> Tensor:
    """The nearest grey level, halves upwards (Pillow's rounding), in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _resize_one(image: np.ndarray, box: np.ndarray, size: tuple[int, int], interpolation: str) -> Tensor:
    """The part `box` of `image` (H, W, C): uint8 (C, h, w).

    The crop is copied first: torch's SIMD path needs contiguous pixels and is four times slower without.
    """
    top, left, height, width = (int(v) for v in box)
    pads = (max(0, -top), max(0, top + height - image.shape[0])), (max(0, -left), max(0, left + width - image.shape[1]))
    if pads != ((0, 0), (0, 0)):
        image = np.pad(image, (*pads, (0, 0)))
        top, left = top + pads[0][0], left + pads[1][0]
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
    crop = torch.from_numpy(crop if crop.flags.writeable else crop.copy())  # Pillow's arrays are read-only
    pixels = crop.permute(2, 0, 1).unsqueeze(0)  # (1, C, h, w), channels last in memory
    if (height, width) == size:
        return pixels[0]
    return F.interpolate(pixels, size, mode=interpolation, antialias=True, align_corners=False)[0]


def central_squares(
    images: Tensor | Sequence[np.ndarray], size: int, keep: float, interpolation: str = "bicubic"
) -> Tensor:
    """Images as they are evaluated, (B, C, size, size): the shorter side resized to `size / keep`, then the centre.

    Of images of one size, (B, C, H, W), only the square is computed (`central_square_boxes`); each of a sequence is
    resized whole and cut, as torchvision's Resize and CenterCrop do.
    """
    if isinstance(images, Tensor):
        boxes = central_square_boxes(np.tile(images.shape[2:], (len(images), 1)), keep)
        return resize_crops(images, boxes, size, interpolation, beyond=True)
    return torch.stack([_resize_and_centre(image, size, keep, interpolation) for image in images])


def _resize_and_centre(image: np.ndarray, size: int, keep: float, interpolation: str) -> Tensor:
    height, width = image.shape[:2]
    shorter = int(size / keep)
    wide = height <= width
    target = (shorter, int(shorter * width / height)) if wide else (int(shorter * height / width), shorter)
    resized = _resize_one(image, np.array([0, 0, height, width]), target, interpolation)
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return resized[:, top : top + size, left : left + size]


@dataclass(frozen=True)
class Cropping:
    """How an image becomes a square of `image_size` pixels; `seed` None: as for evaluation."""

    dataset: DatasetConfig
    image_size: int
    interpolation: str
    seed: int | None

    def boxes(self, sizes: np.ndarray, epoch: int, index: np.ndarray, repetition: np.ndarray) -> np.ndarray:
        """The part of each image that is used: (B, 4) top, left, height, width, for `sizes` (B, 2)."""
        if self.seed is None:
            return central_square_boxes(sizes, self.dataset.eval_crop)
        draws = Draws(self.seed, epoch, index, repetition)
        if self.dataset.train_crop == "random_resized":
            return random_resized_boxes(sizes, self.dataset.crop_scale, self.dataset.crop_ratio, draws)
        if self.dataset.train_crop == "pad":
            return padded_boxes(sizes, self.dataset.pad, draws)
        return whole_boxes(sizes)

    def squares(
        self, images: Tensor | Sequence[np.ndarray], epoch: int, index: np.ndarray, repetition: np.ndarray,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The squares (B, C, S, S) of at least one image, given as `resize_crops` takes them, and `out`; for evaluation
        they are not written there."""
        if self.seed is None:
            dataset = self.dataset
            return central_squares(images, self.image_size, dataset.eval_crop, dataset.eval_interpolation)
        sizes = [images.shape[2:]] * len(images) if isinstance(images, Tensor) else [i.shape[:2] for i in images]
        boxes = self.boxes(np.array(sizes), epoch, index, repetition)
        return resize_crops(images, boxes, self.image_size, self.interpolation, out=out)
