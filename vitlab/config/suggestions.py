"""Suggestions for a value of the wrong type: overrides that the schema accepts."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

_MANY = 10
"""From so many values on, a sweep is written as a range."""
_RANGE = re.compile(r"(\d+)\s*(?:\.{2,3}|-|:|–|to)\s*(\d+)")
_LIST = re.compile(r"[^\s;,]+(?:[\s;,]+[^\s;,]+)+")
_NOTHING = ("none", "nil", "null", "~", "")
_SAME = {"gpu": "cuda", "bfloat16": "bf16", "float32": "fp32", "amp": "bf16"}
"""Other programs' words for choices of ours that are spelt in another way."""
_SWITCHES = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


def suggest(got: Any, allowed: Iterable[Any]) -> str:
    """`" Did you mean 'mixup'?"`, or the allowed names where nothing is near."""
    names = [str(a) for a in allowed]
    near = difflib.get_close_matches(str(got), names, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(names)}."


def meant(key: str, hint: Any, value: Any, accepts: Callable[[Any], bool]) -> list[str]:
    """The override of `key` that may have been meant by `value`, which the type `hint` refuses; [] where none is known.

    `accepts` decides whether the schema takes a value.
    """
    for text, values in _candidates(hint, value):
        if all(accepts(one) for one in values):
            return [f"{key}={text}"]
    return ["seed=0,1,2,3,4"] if key == "seed" else []


def _candidates(hint: Any, value: Any) -> Iterator[tuple[str, list[Any]]]:
    """The text after `key=`, and the values that it means (several in a sweep)."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    text = str(value).strip()
    for kind in kinds:
        if kind is type(None) and text.lower() in _NOTHING:
            yield "null", [None]
        elif kind is bool and text.lower() in _SWITCHES:
            yield _SWITCHES[text.lower()], [_SWITCHES[text.lower()] == "true"]
        elif kind in (int, float):
            yield from _numbers(kind, value, text)
        elif typing.get_origin(kind) is Literal:
            names = {str(name): name for name in typing.get_args(kind)}
            lowered = {name.lower(): name for name in names}
            other = _SAME.get(text.lower())
            near = [other] if other else difflib.get_close_matches(text.lower(), lowered, n=1)
            if near and near[0] in lowered:
                yield lowered[near[0]], [names[lowered[near[0]]]]
        elif typing.get_origin(kind) is tuple:
            yield from _lists(typing.get_args(kind), value, text)


def _numbers(kind: type, value: Any, text: str) -> Iterator[tuple[str, list[Any]]]:
    if (number := _number(kind, text)) is not None:
        yield f"{number:g}" if isinstance(number, float) else str(number), [number]
    if kind is int and (match := _RANGE.fullmatch(text)) and int(match[1]) < int(match[2]):
        first, last = int(match[1]), int(match[2])
        numbers = list(range(first, last + 1)) if last - first < 10_000 else []
        yield ",".join(map(str, numbers)) if len(numbers) <= _MANY else f"range({first},{last + 1})", numbers
    parts = value if isinstance(value, list | tuple) else re.split(r"[\s;,]+", text) if _LIST.fullmatch(text) else []
    numbers = [_number(kind, str(part)) for part in parts]
    if numbers and None not in numbers:
        yield ",".join(str(part) for part in parts), numbers


def _number(kind: type, text: str) -> int | float | None:
    """The number that a text holds; a fraction is no whole number."""
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        return None
    if kind is float:
        return number
    return int(number) if number.is_integer() else None


def _lists(kinds: Sequence[Any], value: Any, text: str) -> Iterator[tuple[str, list[Any]]]:
    if isinstance(value, list | tuple):
        return
    of_numbers, inner = kinds[0] in (int, float), text.strip("()[]{}")
    parts: list[Any] = re.split(r"[\s;,]+", inner) if of_numbers and _LIST.fullmatch(inner) else [value]
    if len(parts) == 1 and len(kinds) > 1 and kinds[-1] is not Ellipsis:
        parts *= len(kinds)
    values = [_number(kinds[0], str(part)) if of_numbers else part for part in parts]
    if None not in values:
        plain = [re.fullmatch(r"[\w.+-]+", str(one)) is not None for one in values]
        written = [str(one) if simple else f"'{one}'" for one, simple in zip(values, plain, strict=True)]
        yield f"[{','.join(written)}]", [values]
