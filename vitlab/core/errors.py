"""The user's mistakes. A `UserError` ends in one line; any other exception is a bug and shows its traceback."""

from __future__ import annotations

import copy
import errno
import re
import shlex
from collections.abc import Sequence
from typing import Self

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the system for a disk without room."""
REFUSED = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN)
"""Error numbers for a disk that is full, closed to this user, read-only or failing: never a bug of ours."""


class UserError(Exception):
    """Something that the user can put right; the text is complete without a traceback: what is wrong, how to fix it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def extended(self, more: str) -> Self:
        """The same error with `more` at the end of its text."""
        other = copy.copy(self)
        other.text = self.text + more
        other.args = (*self.args[:-1], other.text)
        return other

    def in_cell(self, name: str) -> Self:
        """The same error, which also names the cell it was found in."""
        return self.extended(f" (in the cell {name})")


class ConfigError(UserError):
    """A mistake in the value of one configuration key, which reads `key: text`.

    `ways` are overrides that each correct the mistake (or several, with a space between); the text names
    them at its end.
    """

    def __init__(self, key: str, text: str, ways: Sequence[str] = ()) -> None:
        super().__init__(text + _named(ways))
        self.args = (key, self.text)
        self.key = key
        self.ways = tuple(ways)

    def instead(self, commands: Sequence[str]) -> Self:
        """The same error, whose text names whole commands in place of its ways."""
        other = copy.copy(self)
        other.text = f"{self.text.replace(_named(self.ways), '')}; type {', or '.join(commands)}"
        other.args = (self.key, other.text)
        return other

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"

    def under(self, prefix: str) -> Self:
        """The same error of a key inside the group `prefix`: `recipe.epochs` under `pretrain`.

        The keys that its text names are those of the group as well, where the group has them.
        """
        other = copy.copy(self)
        other.key = f"{prefix}.{self.key}"
        if prefix == "pretrain":
            other.text = _OF_A_CELL.sub(r"pretrain.\1", self.text)
            other.ways = tuple(_OF_A_CELL.sub(r"pretrain.\1", way) for way in self.ways)
        other.args = (other.key, other.text)
        return other


_OF_A_CELL = re.compile(r"(?<![\w./-])((?:dataset|augment|recipe)\.[a-z])")
"""The groups of a cell that a pre-training has of its own."""


def _named(ways: Sequence[str]) -> str:
    return f"; give {' or '.join(shlex.join(way.split()) for way in ways)}" if ways else ""


def reason(error: OSError) -> str:
    """The system's reason, without the number and the path: "No space left on device"."""
    return error.strerror or str(error)


def one_line(error: BaseException) -> str:
    """One line for `error`: its message, with the type of the error where it is a bug."""
    mistake = as_user_error(error)
    return str(mistake) if mistake else f"{type(error).__name__}: {error}"


def as_user_error(error: BaseException) -> UserError | None:
    """`error` where it is the user's, None for a bug.

    Where a path is known, reading and writing raise UserErrors themselves; this also takes what the system refuses to
    libraries (a figure on a full disk).
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in REFUSED:
        return UserError(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    return None
