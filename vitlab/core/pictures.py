"""Pictures that vitlab makes say so, and are known again: nobody else's picture is overwritten."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""Endings of pictures that can say who made them."""
_SOFTWARE = 0x0131
"""The EXIF tag that names a picture's maker."""
_MAKER = "vitlab"


def maker() -> Image.Exif:
    """What a picture is saved with, so that it is known again."""
    exif = Image.Exif()
    exif[_SOFTWARE] = _MAKER
    return exif


def made_by_us(file: Path) -> bool:
    """Whether a file is a picture that was saved with `maker()`."""
    try:
        with Image.open(file) as image:
            return image.getexif().get(_SOFTWARE) == _MAKER
    except (OSError, SyntaxError, ValueError):
        return False
