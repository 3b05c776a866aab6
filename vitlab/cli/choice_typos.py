"""Values of a group (augment=, dataset=, …) that are not one of its choices, and what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import yaml

from vitlab.cli.hints import hint_for
from vitlab.cli.keys import Keys
from vitlab.cli.values import is_path_of_user, parsed, pieces, typed
from vitlab.config.choices import CONF

_WHOLE = {
    "table": "analyze.py makes one table at a time",
    "experiment": "an experiment is a whole study",
    "task": "a command does one task",
    "explain": "a command draws one kind of figure",
}
"""Groups of which a command takes one choice, and why."""


def mistakes_in_choice(group: str, package: str, value: str, keys: Keys) -> list[str]:
    """Lines for a value of a group that is not one choice, or a sweep of choices, that exist."""
    known, key = keys.choices(group), f"{group}{package}"
    names = [name.strip("'\"") for name in pieces(value)]
    if value.startswith("[") and value.endswith("]"):
        inner = [name.strip("'\"") for name in pieces(value[1:-1])]
        fitting = [name for name in inner if name in known] or known[:2]
        return [f"{typed(key, value)}: one choice; a sweep is {typed(key, ','.join(fitting))}"]
    if len(names) > 1 and all(names) and (why := _WHOLE.get(group)):
        return [f"{typed(key, value)}: {why}; type {typed(key, names[0])}, and the others in commands of their own"]
    if not keys.closed or value.startswith("{"):
        return []
    if not any(names):
        usual = keys.usual.get(group) or known[0]
        return [f"{key}: a choice is missing; type {typed(key, usual)}, or another of {', '.join(known)}"]
    if not all(names):
        left = ",".join(name for name in names if name)
        return [f"{typed(key, value)}: a choice is missing next to a comma; type {typed(key, left)}"]
    override = parsed(f"{key}={value}")
    if override is not None and override.is_interval_sweep():
        return [
            f"{typed(key, value)}: {group} has choices, not an interval; a sweep is {typed(key, ','.join(known[:2]))}"
        ]
    if "(" in value and override is not None:
        names = _names_of_function(override, known)
        if not names:
            return [f"{typed(key, value)}: no choice fits; there are {', '.join(known)}"]
    found = []
    for name in names:
        if name in known or "${" in name:
            continue
        if name == "null" and keys.usual.get(group) is None:
            return [f"{typed(key, value)}: to choose none, leave {key} out"]
        found.append(hint_for(group, name) or _no_choice(group, key, name, value, known))
    return found


def _names_of_function(override: Any, known: Sequence[str]) -> list[str]:
    value = override.value()
    if hasattr(value, "filter"):
        return value.filter(known)
    return [str(getattr(name, "text", name)) for name in getattr(value, "list", ())]


def _no_choice(group: str, key: str, name: str, value: str, known: Sequence[str]) -> str:
    there_is_none = f"{typed(key, name)}: there is no such choice"
    if both := _several(group, name, known):
        return both
    if is_path_of_user(name) and group in ("dataset", "pretrain"):
        kind, field = {"dataset": ("folder", "root"), "pretrain": ("checkpoint", "path")}[group]
        return f"{there_is_none}; type {key}={kind} {typed(f'{key}.{field}', name)}"
    if group == "model" and "_patch" in name:
        return f"{there_is_none}; a ViT of timm's is {typed('model.name', name)}"
    if near := difflib.get_close_matches(name, known, n=1):
        return f"{there_is_none}. Did you mean {typed(key, near[0])}?"
    return f"{there_is_none}. Known: {', '.join(known)}."


def _several(group: str, name: str, known: Sequence[str]) -> str | None:
    """The line for choices joined by a sign, as `cutmix+mixup`: one of them, with what the others set."""
    for sign in ("+", "|", "&", "/", " ", ";", ":"):
        names = [part.strip() for part in name.split(sign)]
        if len(names) < 2 or not all(part in known for part in names):
            continue
        sets = {part: _fields_set(group, part) for part in names}
        fields = [field for values in sets.values() for field in values]
        sweep = typed(group, ",".join(names))
        if group != "augment" or len(fields) != len(set(fields)):
            return f"{typed(group, name)}: one choice; a sweep is {sweep}"
        base = max(reversed(names), key=lambda part: len(sets[part]))
        others = [typed(f"{group}.{f}", str(v)) for part in names if part != base for f, v in sets[part].items()]
        together = " ".join([f"{group}={base}", *others])
        return f"{typed(group, name)}: one choice; all of them in one cell are {together}; a sweep is {sweep}"
    return None


def _fields_set(group: str, name: str) -> dict[str, Any]:
    """What conf/GROUP/NAME.yaml sets, with what it inherits."""
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    parents = [entry for entry in content.pop("defaults", []) if entry not in ("schema", "_self_")]
    return {key: value for parent in parents for key, value in _fields_set(group, parent).items()} | content
