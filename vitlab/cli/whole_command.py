"""The whole commands that put a mistake right: what was typed, with one of the mistake's ways, tried before it is
printed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from vitlab.cli.values import pieces, split_override
from vitlab.core.errors import ConfigError, UserError

_DEPTH = 4
"""How many mistakes one after the other a command is searched through."""


def with_whole_commands(
    error: ConfigError, program: Sequence[str], words: Sequence[str], accept: Callable[[list[str]], object]
) -> ConfigError:
    """`error`, naming the commands that work in place of the overrides that would; as it is where none is found.

    `words` are the command's overrides, `program` what stands before them. `accept` raises UserError for overrides that
    are a mistake. Overrides of keys that were not typed are tried first.
    """
    commands: list[list[str]] = []
    for way in sorted(error.ways, key=lambda way: _is_typed(way, words)):
        found = _search(list(words), way, accept, _DEPTH)
        if found is not None and not any({*earlier} <= {*found} for earlier in commands):
            commands.append(found)
    return error.instead([shlex.join([*program, *found]) for found in commands[:2]]) if commands else error


def _search(words: list[str], way: str, accept: Callable[[list[str]], object], depth: int) -> list[str] | None:
    changed = _applied(words, way)
    if changed is None:
        return None
    try:
        accept(changed)
    except ConfigError as error:
        ways = sorted(error.ways, key=lambda way: _is_typed(way, changed))
        found = (_search(changed, way, accept, depth - 1) for way in ways if depth)
        return next((words for words in found if words is not None), None)
    except UserError:
        return None
    return changed


def _keys(words: Sequence[str]) -> list[str]:
    return [split[1] + split[2] for word in words if (split := split_override(word))]


def _is_typed(way: str, words: Sequence[str]) -> bool:
    return bool({*_keys(way.split())} & {*_keys(words)})


def _applied(words: Sequence[str], way: str) -> list[str] | None:
    """`words` with the overrides of `way`: in the place of those of their keys, else at the end. None where a sweep
    would be lost."""
    changed = list(words)
    for override in way.split():
        key = override.partition("=")[0]
        places = [i for i, word in enumerate(changed) if _keys([word]) == [key]]
        if any(len(pieces(changed[i].partition("=")[2])) > 1 or "(" in changed[i] for i in places):
            return None
        for i in places:
            changed[i] = override
        if not places:
            changed.append(override)
    return changed
