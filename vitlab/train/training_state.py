"""Where a training is and what its figures were: the part of its state that is no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.core.errors import UserError
from vitlab.core.files import save_arrays
from vitlab.core.integrity import DamagedError, contradiction, train_again
from vitlab.core.metrics import PRIMARY
from vitlab.train.distributed import gather_values
from vitlab.train.evaluate import Evaluation


def save_predictions(folder: Path, name: str, evaluation: Evaluation, classes: Sequence[str]) -> None:
    """What the model said of every evaluation image, and the names of the classes, in predictions.npz.

    Averaged weights have theirs in predictions_ema.npz.
    """
    file = "predictions.npz" if name == "eval" else "predictions_ema.npz"
    names = np.array(list(classes), dtype=str)
    save_arrays(folder / file, index=evaluation.index, label=evaluation.label,
                top5=evaluation.ranking, loss=evaluation.losses, classes=names)  # fmt: skip


class Progress:
    """What is known of a training apart from its tensors: where it is, and its figures so far."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.epoch = self.step = 0
        self.seconds = self.loss_sum = self.images_per_second = 0.0
        self.last: dict[str, dict[str, float]] = {}
        self.best: dict[str, dict[str, float]] = {}
        self.bad_images: dict[str, dict[int, str]] = {"train": {}, "eval": {}}

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

    def load(self, state: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
        """Continue from the state of `path`. Raises DamagedError where it is not one of a cell of this experiment."""
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

    def result(self, derived: dict[str, Any], devices: int) -> dict[str, Any]:
        ema = {"last": self.last["eval_ema"], "best": self.best["eval_ema"]} if "eval_ema" in self.last else None
        return {
            "last": self.last.get("eval"), "best": self.best.get("eval"), "ema": ema, "epochs": self.epoch,
            "num_eval": derived["num_eval"] - len(self.bad_images["eval"]), "num_train": derived["num_train"],
            "bad_images": {split: [found[i] for i in sorted(found)] for split, found in self.bad_images.items()},
            "num_parameters": derived["num_parameters"], "wall_seconds": self.seconds,
            "device_seconds": self.seconds * devices, "images_per_second": self.images_per_second, "derived": derived,
        }  # fmt: skip
