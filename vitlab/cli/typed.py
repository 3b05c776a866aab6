"""Which keys a command line gives values to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def typed_keys(overrides: Iterable[Any]) -> tuple[str, ...]:
    """The dotted keys that parsed overrides of Hydra's set, groups included; a mapping stands for the keys in it."""
    found: dict[str, None] = {}
    for override in overrides:
        if not override.is_delete():
            found |= dict.fromkeys(_leaves(override.key_or_group, override.value()))
    return tuple(found)


def _leaves(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield key
        return
    for name, inner in value.items():
        yield from _leaves(f"{key}.{name}", inner)
