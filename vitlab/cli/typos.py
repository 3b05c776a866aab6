"""Misspelt words of a command line, answered before Hydra sees them: its own answer names neither what is allowed nor
what is near."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from vitlab.config.choices import CONF, options
from vitlab.config.parse import suggest
from vitlab.config.schema import GROUPS, StudyConfig, WandbConfig

_WORD = re.compile(r"\+{0,2}([A-Za-z_]\w*(?:\.\w+)*)=(.*)")
_NAME = re.compile(r"[\w.-]+")
_OTHER_FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
_SCHEMAS: Mapping[str, type] = GROUPS | {"wandb": WandbConfig, "study": StudyConfig}


def mistakes_in_words(words: Sequence[str], root: str = "config") -> list[str]:
    """A line for each word of a command line that names an option or a key that does not exist.

    `root` is the file under conf/ that the command starts from. Words in Hydra's extended syntax (functions, braces,
    packages, deletions) are left to Hydra, and so is everything where the user brings configuration of his own.
    """
    if any(word.startswith(_OTHER_FOLDERS) for word in words):
        return []
    groups, keys = _root(root)
    found = []
    for key, value in (match.groups() for word in words if (match := _WORD.fullmatch(word))):
        if key in groups:
            names = [name.strip() for name in value.split(",")]
            plain = all(_NAME.fullmatch(name) for name in names)
            wrong = [name for name in names if plain and name not in (*options(key), "null")]
            found += [f"{key}={name}: there is no such choice.{suggest(name, options(key))}" for name in wrong]
        elif not key.startswith("hydra."):
            found += _missing_key(key, [*groups, *keys])
    return list(dict.fromkeys(found))


def _root(name: str) -> tuple[list[str], list[str]]:
    """The groups and the keys of conf/NAME.yaml; a task's own options stand under its name."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    entries = [key for entry in content["defaults"] if isinstance(entry, dict) for key in entry]
    groups = [key for key in entries if not key.startswith("override ")]
    keys = [key for key in content if key not in ("defaults", "hydra")]
    if "task" in groups:
        groups.append("explain")
        keys += ["wandb", "study", *(task for task in options("task") if task not in groups)]
    return groups, keys


def _missing_key(key: str, known: Sequence[str]) -> list[str]:
    """The line for a dotted key that does not exist, if it does not."""
    first, *rest = key.split(".")
    if first not in known:
        return [f"{key}: there is no such key.{suggest(first, known)}"]
    if not rest:
        return []
    if first in _SCHEMAS:
        return _missing_field(_SCHEMAS[first], first, rest)
    keys = _keys_of_task(first)
    return [] if not keys or rest[0] in keys else [f"{key}: there is no such key.{suggest(rest[0], keys)}"]


def _missing_field(schema: Any, prefix: str, path: Sequence[str]) -> list[str]:
    """The same within a dataclass, or in those that its fields hold."""
    name, *rest = path
    hints = typing.get_type_hints(schema)
    if name not in hints:
        return [f"{prefix}.{name}: there is no such key.{suggest(name, hints)}"]
    inner = next((t for t in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(t)), None)
    return _missing_field(inner, f"{prefix}.{name}", rest) if rest and inner else []


def _keys_of_task(task: str) -> Iterable[str]:
    """The keys below a task's name; none where they are not known."""
    if task == "explain":
        return yaml.safe_load((CONF / "explain/base.yaml").read_text(encoding="utf-8"))
    if task not in options("task"):
        return ()
    return (yaml.safe_load((CONF / f"task/{task}.yaml").read_text(encoding="utf-8")) or {}).get(task, ())
