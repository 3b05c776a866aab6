"""What the seeds of a row vary: initialisation, order and augmentation always; the pre-training and the subset of the
training images only where they are paired with the seed."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from vitlab.analysis.conditions import PAIRED, Condition, config_columns

COLUMNS = ("pretrain.seed", "dataset.subset_seed")
"""Seeds beside the cell's own."""


def with_paired(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with the word `paired` where a further seed follows the cell's, so that it makes no row of its own.

    It follows where it equals the cell's seed in every one of several seeds of cells that are otherwise alike; a lone
    cell is taken as the others are.
    """
    present = [c for c in COLUMNS if c in frame]
    if not present:
        return frame
    others = [c for c in config_columns(frame) if c not in COLUMNS]
    keys = [tuple(repr(value) for value in row) for row in frame[others].itertuples(index=False)]
    found = frame.copy()
    for column in present:
        equal = [_equal(a, b) for a, b in zip(frame[column], frame["seed"], strict=True)]
        groups: dict[tuple[str, ...], list[int]] = {}
        for place, key in enumerate(keys):
            groups.setdefault(key, []).append(place)
        following = [g for g in groups.values() if all(equal[p] for p in g)]
        several = [g for g in following if frame["seed"].iloc[g].nunique() > 1]
        if several:
            chosen = {p for g in following for p in g}
            values = [PAIRED if p in chosen else v for p, v in enumerate(frame[column])]
            found[column] = pd.Series(values, index=frame.index, dtype=object)
    return found


def _equal(value: object, seed: object) -> bool:
    return value is not None and value == value and value == seed


def varied_lines(
    frame: pd.DataFrame, conditions: Sequence[Condition]
) -> tuple[list[tuple[str, ...]], list[str], list[str]]:
    """What seeds vary and what not: a line of each condition, or one for all; and where rows vary other things."""
    said = [_said(frame, c) for c in conditions]
    known = [line for line in dict.fromkeys(said) if line]
    confounds = []
    for column, name in (("pretrain.seed", "pre-training"), ("dataset.subset_seed", "subset of the training images")):
        rows = [{_is_paired(frame, i, column) for i in c.members if _concerns(frame, i, column)} for c in conditions]
        paired, fixed = ([c.label for c, r in zip(conditions, rows, strict=True) if k in r] for k in (True, False))
        if paired and fixed:
            confounds.append(
                f"the {name} varies with the seed in {', '.join(paired)} and not in {', '.join(fixed)}: their "
                "intervals do not hold the same randomness"
            )
    if len(known) == 1:
        return [()] * len(conditions), [f"seeds vary {known[0]}"], confounds
    return [(f"its seeds vary {line}",) if line else () for line in said], [], confounds


def _said(frame: pd.DataFrame, condition: Condition) -> str:
    if not condition.members or frame.loc[list(condition.members), "seed"].nunique() < 2:
        return ""
    kinds = {str(frame.at[i, "pretrain.kind"]) if "pretrain.kind" in frame else "scratch" for i in condition.members}
    start = "initialisation" if kinds == {"scratch"} else "the initialisation that the start leaves open"
    varies, fixed = [start, "order and augmentation"], []
    if "cell" in kinds:
        paired = all(_is_paired(frame, i, "pretrain.seed") for i in condition.members)
        (varies if paired else fixed).append("the pre-training")
    if kinds == {"checkpoint"}:
        fixed.append("the checkpoint")
    if any(_concerns(frame, i, "dataset.subset_seed") for i in condition.members):
        paired = all(_is_paired(frame, i, "dataset.subset_seed") for i in condition.members)
        (varies if paired else fixed).append("the subset of the training images")
    if "dataset.val_fraction" in frame and any(frame.at[i, "dataset.val_fraction"] for i in condition.members):
        fixed.append("the images set aside to evaluate on")
    return ", ".join(varies) + (f"; not {', '.join(fixed)}" if fixed else "")


def _concerns(frame: pd.DataFrame, i: int, column: str) -> bool:
    """Whether the further seed acts in the cell."""
    if column == "pretrain.seed":
        return "pretrain.kind" in frame and frame.at[i, "pretrain.kind"] == "cell"
    per_class = frame.at[i, "dataset.train_per_class"] if "dataset.train_per_class" in frame else None
    fraction = frame.at[i, "dataset.train_fraction"] if "dataset.train_fraction" in frame else None
    known = per_class is not None and per_class == per_class
    return bool(known or (fraction is not None and fraction == fraction and fraction < 1))


def _is_paired(frame: pd.DataFrame, i: int, column: str) -> bool:
    return column in frame and frame.at[i, column] == PAIRED
