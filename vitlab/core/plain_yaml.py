"""YAML files of which many are alike: a group of keys that was parsed once is not parsed again."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

_BLOCK, _INNER = (re.compile(rf"^{indent}(?=[^\s-]|-\S)", re.MULTILINE) for indent in ("", "  "))
"""Where a key begins; a `- ` belongs to the list of the key before."""
_PLAIN = re.compile(r"[^&*!%|>#\t]*")
"""Text without anchors, tags, directives, comments and blocks of text."""


def parse_yaml(text: str) -> Any:
    """What PyYAML's safe loader makes of `text`; raises its errors.

    Cells have most groups in common, and share them here: nobody may change what is inside.
    """
    found: dict[str, Any] = {}
    lines = ""
    try:
        if _PLAIN.fullmatch(text) is None or text.startswith("---"):
            return _load(text)
        for block in _BLOCK.split(text):
            head, _, rest = block.partition("\n")
            if rest.startswith("  ") and head.endswith(":"):
                (key,) = _load_group(head)
                found[key] = inner = {}
                for part in _INNER.split(rest):
                    inner |= _load_group(part)
            else:
                lines += block
        found |= _load(lines) or {}
    except Exception:  # it is laid out in another way, or damaged: the whole is parsed, and what is wrong said of that
        return _load(text)
    return found


@functools.lru_cache(maxsize=4096)
def _load_group(text: str) -> Mapping[str, Any]:
    return _load(text) if text.strip() else {}


def _load(text: str) -> Any:
    import yaml

    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # C: ten times faster, where libyaml is there
