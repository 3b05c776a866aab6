"""Image files to pixels, as Pillow's `convert("RGB")` gives them, by a faster road where there is one."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image


class BadImageError(ValueError):
    """A file that is no whole image; the message names it."""


def decode(file: Path) -> np.ndarray:
    """The pixels of an image file, (H, W, 3) uint8; EXIF rotation is not applied, as in every ImageFolder.

    Raises BadImageError for a file that is truncated, empty or no image.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadImageError(f"{file}: cannot be read ({error.strerror})") from error
    if content[:2] == b"\xff\xd8":
        try:
            if simplejpeg.decode_jpeg_header(content, strict=True)[2] in ("YCbCr", "Gray"):
                return simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, strict=True)
        except ValueError:
            pass  # truncated or unusual: Pillow decides, and words the error
    return _decode_with_pillow(file)


def _decode_with_pillow(file: Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # palettes with transparency, odd EXIF: the pixels are what they are
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImageError(f"{file}: {reason}") from error


def resize_box(image: np.ndarray, box: np.ndarray, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """The part `box` (top, left, height, width) of `image` (H, W, 3), antialiased to `size`: uint8 (3, h, w).

    The crop is copied first: torch's SIMD path needs contiguous pixels and is four times slower without.
    Where the box reaches outside the image, that part is black.
    """
    top, left, height, width = (int(v) for v in box)
    pads = (max(0, -top), max(0, top + height - image.shape[0])), (max(0, -left), max(0, left + width - image.shape[1]))
    if pads != ((0, 0), (0, 0)):
        image = np.pad(image, (*pads, (0, 0)))
        top, left = top + pads[0][0], left + pads[1][0]
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
    crop = torch.from_numpy(crop if crop.flags.writeable else crop.copy())  # Pillow's arrays are read-only
    pixels = crop.permute(2, 0, 1).unsqueeze(0)  # (1, 3, h, w), channels last in memory
    if (height, width) == size:
        return pixels[0]
    return F.interpolate(pixels, size, mode=interpolation, antialias=True, align_corners=False)[0]


def resize_and_centre(image: np.ndarray, size: int, keep: float, interpolation: str = "bicubic") -> torch.Tensor:
    """Resize the shorter side to `size / keep`, then the central square: uint8 (3, size, size)."""
    height, width = image.shape[:2]
    shorter = int(size / keep)
    wide = height <= width
    target = (shorter, int(shorter * width / height)) if wide else (int(shorter * height / width), shorter)
    resized = resize_box(image, np.array([0, 0, height, width]), target, interpolation)
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return resized[:, top : top + size, left : left + size]
