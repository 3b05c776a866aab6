"""Fonts of figures: letters that matplotlib's own font lacks (Japanese names of classes) are drawn by others."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = "DejaVu Sans"
"""matplotlib's own font: Latin, Greek, Cyrillic and most signs."""
FURTHER = (
    "Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "TakaoPGothic", "VL Gothic",
    "Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei",
    "PingFang SC", "Microsoft YaHei", "SimHei", "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic",
    "Apple SD Gothic Neo", "Arial Unicode MS",
)  # fmt: skip
"""Families that are looked for, Japanese ones first."""


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
