"""What each file of a record holds, as shapes (see vitlab/core/integrity.py) that its readers rely on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitlab.config import GROUPS
from vitlab.core.integrity import Shape, digest_of, finite, number, percent, plain_fingerprints, texts

FIGURES: dict[str, Shape] = {"loss": number, "top1": percent, "top5": percent}
"""An evaluation: mean cross-entropy in nats, accuracies in percent."""
ROW: dict[str, Shape] = {
    "epoch": int, "step?": int, "train/loss?": number, "train/lr?": number, "images_per_second?": finite,
    "seconds?": finite,
} | {f"{name}/{key}?": shape for name in ("eval", "eval_ema") for key, shape in FIGURES.items()}  # fmt: skip
"""A line of metrics.jsonl."""
_ATTEMPT: dict[str, Shape] = {
    "code?": str, "commit?": str, "dirty?": bool, "packages?": texts, "device_name?": str, "devices?": int,
    "threads?": int, "compiled?": bool, "from_step?": int,
    "data?": lambda data: isinstance(data, str) or plain_fingerprints(data),
}  # fmt: skip
_FIGURES = {"epoch": int, **FIGURES}
FILES: dict[str, dict[str, Shape]] = {
    "config.yaml": {
        "name": str, "experiment": {"seed": int} | {group: dict for group in GROUPS}, "labels": texts,
        "runtime": {"devices": int},
    },
    "provenance.json": _ATTEMPT | {"earlier?": [_ATTEMPT]},
    "failure.json": {"type": str, "message": str},
    "result.json": {
        "last?": _FIGURES, "best?": _FIGURES, "ema?": {"last": _FIGURES, "best": _FIGURES}, "epochs?": int,
        "num_train": int, "num_eval": int, "num_parameters": int, "wall_seconds": finite, "device_seconds": finite,
        "images_per_second": finite, "bad_images?": {"train": [str], "eval": [str]}, "derived?": dict, "files?": dict,
        "finished_at?": str,
    },
}  # fmt: skip
_SUMMED = {key.removesuffix("?") for key in FILES["result.json"]} - {"derived", "files", "bad_images"}


def summary_figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a table takes from a W&B summary (flat, `last/top1`): the part that its digest is of."""
    taken = {*_SUMMED, "hits", "curve"}
    return {key: value for key, value in summary.items() if key.split("/")[0] in taken and value is not None}


def experiment_digest(experiment: Mapping[str, Any]) -> str:
    """The digest of a plain experiment in a W&B configuration, whose nulls need not survive the way there."""
    return digest_of(_without_nulls({key: experiment[key] for key in ("seed", *GROUPS)}))


def _without_nulls(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value is not None
    }


STUDY: dict[str, Shape] = {
    "name": str, "table?": str,
    "cells": [{"id": str, "name": str, "part": str, "labels": texts, "aliases": [str], "experiment?": dict}],
}  # fmt: skip
"""A file of `output_dir/studies`."""
