"""Pictures and figures as files: the same bytes for the same figure, and a mark that says who made them.

Letters that matplotlib's own font lacks (Japanese names of classes) are drawn by other fonts.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vitlab.core.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image


OWN = "DejaVu Sans"
"""matplotlib's own font: Latin, Greek, Cyrillic and most signs."""
FURTHER = (
    "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "TakaoPGothic", "VL Gothic",
    "Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei",
    "PingFang SC", "Microsoft YaHei", "SimHei", "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic",
    "Apple SD Gothic Neo", "Arial Unicode MS",
)  # fmt: skip
"""Families that are looked for, Japanese ones first."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""Endings of pictures that can say who made them."""
_SOFTWARE = 0x0131
"""The EXIF tag that names a picture's maker."""
_MAKER = "vitlab"


def save_figure(figure: Figure, stem: Path, dpi: int = 150) -> list[Path]:
    """Write a figure as `stem`.png and `stem`.pdf, byte-identical for the same figure (no dates inside).

    Returns the two files. Raises DiskError.
    """
    fit_fonts(figure)
    about = {"png": {"Software": None}, "pdf": dict.fromkeys(("CreationDate", "Producer", "Creator"))}
    files = []
    for kind, metadata in about.items():
        files.append(stem.with_name(f"{stem.name}.{kind}"))
        with written_whole(files[-1]) as stream, warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+")  # of letters that no font has: `fit_fonts` has said so
            figure.savefig(stream, format=kind, dpi=dpi, metadata=metadata)
    return files


def fit_fonts(figure: Figure) -> None:
    """Give each text of `figure` whose letters matplotlib's own font lacks the installed families that have them.

    Letters that no font has are drawn as boxes, and it is said on stderr, once.
    """
    from matplotlib.text import Text

    texts = [found for found in figure.findobj(Text) if isinstance(found, Text) and not found.get_text().isascii()]
    never: set[str] = set()
    for text in texts:
        lacking = _lacking(text.get_text(), OWN)
        if not lacking:
            continue
        families, left = [OWN], lacking
        for family in _installed(FURTHER):
            still = _lacking(left, family)
            if still != left:
                families, left = [*families, family], still
        text.set_fontfamily(families)
        never |= set(left)
    if never:
        _say("".join(sorted(never)[:8]) + ("…" if len(never) > 8 else ""))


def _lacking(text: Iterable[str], family: str) -> str:
    """The letters of `text` that a font has no glyph for."""
    known = _letters(family)
    return "".join(letter for letter in dict.fromkeys(text) if ord(letter) not in known and not letter.isspace())


@functools.cache
def _letters(family: str) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(family)).get_charmap())


@functools.cache
def _installed(families: tuple[str, ...]) -> tuple[str, ...]:
    from matplotlib import font_manager

    names = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(family for family in families if family in names)


_said: list[str] = []


def _say(letters: str) -> None:
    if _said:
        return
    _said.append(letters)
    import matplotlib

    print(
        f"note: no font that is known here has {letters} for the figures, which show boxes; install one (apt install "
        f"fonts-noto-cjk) and delete {matplotlib.get_cachedir()}, where matplotlib lists the fonts", file=sys.stderr,
    )  # fmt: skip


def maker() -> Image.Exif:
    """The EXIF data that mark a picture as vitlab's."""
    from PIL import Image

    exif = Image.Exif()
    exif[_SOFTWARE] = _MAKER
    return exif


def made_by_us(file: Path) -> bool:
    """Whether a file is a picture that was saved with `maker()`."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.getexif().get(_SOFTWARE) == _MAKER
    except (OSError, SyntaxError, ValueError):
        return False
