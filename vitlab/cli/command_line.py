"""How both commands begin and end: overrides are checked before Hydra reads them; a mistake ends in one line."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from vitlab.cli.flags import hydra_on_new_python, mistakes_in_flags, split_command
from vitlab.cli.keys import keys_of
from vitlab.cli.typos import mistakes_in_words
from vitlab.cli.values import pieces, readable, split_override, typed
from vitlab.config.paths import expanded
from vitlab.config.suggestions import suggest
from vitlab.core.errors import ConfigError, UserError
from vitlab.core.terminal import prepare_output

_EXTENDED = {"analyze": "columns+="}
"""What adds to a layout's list, which Hydra's grammar does not know."""


@contextlib.contextmanager
def command_line(root: str) -> Iterator[None]:
    """Inside, `sys.argv` holds words that Hydra can read, and a mistake of the user's ends the process in one line.

    `root` is the command's file under conf/.
    """
    prepare_output()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints errors itself, cut short, with the advice to set this
    try:
        sys.argv[1:] = read_command(sys.argv[1:], root)
        with hydra_on_new_python():
            yield
    except UserError as error:
        sys.exit("\n".join(f"vitlab: {line}" for line in str(error).splitlines()))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"vitlab: {explain(error)}")


def read_command(words: Sequence[str], root: str) -> list[str]:
    """The words of a command as Hydra can read them, flags first.

    Raises UserError with a line for each mistake in them.
    """
    words = [word.replace("+=", "=", 1) if word.startswith(_EXTENDED.get(root, "=")) else word for word in words]
    if lines := mistakes_in_flags(words, root):
        raise UserError("\n".join(lines))
    flags, overrides = split_command(words)
    if lines := mistakes_in_words(words, root) or _repeated(overrides):
        raise UserError("\n".join(lines))
    keys = keys_of(root, words)
    return [*map(_with_whole_folder, flags), *(readable(word, keys) for word in overrides)]


def _with_whole_folder(flag: str) -> str:
    name, equals, value = flag.partition("=")  # a shell expands `~` behind a space, and not behind `=`
    return f"{name}={expanded(value, name)}" if equals and name in ("--config-dir", "-cd") else flag


def _repeated(overrides: Sequence[str]) -> list[str]:
    """A line where one key follows itself with other values, as a shell leaves `seed={0..4}`: only the last counts."""
    found = []
    splits = [split_override(word) or (word,) for word in overrides]
    for key, same in itertools.groupby(splits, key=lambda split: split[:3]):
        values = list(dict.fromkeys(split[-1] for split in same))
        if len(values) > 1:
            name = "".join(key)
            sweep = typed(name, ",".join(values))
            found.append(f"{name}: given {len(values)} times, and only the last would count; a sweep is {sweep}")
    return found


_DEPTH = 4
"""How many mistakes one after the other a command is searched through."""


def with_whole_commands(
    error: ConfigError, program: Sequence[str], words: Sequence[str], accept: Callable[[list[str]], object]
) -> ConfigError:
    """`error`, naming the commands that work in place of the overrides that would; as it is where none is found.

    `words` are the command's overrides, `program` what comes before them. `accept` raises UserError for overrides that
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


def _keys_in(words: Sequence[str]) -> list[str]:
    return [split[1] + split[2] for word in words if (split := split_override(word))]


def _is_typed(way: str, words: Sequence[str]) -> bool:
    return bool({*_keys_in(way.split())} & {*_keys_in(words)})


def _applied(words: Sequence[str], way: str) -> list[str] | None:
    """`words` with the overrides of `way`: in the place of those of their keys, else at the end. None where a sweep
    would be lost."""
    changed = list(words)
    for override in way.split():
        key = override.partition("=")[0]
        places = [i for i, word in enumerate(changed) if _keys_in([word]) == [key]]
        if any(len(pieces(changed[i].partition("=")[2])) > 1 or "(" in changed[i] for i in places):
            return None
        for i in places:
            changed[i] = override
        if not places:
            changed.append(override)
    return changed


_NOISE = ("See https://", "Set the environment variable", "full_key:", "object_type=", "reference_type=")


def explain(error: Exception) -> str:
    """Translate an error of the composition into one line for the person who typed the command."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; quote what is not plain: '{_quoted(error.override)}'"
    for pattern, answer in _ANSWERS:
        if match := pattern.search(text):
            return match.expand(answer)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_NOISE)]
    return "; ".join(lines[:2]) or type(error).__name__


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return f'{key}="{value}"'


def _missing_choice(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file or "")
    group, _, name = missing.rpartition("/")
    if error.options is not None and group:
        return f"{group}={name}: there is no such choice.{suggest(name, error.options)}"
    return str(error).splitlines()[0]


_ANSWERS = tuple(
    (re.compile(pattern, re.DOTALL), answer)
    for pattern, answer in {
        r"Could not override '([^'@]+)@([^']+)'": r"\1@\2: nothing is composed there; pretrain=fractaldb has a data "
        r"set, augmentation and recipe of its own, as in recipe@pretrain.recipe=book",
        r"Could not override '(hydra\.launcher\.[^']+)'": r"\1: the launcher has no such option; those of Slurm need "
        r"hydra/launcher=slurm",
        r"Could not override '([^']+)'": r"\1: there is no such key",
        r"Could not append to config\. An item is already at '([^']+)'": r"\1: exists; type it without the +",
        r"Could not delete from config\. '?([^'\s]+)'? does not exist": r"~\1: there is no such key to take away",
        r"Could not delete\. No match for '?([^'\s]+)'?": r"~\1: nothing is chosen there that could be taken away",
        r"Multiple values for ([\w/@.]+)\. To override": r"\1: two files choose it; write `override` in the second",
        r"Ambiguous value for argument '([^']+)'": r"\1: one value is needed here, not a sweep",
        r"Environment variable '([^']+)' not found": r"the environment variable \1 is not set",
        r"Interpolation key '([^']+)' not found": r"${\1}: there is no such key to take a value from",
        r"Error merging override ([^\n]+)\n([^\n]+)": r"\1: \2",
        r"Additional config directory '([^']+)' not found": r"--config-dir: there is no folder \1",
        r"Primary config directory not found": r"--config-path: there is no such folder",
        r"Primary config module": r"--config-path: there is no such module",
        r"Cannot find primary config '([^']+)'": r"--config-name: no file \1.yaml in the configuration folders",
    }.items()
)
"""Hydra's text → ours."""
