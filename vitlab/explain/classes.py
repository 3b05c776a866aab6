"""Names of classes, and the class that a user means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vitlab.config import ConfigError

_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassNames:
    """The classes of a classifier; `names` is None where nothing tells them."""

    count: int
    names: tuple[str, ...] | None

    def short(self, index: int) -> str:
        """A title's worth of name: the first synonym, or the number."""
        return f"class {index}" if self.names is None else self.names[index].split(",")[0]

    def find(self, wanted: int | str) -> int:
        """The index that a number or a name means. Raises ConfigError naming near classes."""
        if isinstance(wanted, int):
            if not 0 <= wanted < self.count:
                raise ConfigError(
                    "explain.class_index", f"got {wanted}, the model has {self.count} classes (0 to {self.count - 1})"
                )
            return wanted
        if self.names is None:
            raise ConfigError(
                "explain.class_name", f"the checkpoint does not tell its {self.count} classes' names; give class_index"
            )
        sought = wanted.strip().lower()
        synonyms = [[word.strip().lower() for word in name.split(",")] for name in self.names]
        exact = [i for i, words in enumerate(synonyms) if sought in words or sought == self.names[i].lower()]
        found = exact or [i for i, words in enumerate(synonyms) if any(sought in word for word in words)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{i} ({self.names[i]})" for i in found[:5])
            raise ConfigError("explain.class_name", f"{wanted!r} may be {listed}; give explain.class_index")
        near = difflib.get_close_matches(sought, [word for words in synonyms for word in words], n=3)
        hint = (
            f"did you mean {' or '.join(repr(n) for n in near)}?"
            if near
            else f"the first are {', '.join(self.names[:5])}"
        )
        raise ConfigError("explain.class_name", f"no class {wanted!r} among the model's {self.count}; {hint}")


def class_names(recorded: Sequence[str] | None, count: int, dataset: str) -> ClassNames:
    """The checkpoint's own names; for ImageNet's 1,000 classes WordNet's words, which timm brings."""
    if recorded is not None and not all(_WORDNET.fullmatch(name) for name in recorded):
        return ClassNames(count, tuple(recorded))
    if recorded is None and (count != 1000 or "imagenet" not in dataset.lower()):
        return ClassNames(count, None)
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    if recorded is None:
        return ClassNames(count, tuple(info.index_to_description(i) for i in range(count)))
    known = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
    return ClassNames(count, tuple(known.get(name, name) for name in recorded))
