"""Names that become files: of studies, tables and data sets. One rule, asked before anything is computed."""

from __future__ import annotations

import hashlib
import os
import unicodedata

from vitlab.core.errors import ConfigError

MOST_BYTES = 100
"""Of a name in UTF-8: an ending, an identity and a temporary's number still fit into the 255 of a file system."""
_RULE = f"a name has letters of any script, digits, spaces and . _ -, and at most {MOST_BYTES} bytes"


def require_name(key: str, name: str, fallback: str = "new") -> None:
    """Raise ConfigError where `name`, the value of `key`, cannot be the name of a file everywhere.

    `fallback` is suggested where nothing of the name can be kept.
    """
    size = len(name.encode(errors="surrogateescape"))
    if not name.strip(" "):
        wrong = "it is empty"
    elif name in (".", ".."):
        wrong = "that is a folder"
    elif size > MOST_BYTES:
        wrong = f"it has {size} bytes"
    elif name != name.strip(" "):
        wrong = "it begins or ends with a space"
    elif bad := next((c for c in name if not _allowed(c)), None):
        wrong = f"{bad!r} is none of these"
    else:
        return
    shown = name if len(name) <= 60 else f"{name[:57]}…"
    raise ConfigError(key, f"got {shown!r}; {_RULE}, and {wrong}; for instance {key}={_suggested(name, fallback)}")


def clean_name(text: str, fallback: str = "new") -> str:
    """`text` as a name that `require_name` accepts: other characters become `_`; one that is too long keeps its
    beginning and ends in a digest of the whole."""
    name = "".join(c if _allowed(c) else "_" for c in text).strip(" ")
    if len(name.encode()) > MOST_BYTES:
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
        name = f"{name.encode()[: MOST_BYTES - 9].decode(errors='ignore')}_{digest}"
    return name if name.strip(" .") else fallback


def text_of(name: str, encoding: str = "utf-8") -> str:
    """A file's name as text that can be printed and written: bytes that are no text in `encoding` become `\\xe9`.

    The same in every locale, and for names in other encodings than the machine's (an archive from elsewhere).
    """
    return os.fsencode(name).decode(encoding, "backslashreplace")


def _allowed(character: str) -> bool:
    """Letters, the marks that some scripts write over and beside them, digits, and `. _ -` and the space."""
    kind = unicodedata.category(character)
    return character in " ._-" or kind[0] in "LM" or kind == "Nd"


def _suggested(name: str, fallback: str) -> str:
    """A name that can be typed without quotes, and is taken for text."""
    found = clean_name(name.strip(" "), fallback).replace(" ", "_").lstrip("._-")
    is_text = found.lstrip("0123456789_.-eE") and found.lower() not in ("null", "true", "false", "nan", "inf")
    return found if is_text else fallback
