"""The flags of both commands, which are Hydra's: told apart from the overrides, and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from vitlab.cli.hints import hints_for_flags
from vitlab.cli.keys import keys_of
from vitlab.cli.values import typed

PROGRAMS = {"config": "run.py", "analyze": "analyze.py"}
"""A root file under conf/ → the command that starts from it."""


class _WrongFlagError(Exception):
    pass


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags with their values, and the overrides, each in the order in which they were typed."""
    try:
        given, unknown = _parse(words)
    except _WrongFlagError:
        return [], list(words)
    left, flags = Counter(given.overrides), []
    for word in words:
        if left[word]:
            left[word] -= 1
        else:
            flags.append(word)
    return flags, [word for word in given.overrides if word not in unknown]


def _parse(words: Sequence[str]) -> tuple[Any, list[str]]:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise _WrongFlagError(message)

    parser.error = refuse
    return parser.parse_known_intermixed_args(list(words))


def mistakes_in_flags(words: Sequence[str], root: str) -> list[str]:
    """Lines for flags that do not exist, or that say nothing together; `root` is the command's file under conf/."""
    program = f"python {PROGRAMS[root]}"
    try:
        given, unknown = _parse(words)
    except _WrongFlagError as error:
        text = str(error).removeprefix("argument ")
        return [f"{text}; {program} --help says what to type"]
    if unknown:
        return hints_for_flags(unknown) or [_unknown_flag(unknown[0], words, root)]
    if given.experimental_rerun is not None:
        return ["--experimental-rerun: type the command itself again; what is finished is not trained a second time"]
    modes = [given.run, given.multirun, given.cfg is not None, given.info is not None, given.shell_completion]
    if sum(modes) > 1:
        return ["--multirun, --run, --cfg and --info: give one of them"]
    if given.resolve and given.cfg is None and not given.help:
        return ["--resolve: goes with --cfg; type --cfg job --resolve"]
    if root == "analyze" and given.multirun:
        return ["--multirun: analyze.py makes one table at a time; leave it out, and type a command for each table"]
    return []


def _unknown_flag(word: str, words: Sequence[str], root: str) -> str:
    """The line for a flag that neither Hydra nor the book's command has: `--recipe.lr=3` and `--recipe.lr 0.1` too."""
    flag, equals, value = word.partition("=")
    key = flag.lstrip("-").replace("-", "_")
    following = words[words.index(word) + 1 :]
    if not equals and following and not following[0].startswith("-"):
        value = following[0]
    keys = keys_of(root)
    if key in keys.types or keys.is_group(key):
        return f"{flag}: keys are typed without dashes; type {typed(key, value) if value else f'{key}=VALUE'}"
    program = PROGRAMS[root]
    return f"{flag}: there is no such flag; what to do is typed as key=value, as python {program} --help says"
