"""The groups, choices and keys of run.py and analyze.py, in conf/ and in the user's own configuration folders."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitlab.config.choices import CONF, options
from vitlab.config.paths import expanded
from vitlab.config.run_schema import Config, StudyConfig, WandbConfig
from vitlab.config.schema import GROUPS

LISTS = (
    "logs", "diff", "pairs", "checkpoint", "study.rerun", "preview.conditions", "explain.images", "explain.class_index",
    "explain.class_name",
)  # fmt: skip
"""Keys that take one value or a list of them, and no sweep: commas mean the elements."""
_FOLDER_FLAGS = ("--config-dir", "-cd")
_ROOT_FLAGS = ("--config-path", "-cp", "--config-name", "-cn")
_SEARCHPATH = re.compile(r"\+{0,2}hydra\.searchpath=\[(.*)\]")


@dataclass(frozen=True)
class Keys:
    """The keys of a command: `root` is its file under conf/ (config for run.py, analyze for analyze.py)."""

    root: str
    usual: Mapping[str, str | None]
    """Group → the choice that is made where none is typed; None for none."""
    types: Mapping[str, Any]
    """Full key → its type, or None where only the name is known."""
    folders: tuple[Path, ...] = ()
    """The user's own configuration folders."""
    closed: bool = True
    """Whether these are all keys: not where the command names another root file."""

    def is_group(self, key: str) -> bool:
        return key in self.groups or any((folder / key).is_dir() for folder in self.folders)

    def choices(self, group: str) -> list[str]:
        """The choices of a group, the user's own among them."""
        own = {file.stem for folder in self.folders for file in (folder / group).glob("*.y*ml")}
        return sorted({*options(group), *own})

    def below(self, prefix: str) -> list[str]:
        """The names one level below `prefix`: fields of a group, or keys of a task."""
        start = f"{prefix}."
        return list(dict.fromkeys(key.removeprefix(start).split(".")[0] for key in self.types if key.startswith(start)))

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.usual)

    @property
    def top(self) -> list[str]:
        """The groups and the keys without a dot."""
        return list(dict.fromkeys([*self.groups, *(key.split(".")[0] for key in self.types)]))

    def ending_in(self, leaf: str) -> list[str]:
        """Full keys below a group whose last part is `leaf`, the likeliest first."""
        found = [key for key in self.types if "." in key and key.rsplit(".", 1)[1] == leaf]
        own = [key for key in found if not key.startswith("pretrain.")]  # those of a pre-training repeat them
        return sorted(own or found, key=lambda key: key.count("."))

    def takes_only_lists(self, key: str) -> bool:
        """Whether a value of `key` is a list, so that commas mean its elements."""
        hint = self.types.get(key)
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        return key in LISTS or all(typing.get_origin(kind) is tuple for kind in kinds if kind is not type(None))


def keys_of(root: str, words: Sequence[str] = ()) -> Keys:
    """The keys of the command that starts from conf/ROOT.yaml, with the folders that its `words` add."""
    known = _keys(root)
    closed = not any(word.startswith(_ROOT_FLAGS) or "pkg://" in word for word in words)
    return dataclasses.replace(known, folders=tuple(own_folders(words)), closed=closed)


def location_words(words: Sequence[str]) -> list[str]:
    """Those of a command's words that say where its configuration is: what `keys_of` reads."""
    found = []
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag, equals, _ = word.partition("=")
        if flag in (*_FOLDER_FLAGS, *_ROOT_FLAGS):
            found += [word] if equals else [word, following]
        elif _SEARCHPATH.fullmatch(word):
            found.append(word)
    return found


def own_folders(words: Sequence[str]) -> Iterator[Path]:
    """The folders that `--config-dir FOLDER` and `hydra.searchpath=[FOLDER,…]` add."""
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if flag in _FOLDER_FLAGS:
            yield Path(expanded(value if equals else following))
        elif match := _SEARCHPATH.fullmatch(word):
            for entry in match[1].split(","):
                place = entry.strip().strip("'\"")
                if "pkg://" not in place:
                    yield Path(expanded(place.removeprefix("file://")))


@functools.cache
def _keys(root: str) -> Keys:
    content = yaml.safe_load((CONF / f"{root}.yaml").read_text(encoding="utf-8"))
    usual = {
        group: choice
        for entry in content["defaults"]
        if isinstance(entry, dict)
        for group, choice in entry.items()
        if not group.startswith("override ")
    }
    own = {key: None for key in content if key not in ("defaults", "hydra")}
    if "task" not in usual:
        return Keys(root, usual, own)
    found: dict[str, Any] = {}
    for prefix, schema in (*GROUPS.items(), ("wandb", WandbConfig), ("study", StudyConfig)):
        found |= _fields(schema, prefix)
    top = typing.get_type_hints(Config)
    found |= {key: top.get(key, int if key == "seed" else None) for key in own}
    for task in options("task"):
        file = CONF / ("explain/base.yaml" if task == "explain" else f"task/{task}.yaml")
        given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        given = given if task == "explain" else given.get(task) or {}
        found |= {f"{task}.{key}": None for key in given}
    return Keys(root, usual | {"explain": "relevance"}, found)


def _fields(schema: type, prefix: str) -> dict[str, Any]:
    """Every key of a dataclass and of those that its fields hold."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(schema).items():
        inner = next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)
        found[f"{prefix}.{name}"] = hint
        if inner:
            found |= _fields(typing.cast(type, inner), f"{prefix}.{name}")
    return found


def typed_keys(overrides: Iterable[Any]) -> tuple[str, ...]:
    """The dotted keys that parsed overrides of Hydra's set, groups included; a mapping means the keys in it."""
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
