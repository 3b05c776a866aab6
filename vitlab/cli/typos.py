"""Overrides that no command can mean (missing keys and choices, arguments without `=`), and what to type instead.

They are answered before Hydra reads them, whose own errors name neither what is allowed nor what is near.
"""

from __future__ import annotations

import difflib
import re
import shlex
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vitlab.cli.flags import FLAGS, PAGE, hint_for, split_command
from vitlab.cli.keys import Keys, keys_of
from vitlab.cli.values import is_path_of_user, mistake_in_value, parsed, pieces, split_override, typed
from vitlab.config.choices import CONF, options

OTHER_NAMES: Mapping[str, str] = {
    "batch": "recipe.batch_size", "bs": "recipe.batch_size", "learning_rate": "recipe.lr", "wd": "recipe.weight_decay",
    "opt": "recipe.optimizer", "gpus": "devices", "num_gpus": "devices", "num_workers": "workers",
    "num_epochs": "recipe.epochs", "data_root": "dataset.root", "data_dir": "dataset.root", "data_path": "dataset.root",
    "name": "study.name", "img_size": "model.image_size", "input_size": "model.image_size",
    "image_size": "model.image_size", "label_smoothing": "augment.smoothing", "data": "dataset", "arch": "model",
    "ema": "recipe.ema_decay", "amp": "recipe.precision", "output": "output_dir", "out": "output_dir",
}  # fmt: skip
"""What other programs call a key of ours that has another name here."""
SENTENCES: Mapping[str, Mapping[str, str]] = {
    "config": {
        "resume": "the same command again continues where it stopped; to evaluate a checkpoint: "
        "task=evaluate checkpoint=FILE",
        "table": "tables are made by the other command: python analyze.py table=TABLE; to train one's cells: "
        "experiment=TABLE",
    },
    "analyze": {
        "experiment": "run.py trains an experiment; its table is python analyze.py table=TABLE",
        "checkpoint": "run.py evaluates checkpoints: python run.py task=evaluate checkpoint=FILE",
    },
}
"""Keys that people look for and that are done in another way here."""


def mistakes_in_words(words: Sequence[str], root: str = "config") -> list[str]:
    """Return a line for each override in a command's `words` that is a mistake, with what to type instead.

    `root` is the file under conf/ that the command starts from. What only Hydra can judge (deletions, a package, a root
    file of the user's own) is left to it.
    """
    keys = keys_of(root, words)
    found, left = explain_bare_words(split_command(words)[1], keys)
    for word in left:
        split = split_override(word)
        if split is not None:
            found += _mistakes(*split, keys)
    return list(dict.fromkeys(found))


def _mistakes(sign: str, key: str, package: str, value: str, keys: Keys) -> list[str]:
    if not key:
        return [f"={value}: a key is missing; type key=value"]
    if sign == "~" and not keys.is_group(key):
        return []
    if sign == "++" and keys.is_group(key):
        return [f"++{key}{package}: a choice is made, not added; type {typed(f'{key}{package}', value)}"]
    if keys.is_group(key):
        return mistakes_in_choice(key, package, value, keys)
    if key.startswith(("hydra.", "hydra/")):
        return _mistakes_in_hydra(key, value)
    if keys.closed and (line := missing_key(key, value, keys)):
        return [line]
    return [line] if (line := mistake_in_value(key, value, keys)) else []


def _mistakes_in_hydra(key: str, value: str) -> list[str]:
    if key == "hydra/sweeper" and value != "study":
        return [f"{typed(key, value)}: vitlab plans every sweep by itself (hydra/sweeper=study); leave it out"]
    if key.startswith("hydra/") and not re.fullmatch(r"[A-Za-z_][\w-]*", value):
        return [f"{typed(key, value)}: a name is needed, one choice; python run.py --info shows what is chosen"]
    return []


def missing_key(key: str, value: str, keys: Keys) -> str | None:
    """The line for a key that does not exist; None for one that does."""
    if key in keys.types or (key in keys.top and not keys.below(key)):
        return None
    first, *rest = key.split(".")
    if key in keys.top:
        below = [f"{key}.{name}" for name in keys.below(key)]
        fitting = [name for name in below if value in typing.get_args(keys.types[name])]
        fitting = [f"{key}.name"] if key == "study" else fitting
        instead = f"type {typed(fitting[0], value)}" if fitting else f"its keys: {', '.join(below)}"
        return None if value.startswith("{") else f"{key}: holds keys of its own and takes no value; {instead}"
    if not rest:
        return _missing_top(key, value, keys)
    level = first
    while rest and (below := keys.below(level)):
        if rest[0] not in below:
            near = difflib.get_close_matches(rest[0], below, n=1)
            full = ".".join([level, *near, *rest[1:]])
            return f"{key}: there is no such key.{_did_you_mean(full, value) if near else _known(below)}"
        level, rest = f"{level}.{rest[0]}", rest[1:]
    if level in keys.types and rest:
        return f"{key}: there is no such key, as {level} holds no others"
    return None if first in keys.top else _missing_top(key, value, keys)


def _missing_top(key: str, value: str, keys: Keys) -> str:
    """The same for a key without a group: perhaps a field of one, or a name that it has elsewhere."""
    there_is_none = f"{key}: there is no such key"
    if key in SENTENCES[keys.root]:
        return f"{there_is_none}; {SENTENCES[keys.root][key]}"
    full = [OTHER_NAMES[key]] if OTHER_NAMES.get(key) in (*keys.types, *keys.groups) else keys.ending_in(key)
    if full:
        several = f" (also {', '.join(full[1:4])})" if len(full) > 1 else ""
        return f"{there_is_none}; {_takes(full[0], value)}{several}"
    other = keys_of({"config": "analyze", "analyze": "config"}[keys.root])
    program = {"config": "analyze.py", "analyze": "run.py"}[keys.root]
    if key.split(".")[0] in other.top or (keys.root == "analyze" and other.ending_in(key)):
        own = f"its keys: {', '.join(keys.top)}"
        return f"{key}: is a key of {program}, not of {'run.py' if program == 'analyze.py' else 'analyze.py'}; {own}"
    flag = f"--{key}"
    if ours := FLAGS.get(flag) or FLAGS.get(flag.replace("_", "-")):
        return f"{there_is_none}; type {ours} ({PAGE})"
    leaves = {name.rsplit(".", 1)[1] for name in keys.types if "." in name}
    if near := difflib.get_close_matches(key, [*keys.top, *sorted(leaves)], n=1):
        full = near[0] if near[0] in keys.top else keys.ending_in(near[0])[0]
        return f"{there_is_none}.{_did_you_mean(full, value)}"
    return f"{there_is_none}.{_known(keys.top)}"


def _takes(key: str, value: str) -> str:
    if key == "recipe.precision" and value.lower() in ("true", "1", "yes"):
        value = "bf16"
    return f"type {typed(key, value)}"


def _did_you_mean(key: str, value: str) -> str:
    return f" Did you mean {typed(key, value)}?"


def _known(names: Sequence[str]) -> str:
    return f" Known: {', '.join(names)}."


_ONE_CHOICE = {
    "table": "analyze.py makes one table at a time",
    "experiment": "an experiment is a whole study",
    "task": "a command does one task",
    "explain": "a command draws one kind of figure",
}
"""Groups that take one choice per command, and why."""


def mistakes_in_choice(group: str, package: str, value: str, keys: Keys) -> list[str]:
    """Lines for a value of a group that is not one choice, or a sweep of choices, that exist."""
    known, key = keys.choices(group), f"{group}{package}"
    names = [name.strip("'\"") for name in pieces(value)]
    if value.startswith("[") and value.endswith("]"):
        inner = [name.strip("'\"") for name in pieces(value[1:-1])]
        fitting = [name for name in inner if name in known] or known[:2]
        return [f"{typed(key, value)}: one choice; a sweep is {typed(key, ','.join(fitting))}"]
    if len(names) > 1 and all(names) and (why := _ONE_CHOICE.get(group)):
        return [f"{typed(key, value)}: {why}; type {typed(key, names[0])}, and the others in commands of their own"]
    if not keys.closed or value.startswith("{"):
        return []
    if not any(names):
        usual = keys.usual.get(group) or known[0]
        return [f"{key}: a choice is missing; type {typed(key, usual)}, or another of {', '.join(known)}"]
    if not all(names):
        left = ",".join(name for name in names if name)
        return [f"{typed(key, value)}: a choice is missing next to a comma; type {typed(key, left)}"]
    override = parsed(f"{key}={value}")
    if override is not None and override.is_interval_sweep():
        return [
            f"{typed(key, value)}: {group} has choices, not an interval; a sweep is {typed(key, ','.join(known[:2]))}"
        ]
    if "(" in value and override is not None:
        names = _names_of_function(override, known)
        if not names:
            return [f"{typed(key, value)}: no choice fits; there are {', '.join(known)}"]
    found = []
    for name in names:
        if name in known or "${" in name:
            continue
        if name == "null" and keys.usual.get(group) is None:
            return [f"{typed(key, value)}: to choose none, leave {key} out"]
        found.append(hint_for(group, name) or _no_choice(group, key, name, value, known))
    return found


def _names_of_function(override: Any, known: Sequence[str]) -> list[str]:
    value = override.value()
    if hasattr(value, "filter"):
        return value.filter(known)
    return [str(getattr(name, "text", name)) for name in getattr(value, "list", ())]


def _no_choice(group: str, key: str, name: str, value: str, known: Sequence[str]) -> str:
    there_is_none = f"{typed(key, name)}: there is no such choice"
    if both := _several(group, name, known):
        return both
    if is_path_of_user(name) and group in ("dataset", "pretrain"):
        kind, field = {"dataset": ("folder", "root"), "pretrain": ("checkpoint", "path")}[group]
        return f"{there_is_none}; type {key}={kind} {typed(f'{key}.{field}', name)}"
    if group == "model" and "_patch" in name:
        return f"{there_is_none}; a ViT of timm's is {typed('model.name', name)}"
    if near := difflib.get_close_matches(name, known, n=1):
        return f"{there_is_none}. Did you mean {typed(key, near[0])}?"
    return f"{there_is_none}. Known: {', '.join(known)}."


def _several(group: str, name: str, known: Sequence[str]) -> str | None:
    """The line for choices joined by a sign, such as `cutmix+mixup`: one choice, plus the values of the others."""
    for sign in ("+", "|", "&", "/", " ", ";", ":"):
        names = [part.strip() for part in name.split(sign)]
        if len(names) < 2 or not all(part in known for part in names):
            continue
        sets = {part: _fields_set(group, part) for part in names}
        fields = [field for values in sets.values() for field in values]
        sweep = typed(group, ",".join(names))
        if group != "augment" or len(fields) != len(set(fields)):
            return f"{typed(group, name)}: one choice; a sweep is {sweep}"
        base = max(reversed(names), key=lambda part: len(sets[part]))
        others = [typed(f"{group}.{f}", str(v)) for part in names if part != base for f, v in sets[part].items()]
        together = " ".join([f"{group}={base}", *others])
        return f"{typed(group, name)}: one choice; all of them in one cell are {together}; a sweep is {sweep}"
    return None


def _fields_set(group: str, name: str) -> dict[str, Any]:
    """What conf/GROUP/NAME.yaml sets, with what it inherits."""
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    parents = [entry for entry in content.pop("defaults", []) if entry not in ("schema", "_self_")]
    return {key: value for parent in parents for key, value in _fields_set(group, parent).items()} | content


_DASHES = "‐‑‒–—−－"
_IDENTITY = re.compile(r"c[0-9a-f]{11}")
_FLAGS = {"help": "--help", "multirun": "-m", "sweep": "-m", "version": "--version", "config": "--cfg job"}
_PROGRAMS = {"config": "run.py", "analyze": "analyze.py"}


def explain_bare_words(words: Sequence[str], keys: Keys) -> tuple[list[str], list[str]]:
    """Lines for arguments without `=` and overrides with spaces in them, and the remaining arguments."""
    found, left, i = [], [], 0
    while i < len(words):
        word = words[i]
        joined, used = _joined(words[i:])
        if used > 1:
            shown = " ".join(words[i : i + used])
            found.append(f"{shown}: an override has no spaces in it; type {shlex.quote(joined)}")
        elif "=" not in word and not word.startswith("~"):
            found.append(_explain(word, keys))
        else:
            left.append(word)
        i += used
    return found, left


def _joined(words: Sequence[str]) -> tuple[str, int]:
    """The override that begins with the first word, and how many words it was typed in: `seed = 0`, `seed=0, 1`."""
    joined, used = words[0], 1
    name = re.fullmatch(r"[\w.]+", joined) is not None
    if name and words[1:2] == ["="] and len(words) > 2:
        joined, used = f"{joined}={words[2]}", 3
    elif name and len(words) > 1 and words[1].startswith("="):
        joined, used = joined + words[1], 2
    elif re.fullmatch(r"[\w.]+:", joined) and len(words) > 1 and "=" not in words[1]:
        joined, used = f"{joined[:-1]}={words[1]}", 2
    elif re.fullmatch(r"[\w.]+=", joined) and len(words) > 1 and "=" not in words[1]:
        joined, used = joined + words[1], 2
    while len(words) > used and "=" not in words[used] and (joined.endswith(",") or words[used].startswith(",")):
        joined, used = joined + words[used], used + 1
    return joined, used


def _explain(word: str, keys: Keys) -> str:
    program = _PROGRAMS[keys.root]
    no_override = f"{word}: is no override"
    plain = unicodedata.normalize("NFKC", word)
    if word[:1] in _DASHES:
        hyphens = "-" if len(word) == 2 else "--"
        return f"{no_override}; type {hyphens}{word.lstrip(_DASHES)}, with the hyphen of the keyboard"
    if "=" in plain:
        return f"{no_override}; type {shlex.quote(plain)}, with the half-width ="
    if word in _FLAGS:
        return f"{no_override}; type python {program} {_FLAGS[word]}"
    if keys.root == "config" and word == "train":
        return f"{no_override}; python {program} trains, without it"
    if meant := _meant(word, keys):
        return f"{no_override}; type {' or '.join(meant)}"
    return f"{no_override}; options are typed as key=value; python {program} --help lists the keys"


def _meant(word: str, keys: Keys) -> list[str]:
    """The overrides that an argument without `=` may mean."""
    if chosen := [f"{group}={word}" for group in keys.groups if word in keys.choices(group)]:
        return chosen
    if keys.root == "config" and word in options("table"):
        return [f"experiment={word}"] if word in options("experiment") else []
    if switches := [key for key, kind in keys.types.items() if kind is bool and word in (key, key.rsplit(".", 1)[-1])]:
        return [f"{key}=true" for key in switches]
    path = Path(word)
    if keys.root == "config":
        if _IDENTITY.fullmatch(word) or path.is_file():
            return [f"task=evaluate {shlex.quote(f'checkpoint={word}')}"]
        if (path / "train").is_dir():
            return [f"dataset=folder {shlex.quote(f'dataset.root={word}')}"]
    elif path.suffix == ".csv" and path.is_file():
        return [shlex.quote(f"reference={word}")]
    elif Path(f"runs/studies/{word}.json").is_file():
        return [shlex.quote(f"study={word}")]
    return []
