"""Words of a command line that are no override: what they may mean, and how that is typed."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vitlab.cli.keys import Keys
from vitlab.config.choices import options

_DASHES = "‐‑‒–—−－"
_IDENTITY = re.compile(r"c[0-9a-f]{11}")
_FLAGS = {"help": "--help", "multirun": "-m", "sweep": "-m", "version": "--version", "config": "--cfg job"}
_PROGRAMS = {"config": "run.py", "analyze": "analyze.py"}


def explain_bare_words(words: Sequence[str], keys: Keys) -> tuple[list[str], list[str]]:
    """A line for each word without `=` and each override typed with spaces in it; and the words that are left."""
    found, left, i = [], [], 0
    while i < len(words):
        word = words[i]
        joined, used = _joined(words[i:])
        if used > 1:
            shown = " ".join(words[i : i + used])
            found.append(f"{shown}: an override has no spaces in it; type {shlex.quote(joined)}")
        elif "=" not in word and not word.startswith("~"):
            found.append(_explain(word, keys))
        else:
            left.append(word)
        i += used
    return found, left


def _joined(words: Sequence[str]) -> tuple[str, int]:
    """The override that begins with the first word, and how many words it was typed in: `seed = 0`, `seed=0, 1`."""
    joined, used = words[0], 1
    name = re.fullmatch(r"[\w.]+", joined) is not None
    if name and words[1:2] == ["="] and len(words) > 2:
        joined, used = f"{joined}={words[2]}", 3
    elif name and len(words) > 1 and words[1].startswith("="):
        joined, used = joined + words[1], 2
    elif re.fullmatch(r"[\w.]+:", joined) and len(words) > 1 and "=" not in words[1]:
        joined, used = f"{joined[:-1]}={words[1]}", 2
    elif re.fullmatch(r"[\w.]+=", joined) and len(words) > 1 and "=" not in words[1]:
        joined, used = joined + words[1], 2
    while len(words) > used and "=" not in words[used] and (joined.endswith(",") or words[used].startswith(",")):
        joined, used = joined + words[used], used + 1
    return joined, used


def _explain(word: str, keys: Keys) -> str:
    program = _PROGRAMS[keys.root]
    no_override = f"{word}: is no override"
    plain = unicodedata.normalize("NFKC", word)
    if word[:1] in _DASHES:
        hyphens = "-" if len(word) == 2 else "--"
        return f"{no_override}; type {hyphens}{word.lstrip(_DASHES)}, with the hyphen of the keyboard"
    if "=" in plain:
        return f"{no_override}; type {shlex.quote(plain)}, with the half-width ="
    if word in _FLAGS:
        return f"{no_override}; type python {program} {_FLAGS[word]}"
    if keys.root == "config" and word == "train":
        return f"{no_override}; python {program} trains, without it"
    if meant := _meant(word, keys):
        return f"{no_override}; type {' or '.join(meant)}"
    return f"{no_override}; what to do is typed as key=value; python {program} --help lists the keys"


def _meant(word: str, keys: Keys) -> list[str]:
    """The overrides that a word without `=` may stand for."""
    if chosen := [f"{group}={word}" for group in keys.groups if word in keys.choices(group)]:
        return chosen
    if keys.root == "config" and word in options("table"):
        return [f"experiment={word}"] if word in options("experiment") else []
    if switches := [key for key, kind in keys.types.items() if kind is bool and word in (key, key.rsplit(".", 1)[-1])]:
        return [f"{key}=true" for key in switches]
    path = Path(word)
    if keys.root == "config":
        if _IDENTITY.fullmatch(word) or path.is_file():
            return [f"task=evaluate {shlex.quote(f'checkpoint={word}')}"]
        if (path / "train").is_dir():
            return [f"dataset=folder {shlex.quote(f'dataset.root={word}')}"]
    elif path.suffix == ".csv" and path.is_file():
        return [shlex.quote(f"reference={word}")]
    elif Path(f"runs/studies/{word}.json").is_file():
        return [shlex.quote(f"study={word}")]
    return []
