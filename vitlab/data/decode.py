"""Image files to pixels, as Pillow's `convert("RGB")` gives them, by a faster decoder where it gives the same.

Grey images of more than 8 bits are scaled to 8: Pillow's own conversion clips them to white.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from PIL import Image

from vitlab.config import DatasetConfig
from vitlab.core.errors import ConfigError
from vitlab.data.sources.containers import BadImageError

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is to be turned; 1: not at all."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""


@dataclass(frozen=True)
class Reading:
    """How the values of a file become pixels, where there is more than one way."""

    grey16: Literal["range", "minmax"] = "range"
    """`range`: 16-bit grey (12-bit in TIFF) by the range of its format, 0 to 65535 (4095); grey of a kind whose range
    no format states (32-bit, signed, float) is refused. `minmax`: each image of any of these kinds by its own smallest
    and largest value."""
    upright: bool = False
    """Turn and mirror a picture as its EXIF orientation says."""


AS_STORED = Reading()


def reading_of(dataset: DatasetConfig) -> Reading:
    """How a data set's files are read: `dataset.grey16` and `dataset.exif`."""
    return Reading(dataset.grey16, dataset.exif == "apply")


def picture_format(file: Path, key: str) -> str:
    """The format of a picture to be written, by its name. Raises ConfigError naming `key` for any other name."""
    name = Image.registered_extensions().get(file.suffix.lower())
    if name not in Image.SAVE:
        raise ConfigError(key, f"{str(file)!r} is no picture's name; end it in .png")
    return name


def decode(file: Path, reading: Reading = AS_STORED) -> np.ndarray:
    """The pixels of an image file, (H, W, 3) uint8.

    Without `reading.upright` an EXIF rotation is not applied, as in every ImageFolder (Pillow itself applies that of a
    TIFF). Raises BadImageError for a file that is truncated, empty, no image, or of a grey that `reading` refuses.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadImageError(f"{file}: cannot be read ({error.strerror})") from error
    return decode_bytes(content, str(file), reading)


def decode_bytes(content: bytes, name: str, reading: Reading = AS_STORED) -> np.ndarray:
    """As `decode`, of a file's bytes; `name` is what to call it in an error."""
    if content[:2] == b"\xff\xd8":
        try:
            if simplejpeg.decode_jpeg_header(content, strict=True)[2] in ("YCbCr", "Gray"):
                pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, strict=True)
                return _turned(pixels, _orientation_of(content)) if reading.upright else pixels
        except ValueError:
            pass  # truncated or unusual: Pillow decides, and words the error
    return _decode_with_pillow(content, name, reading)


def _decode_with_pillow(content: bytes, name: str, reading: Reading) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # palettes with transparency, odd EXIF: the pixels are what they are
            with Image.open(io.BytesIO(content)) as image:
                pixels = _levels(image, name, reading) if is_deep(image.mode) else np.asarray(image.convert("RGB"))
                return _turned(pixels, orientation(image)) if reading.upright else pixels
    except BadImageError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImageError(f"{name}: {reason}") from error


def is_deep(mode: str) -> bool:
    """Whether one of Pillow's modes is grey with more than 8 bits: I;16, I;16B, I (32-bit), F (float)."""
    return mode == "F" or mode.startswith("I")


def grey_kind(image: Image.Image) -> tuple[str, int | None]:
    """What an opened image of a deep mode holds, and its white by the format's range; None where no format says."""
    tags = getattr(image, "tag_v2", {})
    bits, signed = int(_first(tags.get(_BITS, 16))), int(_first(tags.get(_SAMPLE_FORMAT, 1))) == 2
    if image.mode == "F":
        return "32-bit float grey", None
    if image.mode == "I" and not (image.format in ("PNG", "PPM") or (tags and bits <= 16 and not signed)):
        return (f"signed {bits}-bit grey" if tags and signed else "32-bit grey"), None
    return f"{bits}-bit grey", (1 << bits) - 1


def _levels(image: Image.Image, name: str, reading: Reading) -> np.ndarray:
    """A deep grey image in 256 levels, (H, W, 3) uint8."""
    kind, white = grey_kind(image)
    tags = getattr(image, "tag_v2", {})
    unsigned, inverted = _first(tags.get(_SAMPLE_FORMAT, 2)) == 1, tags.get(_PHOTOMETRIC) == 0
    values = np.asarray(image)
    if values.dtype == np.int32 and white is None and unsigned:
        values = values.view(np.uint32)  # Pillow has no unsigned 32 bits
    values = values.astype(np.float64)
    if reading.grey16 == "minmax":
        finite = values[np.isfinite(values)]
        if not len(finite):
            raise BadImageError(f"{name}: {kind} without a single finite value")
        low, high = finite.min(), finite.max()
        values = np.where(np.isfinite(values), values, low)
    elif white is None:
        raise BadImageError(
            f"{name}: {kind} (Pillow's mode {image.mode}), and no format says which value is white; "
            "dataset.grey16=minmax scales every image of more than 8 bits from its own smallest to its largest value"
        )
    else:
        low, high = 0, white
    levels = np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
    return np.repeat((255 - levels if inverted else levels)[..., None], 3, axis=2)


def orientation(image: Image.Image, *, header_only: bool = False) -> int:
    """How an opened image is to be turned, 1 to 8; 1 (not at all) where its EXIF cannot be read.

    Of a TIFF it is 1 once the pixels are loaded, which turns them. `header_only`: a PNG's EXIF behind its pixels is
    not looked for, which would decode them.
    """
    try:
        exif = Image.Image.getexif(image) if header_only else image.getexif()
        return int(exif.get(ORIENTATION, 1))
    except Exception:  # whatever a damaged EXIF block brings about in its parser, the pixels are whole
        return 1


def _orientation_of(content: bytes) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                return orientation(image)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return 1


def _turned(pixels: np.ndarray, how: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).transpose(_UPRIGHT[how])) if how in _UPRIGHT else pixels


def _first(value: object) -> Any:
    return value[0] if isinstance(value, tuple) else value
