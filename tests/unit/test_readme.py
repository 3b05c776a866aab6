"""The README in two languages: the same commands, choices and figures."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH, JAPANESE = ((ROOT / name).read_text(encoding="utf-8").splitlines() for name in ("README.md", "README.ja.md"))


def typed(lines: list[str]) -> list[str]:
    """The commands in the code blocks, without their comments."""
    return [re.split(r"\s{2,}|\s#", line.strip())[0] for line in lines if re.match(" {4}[^ ]", line)]


def rows(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("|")]


def test_both_languages_have_the_same_commands():
    assert typed(ENGLISH) == typed(JAPANESE)
    assert sum(line.startswith("python run.py") for line in typed(ENGLISH)) > 15


def test_both_languages_have_the_same_choices_and_figures():
    assert len(rows(ENGLISH)) == len(rows(JAPANESE))
    for ours, theirs in zip(rows(ENGLISH), rows(JAPANESE), strict=True):
        if "`" in ours:
            assert re.findall(r"`[\w…]+`", ours) == re.findall(r"`[\w…]+`", theirs)
        elif "top-1" in ours or "0." in ours:
            assert ours == theirs
    sections = [[line for line in lines if line.startswith("## ")] for lines in (ENGLISH, JAPANESE)]
    assert len(sections[0]) == len(sections[1])
