"""The user's mistakes. A `UserError` ends in one line; any other exception is a bug and shows its traceback."""

from __future__ import annotations

import copy
from typing import Self


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
    """A mistake in the value of one configuration key, which reads `key: text`."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.args = (key, text)
        self.key = key

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"

    def under(self, prefix: str) -> Self:
        """The same error of a key inside the group `prefix`: `recipe.epochs` under `pretrain`."""
        other = copy.copy(self)
        other.key = f"{prefix}.{self.key}"
        other.args = (other.key, other.text)
        return other
