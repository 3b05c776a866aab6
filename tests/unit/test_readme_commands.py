"""The README against the repository: every command composes, every choice and document is listed, no path is stale."""

import re
import shlex
from pathlib import Path

import pytest

from vitlab.cli.command_line import read_command
from vitlab.config import GROUPS, options

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INNER = {"from_checkpoint"}
"""Choices that tasks make, not users."""
READS_FILES = ("checkpoint=", "pretrain=checkpoint", "dataset.pack=")


def commands():
    """The words of every indented command, by its script."""
    block = re.sub(r"\\\n\s*", "", README)
    for line in re.findall(r"^    ((?:python|torchrun) .*)$", block, re.MULTILINE):
        words = shlex.split(line, comments=True)
        script = next(w for w in words if w.endswith(".py"))
        yield pytest.param(script, words[words.index(script) + 1 :], id=" ".join(words[1:6]))


@pytest.mark.parametrize(("script", "words"), list(commands()))
def test_a_command_is_understood(compose_config, script, words):
    root = {"run.py": "config", "analyze.py": "analyze"}[script]
    assert sorted(read_command(words, root)) == sorted(words), "nothing in it is a mistake, or needs another spelling"
    overrides = [w.split(",")[0] if w.count("=") == 1 and "[" not in w else w for w in words if not w.startswith("-")]
    if script == "run.py" and not any(w.startswith(READS_FILES) for w in words):
        assert compose_config(*overrides).cell


def test_every_choice_is_listed():
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE))
    for group in (*GROUPS, "experiment", "task"):
        named = set(re.findall(r"`(\w+)`", table[group]))
        left = {name for name in set(options(group)) - INNER - named if not name.startswith("quick_")}
        assert {name for name in left if not name.endswith("_book")} == set(), group
        assert {n for n in named if n not in options(group)} <= {"…_book", "quick_…"}, group


def test_every_document_and_folder_is_listed_and_there():
    tree = README.split("## Where things are")[1].split("##")[0]
    paths = re.findall(r"^    ([\w/.]+\.?\w*)  ?", tree, re.MULTILINE)
    assert len(paths) > 15 and all((ROOT / path).exists() for path in paths)
    missing = {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")} - set(paths)
    assert not missing, missing
    packages = {f"vitlab/{folder.name}/" for folder in (ROOT / "vitlab").iterdir() if (folder / "__init__.py").exists()}
    assert packages <= set(paths)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
