"""Values of overrides as they are typed: split them, quote them for Hydra, find mistakes in them."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from vitlab.cli.keys import Keys
from vitlab.config.paths import PATHS, expanded

_OVERRIDE = re.compile(r"(?P<sign>~|\+{0,2})(?P<key>[^=@]*)(?P<package>@[^=]*)?=(?P<value>.*)", re.DOTALL)
_OPEN, _CLOSE = "[{(", "]})"
_SEARCHPATH = "hydra.searchpath"


def split_override(word: str) -> tuple[str, str, str, str] | None:
    """The sign, key, package and value of `+key@package=value`; None for a word that is no override."""
    match = _OVERRIDE.fullmatch(word)
    return None if match is None else (match["sign"], match["key"], match["package"] or "", match["value"])


def pieces(value: str) -> list[str]:
    """`value` at its commas, except those inside quotes and brackets."""
    found, depth, quote = [""], 0, ""
    for sign in value:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in _OPEN or sign in _CLOSE:
            depth += 1 if sign in _OPEN else -1
        if sign == "," and not quote and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    return [piece.strip() for piece in found]


@functools.lru_cache(maxsize=4096)
def parsed(word: str) -> Override | None:
    """The override that Hydra reads in `word`; None where its grammar does not hold it."""
    try:
        return _parser().parse_override(word)
    except (HydraException, ValueError):
        return None


@functools.cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def typed(key: str, value: str) -> str:
    """`key=value` as it is typed in a shell."""
    return shlex.quote(f"{key}={value}")


def readable(word: str, keys: Keys) -> str:
    """`word` as Hydra can read it.

    `~` and `$NAME` are expanded in paths, and a value that Hydra's grammar does not hold (a letter of another script,
    a bracket in a file name) is quoted. Raises ConfigError for a path with an unknown variable.
    """
    split = split_override(word)
    if split is None:
        return word
    sign, key, package, value = split
    before = f"{sign}{key}{package}="
    if key in PATHS or key == _SEARCHPATH:
        value = _with_expanded_pieces(value, key)
    if parsed(before + value) or not value or keys.is_group(key):
        return before + value
    quoted = before + ",".join(_quoted(piece) for piece in pieces(value))
    return quoted if parsed(quoted) else before + value


def _with_expanded_pieces(value: str, key: str) -> str:
    if not re.search(r"[~$]", value) or "${" in value:
        return value
    if value.startswith("[") and value.endswith("]"):
        return "[" + ",".join(_expanded_piece(piece, key) for piece in pieces(value[1:-1])) + "]"
    return ",".join(_expanded_piece(piece, key) for piece in pieces(value))


def _expanded_piece(piece: str, key: str) -> str:
    text = piece[1:-1] if _is_quoted(piece) else piece
    scheme = "file://" if text.startswith("file://") else ""
    whole = scheme + expanded(text.removeprefix(scheme), key)
    return whole if parsed(f"x={whole}") and not _is_quoted(piece) else _quoted(whole)


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def _quoted(text: str) -> str:
    if _is_quoted(text) or parsed(f"x={text}"):
        return text
    if text.startswith("[") and text.endswith("]"):
        return "[" + ",".join(_quoted(piece) for piece in pieces(text[1:-1])) + "]"
    return QuotedString(text=text, quote=Quote.double).with_quotes()


def mistake_in_value(key: str, value: str, keys: Keys) -> str | None:
    """A line for a value of `key` that no sweep and no cell can take; None where Hydra and the schema may judge it."""
    parts = pieces(value)
    if any(not part for part in parts):
        kept = ",".join(part for part in parts if part)
        if len(parts) > 1 and kept:
            return f"{typed(key, value)}: a value is missing next to a comma; type {typed(key, kept)}"
        return None if len(parts) == 1 and key in keys.types else f"{key}: a value is needed, and {value!r} holds none"
    if value.startswith("="):
        return f"{typed(key, value)}: one = is enough; type {typed(key, value.lstrip('= '))}"
    if (value.count("'") % 2 and value.startswith("'")) or (value.count('"') % 2 and value.startswith('"')):
        return f"{key}: got {value}, in which a quote is not closed; type {typed(key, value.strip(chr(34) + chr(39)))}"
    if value[0] in "({" and value[-1] in ")}" and len(inner := pieces(value[1:-1])) > 1 and ":" not in value:
        return _list_or_sweep(key, value, inner, keys)
    override = parsed(f"{key}={value}")
    if override is None:
        return None
    if override.is_interval_sweep():
        return _interval(key, value, override.value())
    if override.is_sweep_override():
        return _sweep(key, value, override, keys)
    return None


def _list_or_sweep(key: str, value: str, inner: list[str], keys: Keys) -> str:
    listed = ",".join(inner)
    if keys.takes_only_lists(key):
        return f"{typed(key, value)}: a list needs brackets; type {typed(key, f'[{listed}]')}"
    return f"{typed(key, value)}: a sweep needs no brackets; type {typed(key, listed)}"


def _interval(key: str, value: str, sweep: Any) -> str:
    assert isinstance(sweep, IntervalSweep)
    ends = ",".join(f"{end:g}" if isinstance(end, float) else str(end) for end in (sweep.start, sweep.end))
    return f"{typed(key, value)}: a study has a list of cells, not an interval; type {typed(key, ends)}"


def _sweep(key: str, value: str, override: Override, keys: Keys) -> str | None:
    if isinstance(sweep := override.value(), RangeSweep):
        if not list(sweep.range()):
            return f"{typed(key, value)}: the range is empty; range(START,STOP) ends before STOP"
        return None
    if not isinstance(sweep, ChoiceSweep) or not sweep.simple_form:
        return None
    if keys.root != "config" and not keys.takes_only_lists(key):
        first = pieces(value)[0]
        return f"{typed(key, value)}: {_PROGRAM} makes one table at a time; type {typed(key, first)}"
    if keys.takes_only_lists(key) and not any(isinstance(one, list) for one in sweep.list):
        listed = f"[[{value}]]" if key == "pairs" else f"[{value}]"
        return f"{typed(key, value)}: it is one list, in brackets; type {typed(key, listed)}"
    return None


_PROGRAM = "analyze.py"


def is_path_of_user(text: str) -> bool:
    """Whether a choice was typed that is a file or a folder."""
    return "/" in text or text.startswith(("~", "$", ".")) or Path(text).exists()
