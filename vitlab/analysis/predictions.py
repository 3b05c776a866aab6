"""What cells predicted on the evaluation images: right or wrong for each seed, from folders or from W&B's summaries."""

# The types that pandas declares say too little of what a frame holds.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOptionalIterable=false
# pyright: reportReturnType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vitlab.analysis.same_data import saw_the_same
from vitlab.analysis.sources.wandb_runs import unpacked_hits
from vitlab.study.contents import load_predictions
from vitlab.study.record import Record


def hits(frame: pd.DataFrame, i: int) -> np.ndarray | None:
    """Which evaluation images the cell's last model gets right (N,) bool; None where that is not stored."""
    packed = frame.at[i, "hits"] if "hits" in frame else None
    if isinstance(packed, str):
        return unpacked_hits(packed)
    found = answers(frame, i)
    return None if found is None else found[0] == found[1]


def answers(frame: pd.DataFrame, i: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The class and the predicted class of each evaluation image, (N,) each; W&B's summaries hold neither."""
    if "folder" not in frame or not isinstance(frame.at[i, "folder"], str):
        return None
    if "predictions.npz" in str(frame.at[i, "faults"] if "faults" in frame else ""):
        return None
    content = load_predictions(Record(Path(str(frame.at[i, "folder"]))))
    return None if content is None else (content["label"], content["top5"][:, 0])


def class_names(frame: pd.DataFrame, i: int) -> tuple[str, ...] | None:
    """The classes' names, as the cell's record has them."""
    if "folder" not in frame or not isinstance(frame.at[i, "folder"], str):
        return None
    content = load_predictions(Record(Path(frame.at[i, "folder"])))
    return None if content is None or "classes" not in content else tuple(map(str, content["classes"]))


def all_hits(frame: pd.DataFrame, cells: Sequence[int]) -> np.ndarray | None:
    """(S, N) bool of S cells; None where one of them has none, or their records do not name the same images."""
    if not cells or not all(saw_the_same(frame, cells[0], i) for i in cells[1:]):
        return None
    found = [hits(frame, i) for i in cells]
    known = [array for array in found if array is not None]
    if len(known) < len(cells) or len({len(array) for array in known}) > 1:
        return None
    return np.stack(known)
