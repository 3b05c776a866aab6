"""The state of a training: where it is, its figures, and its file, of which a valid one exists at every instant."""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitlab.core.archives import is_archive, require_whole_archive, save_arrays, save_tensors
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, NewerError, contradiction, train_again
from vitlab.core.metrics import PRIMARY
from vitlab.train.distributed import gather_values
from vitlab.train.evaluate import Evaluation

SCHEMA_VERSION = 1


def save_predictions(folder: Path, name: str, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """What the model said of every evaluation image, and the names of the classes, in predictions.npz.

    Averaged weights have theirs in predictions_ema.npz.
    """
    file = "predictions.npz" if name == "eval" else "predictions_ema.npz"
    names = np.array(list(classes), dtype=str)
    save_arrays(folder / file, index=evaluation.index, label=evaluation.label,
                top5=evaluation.ranking, loss=evaluation.losses, classes=names)  # fmt: skip


class TrainingProgress:
    """What is known of a training apart from its tensors: where it is, and its figures so far."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.epoch = self.step = 0
        self.seconds = self.device_seconds = self.loss_sum = self.images_per_second = 0.0
        self.last: dict[str, dict[str, float]] = {}
        self.best: dict[str, dict[str, float]] = {}
        self.bad_images: dict[str, dict[int, str]] = {"train": {}, "eval": {}}

    def add_time(self, seconds: float, devices: int, sharing: float) -> None:
        """Add seconds on so many devices, which so many cells have shared on average."""
        self.seconds += seconds
        self.device_seconds += seconds * devices / sharing

    def times(self, devices: int) -> dict[str, float]:
        """The columns of metrics.jsonl on the time so far; of the devices only where it does not follow from their
        number."""
        own = math.isclose(self.device_seconds, self.seconds * devices, rel_tol=1e-9)
        return {"seconds": self.seconds} | ({} if own else {"device_seconds": self.device_seconds})

    def note_bad(self, train: dict[int, str], evaluated: dict[int, str]) -> int:
        """Remember the images that any process has left out; returns how many there are. Every process calls this."""
        for share in gather_values((train, evaluated)) or ():
            for split, found in zip(self.bad_images, share, strict=True):
                self.bad_images[split] |= found
        return sum(map(len, self.bad_images.values()))

    def record_evaluation(self, name: str, evaluation: Evaluation) -> list[str]:
        """Remember an evaluation of this epoch; returns [name] if it is the best so far (first of equals)."""
        figures = {"epoch": self.epoch, **evaluation.row()}
        self.last[name] = figures
        if name in self.best and figures[PRIMARY] <= self.best[name][PRIMARY]:
            return []
        self.best[name] = figures
        return [name]

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def load(self, state: dict[str, Any], expected: dict[str, Any], path: Path, devices: int) -> None:
        """Continue from the state of `path` on so many devices. Raises DamagedError where it is not one of a cell of
        this experiment."""
        if "seconds" in state:  # versions in which cells shared no devices kept no more
            state = {"device_seconds": state["seconds"] * devices} | state
        if absent := [key for key in (*vars(self), "config", "model", "optimizer") if key not in state]:
            raise DamagedError(path, f"damaged ({absent[0]} is missing)", train_again(path.parent.name))
        if other := contradiction(state["config"], expected):
            raise DamagedError(path, f"belongs to another cell (of another {other})", train_again(path.parent.name))
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                f"the data have changed: this record was begun on files with fingerprint {state['fingerprint']}, "
                f"dataset.root now holds {self.fingerprint}; restore the data, or train again with study.rerun=all"
            )
        for key in vars(self):
            setattr(self, key, state[key])

    def result(self, derived: dict[str, Any]) -> dict[str, Any]:
        ema = {"last": self.last["eval_ema"], "best": self.best["eval_ema"]} if "eval_ema" in self.last else None
        return {
            "last": self.last.get("eval"), "best": self.best.get("eval"), "ema": ema, "epochs": self.epoch,
            "num_eval": derived["num_eval"] - len(self.bad_images["eval"]), "num_train": derived["num_train"],
            "bad_images": {split: [found[i] for i in sorted(found)] for split, found in self.bad_images.items()},
            "num_parameters": derived["num_parameters"], "wall_seconds": self.seconds,
            "device_seconds": self.device_seconds, "images_per_second": self.images_per_second, "derived": derived,
        }  # fmt: skip


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, whole or not at all. Raises DiskError where the disk is full or read-only."""
    save_tensors(path, state | {"schema_version": SCHEMA_VERSION})


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn a state that does not fit what is loaded from it into a DamagedError that names the file."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DamagedError(
            path, f"does not fit the cell's model or optimizer ({reason})", train_again(path.parent.name)
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, on the CPU, or None where there is none.

    Raises DamagedError for a damaged file, NewerError for a newer schema, UserError for another program's file.
    """
    if not path.exists():
        return None
    remedy = train_again(path.parent.name)
    if path.is_dir():
        raise DamagedError(path, "is a folder, not a file", remedy)
    if is_archive(path):
        require_whole_archive(path, remedy)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        state = {}
    except Exception as error:  # a damaged pickle makes the reader raise nearly anything
        reason = (str(error).splitlines() or ["it is empty"])[0][:120]
        raise DamagedError(path, f"damaged, or cannot be read ({reason})", remedy) from error
    if not isinstance(state, dict) or not isinstance(state.get("schema_version"), int):
        raise UserError(
            f"{path}: not of vitlab, or damaged. Checkpoints of other programs can be evaluated (task=evaluate), "
            "explained and fine-tuned, but cannot be resumed; to start from its weights: pretrain=checkpoint "
            f"pretrain.path={path}"
        )
    if state["schema_version"] > SCHEMA_VERSION:
        raise NewerError(
            f"{path}: written by a newer vitlab (schema {state['schema_version']}, this one reads {SCHEMA_VERSION})"
        )
    return state
