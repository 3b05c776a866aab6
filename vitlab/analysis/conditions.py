"""Assign cells to the rows and columns of a table by their resolved values, never by their labels."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vitlab.analysis.sources.records import flatten
from vitlab.analysis.table_model import TableSpec
from vitlab.config import GROUPS, ConfigError, choice, plain, suggest
from vitlab.config.effects import settle_group

_LEFT_OPEN = (
    "pretrain.recipe.", "pretrain.augment.",
    "pretrain.dataset.num_classes", "pretrain.dataset.num_train", "pretrain.dataset.num_eval",
)  # fmt: skip
"""What a row leaves open about a pre-training: its recipe, and counts that follow from its data."""
PAIRED = "paired"
"""What a frame has in place of a further seed that follows the cell's (see `varied`)."""
COLUMN = "(column)"
"""The frame's column that holds the table's column of each cell."""


@dataclass(frozen=True)
class Condition:
    """A row of the table before anything is computed."""

    label: str
    members: tuple[int, ...]
    """Index labels of the frame's rows."""
    keys: frozenset[str]
    """The columns that define the condition."""
    levels: tuple[tuple[str, str], ...] = ()
    """(Group, the level's name) of each group that the conditions vary in."""


def find_conditions(frame: pd.DataFrame, spec: TableSpec) -> list[Condition]:
    """The rows of the table, the baseline first. Raises ConfigError for a factor, row, tick or baseline unknown."""
    if spec.factor is not None and spec.factor not in GROUPS:
        raise ConfigError("table", f"factor {spec.factor!r} is no group.{suggest(spec.factor, list(GROUPS))}")
    if spec.rows and not spec.factor:
        raise ConfigError(
            "table", f"table={spec.name} names rows ({', '.join(spec.rows)}) but no factor; give table.factor"
        )
    if spec.factor and not any(c.startswith(f"{spec.factor}.") for c in frame.columns):
        raise ConfigError(
            "table", f"table={spec.name} has rows of {spec.factor}, which no cell has; choose another table=NAME"
        )
    for title, key in spec.ticks.items():
        if spec.factor and key not in frame:
            raise ConfigError(
                "table", f"the column {title!r} shows {key!r}, which no cell has; fix `ticks` in the layout"
            )
    conditions = _declared(frame, spec) if spec.factor and spec.rows else _found(frame, spec)
    baseline = _baseline(conditions, spec)
    return [baseline, *(c for c in conditions if c is not baseline)]


@dataclass(frozen=True)
class Against:
    """What each condition is compared with."""

    own: tuple[int | None, ...]
    """For each condition the index of its baseline; a baseline's is its own; None where its block has none."""
    phrase: str
    """The baselines, for the caption."""
    whole: bool
    """Whether the comparisons are simultaneous over the data sets too."""


def find_baselines(conditions: Sequence[Condition], spec: TableSpec, datasets: int) -> tuple[list[Condition], Against]:
    """The conditions block by block, each block's baseline first, and what each of them is compared with.

    A block is a combination of the levels of all groups but the ablated one: a model, a pre-training, a recipe. Data
    sets are columns, and each is a block. Raises ConfigError for blocks where nothing but one group and one data set
    varies.
    """
    base = conditions[0]
    groups = [group for group, _ in base.levels]
    ablated = next((g for g in (spec.factor, *_ABLATED) if g in groups), None)
    if spec.against == "one" or (spec.against is None and base.label == spec.baseline and len(groups) > 1):
        return list(conditions), Against((0,) * len(conditions), base.label, False)
    if len(groups) < 2 or ablated is None:
        if spec.against == "block" and datasets < 2:
            raise ConfigError(
                "baseline",
                "block compares within each model, data set or pre-training, and this table has one of each; leave "
                "it out",
            )
        return list(conditions), Against((0,) * len(conditions), base.label, datasets > 1)
    level = dict(base.levels)[ablated]
    blocks: dict[tuple[str, ...], list[Condition]] = {}
    for condition in conditions:
        key = tuple(name for group, name in condition.levels if group != ablated)
        blocks.setdefault(key, []).append(condition)
    ordered, own = [], []
    for members in blocks.values():
        members.sort(key=lambda c: dict(c.levels)[ablated] != level)
        first = len(ordered) if dict(members[0].levels)[ablated] == level else None
        ordered += members
        own += [first] * len(members)
    others = " and ".join(_NAMES[group] for group in groups if group != ablated)
    return ordered, Against(tuple(own), f"{level} of the same {others}", True)


_ABLATED = ("augment", "pretrain", "recipe", "model")
"""Which of several groups that vary is the ablated one: the first of these."""
_NAMES = {
    "model": "model",
    "dataset": "data set",
    "augment": "augmentation",
    "pretrain": "pre-training",
    "recipe": "recipe",
}


def config_columns(frame: pd.DataFrame) -> list[str]:
    return [c for c in frame.columns if c.split(".")[0] in GROUPS]


def varying(frame: pd.DataFrame) -> list[str]:
    """The configuration's columns in which the cells differ."""
    return [c for c in config_columns(frame) if frame[c].map(repr).nunique() > 1]


def same(found: Any, wanted: Any) -> bool:
    """Equality with missing values equal to one another."""
    if wanted is None or wanted != wanted:
        return found is None or found != found
    return found == wanted


def _found(frame: pd.DataFrame, spec: TableSpec) -> list[Condition]:
    """A row for each combination of what varies."""
    columns = [c for c in varying(frame) if not c.startswith("dataset.")]
    if spec.factor:
        columns = [c for c in columns if c.startswith(f"{spec.factor}.")]
    found: dict[tuple[str, ...], list[int]] = {}
    texts = [frame[c].map(repr) for c in columns]
    for i, key in zip(frame.index, zip(*texts, strict=True) if texts else [()] * len(frame), strict=True):
        found.setdefault(key, []).append(i)
    groups = list(dict.fromkeys(c.split(".")[0] for c in columns))
    conditions = []
    for members in found.values():
        levels = {g: _level(frame, members[0], [c for c in columns if c.startswith(f"{g}.")]) for g in groups}
        label = " / ".join(levels.values()) or _only(frame, members[0])
        conditions.append(Condition(label, tuple(members), frozenset(columns), tuple(levels.items())))
    return conditions


def _level(frame: pd.DataFrame, i: int, columns: Sequence[str]) -> str:
    """The option's name where it differs between the levels, else the values that vary."""
    column = f"label.{columns[0].split('.')[0]}"
    if column in frame:
        alike = frame[frame[column] == frame.at[i, column]]
        if len(alike[list(columns)].map(repr).drop_duplicates()) == 1:
            return without_brackets(str(frame.at[i, column]), common_brackets(frame[column]))
    return " ".join(f"{c.split('.', 1)[1]}={frame.at[i, c]}" for c in columns)


def common_brackets(labels: Iterable[Any]) -> list[str]:
    """What different labels all have in their brackets: `["image_size=32"]` of `a(image_size=32)` and
    `b(depth=6,image_size=32)`."""
    found = [label.partition("(")[2].rstrip(")").split(",") for label in dict.fromkeys(map(str, labels))]
    return [part for part in found[0] if part and all(part in other for other in found)] if len(found) > 1 else []


def without_brackets(label: str, common: Sequence[str]) -> str:
    """The label without these parts of its brackets."""
    if not common:
        return label
    name, _, inside = label.partition("(")
    own = [part for part in inside.rstrip(")").split(",") if part not in common]
    return f"{name}({','.join(own)})" if own else name


def _only(frame: pd.DataFrame, i: int) -> str:
    return str(frame.at[i, "label.augment"]) if "label.augment" in frame else "all cells"


def _declared(frame: pd.DataFrame, spec: TableSpec) -> list[Condition]:
    """The rows that the table's file names."""
    assert spec.factor and spec.rows
    conditions, keys = [], [c for c in frame.columns if c.startswith(f"{spec.factor}.")]
    for name in spec.rows:
        values = flatten(plain(settle_group(spec.factor, choice(spec.factor, name))), f"{spec.factor}.")
        wanted = {k: v for k, v in values.items() if k in keys and not k.startswith(_LEFT_OPEN)}
        members = [i for i in frame.index if all(_fits(frame.at[i, k], v) for k, v in wanted.items())]
        conditions.append(Condition(name, tuple(members), frozenset(keys), ((spec.factor, name),)))
    if not any(c.members for c in conditions):
        raise ConfigError("table", f"no cell of the study is a row of table={spec.name} ({', '.join(spec.rows)})")
    return conditions


def _fits(found: Any, wanted: Any) -> bool:
    return found == PAIRED or same(found, wanted)


def _baseline(conditions: list[Condition], spec: TableSpec) -> Condition:
    names = [c.label for c in conditions]
    named = [c for c in conditions if spec.baseline in dict(c.levels).values()]
    if spec.baseline is None:
        return next((c for c in conditions if c.label.split(" / ")[0] in ("none", "scratch", "deit")), conditions[0])
    if spec.baseline in names:
        return conditions[names.index(spec.baseline)]
    if named and spec.against != "one":  # the ablated condition of each block
        return named[0]
    known = [*names, "block", "one"]
    raise ConfigError("baseline", f"{spec.baseline!r} is no row of this table.{suggest(spec.baseline, known)}")


def dataset_labels(frame: pd.DataFrame) -> list[str]:
    """For each cell its data set's name, with what varies within it: data sets never share a column."""
    if "dataset.name" not in frame:
        return ["?"] * len(frame)
    inner = {}
    for name, alike in frame.groupby("dataset.name"):
        columns = [c for c in alike.columns if c.startswith("dataset.") and PAIRED not in set(map(str, alike[c]))]
        inner[name] = [c for c in columns if alike[c].map(repr).nunique() > 1]
    return [
        " ".join([str(name), *(f"{c.split('.', 1)[1]}={frame.at[i, c]}" for c in inner[name])])
        for i, name in frame["dataset.name"].items()
    ]
