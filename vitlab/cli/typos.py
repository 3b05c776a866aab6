"""Keys and choices of a command line that do not exist, answered before Hydra sees them: its own answer names neither
what is allowed nor what is near."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence

from vitlab.cli.bare_words import explain_bare_words
from vitlab.cli.choice_typos import mistakes_in_choice
from vitlab.cli.flags import split_command
from vitlab.cli.hints import FLAGS, PAGE
from vitlab.cli.keys import Keys, keys_of
from vitlab.cli.values import mistake_in_value, split_override, typed

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
    """A line for each override in a command's `words` that cannot be meant, with what to type instead.

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
