"""How both commands begin and end: words are checked before Hydra reads them, and a user's mistake ends in one line."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vitlab.cli.flags import mistakes_in_flags, split_command
from vitlab.cli.hydra_errors import explain
from vitlab.cli.keys import keys_of
from vitlab.cli.typos import mistakes_in_words
from vitlab.cli.values import readable, split_override, typed
from vitlab.config.files import expanded
from vitlab.core.errors import UserError
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
