"""What a cell's record holds as far as it can be trusted: read, checked against itself, its faults named."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.core.archives import load_arrays
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, file_digest
from vitlab.study.record import FIGURES, Record, State

if TYPE_CHECKING:
    import numpy as np

_PARTS = {("last",): "eval", ("best",): "eval", ("ema", "last"): "eval_ema", ("ema", "best"): "eval_ema"}
"""Where result.json holds figures → what the rows call them."""
_UNREAD = ("last.pt", "best.pt", "best_ema.pt", "log.txt", "code.patch", "lock")
"""Files that a training reads or writes, and that nothing here opens."""


@dataclass(frozen=True)
class Contents:
    """A record's files, each None where it is absent or cannot be trusted, and what is wrong with those that are."""

    state: State
    """`damaged` where a fault keeps the cell from being used as finished, or from being continued."""
    config: dict[str, Any] | None
    provenance: dict[str, Any] | None
    result: dict[str, Any] | None
    failure: dict[str, Any] | None
    faults: tuple[UserError, ...]
    """Each names its file and what to do."""


def read_contents(record: Record, *, thorough: bool = True) -> Contents:
    """Read a record and check it against itself.

    A finished cell is damaged where its result or its configuration is; faults of its other files are only named. A
    cell that is to be continued is damaged where any of its files is. `thorough=False` leaves out what a table alone
    takes from a finished cell: the values of its configuration, its rows and its predictions.
    """
    if record.folder.exists() and not record.folder.is_dir():
        fault = DamagedError(record.folder, "is a file, not a cell's folder", "move it away")
        return Contents("damaged", None, None, None, None, (fault,))
    state, reading = record.state(), _Reading(record)
    if state == "missing" and not record.folder.exists():
        return Contents("missing", None, None, None, None, ())
    return reading.finished(thorough) if state == "finished" else reading.unfinished(state)


class _Reading:
    """Reads the files of one record and collects their faults."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.faults: dict[Path, UserError] = {}
        self.serious = False

    def finished(self, thorough: bool) -> Contents:
        record = self.record
        result = self.take("result.json", lambda: record.read("result.json"), serious=True)
        digests = (result or {}).get("files") or {}
        if thorough or "config.yaml" not in digests:
            same = _has_digest(record, "config.yaml", digests)
            config = self.take("config.yaml", lambda: _require(record, "config.yaml", verified=same), serious=True)
            if "config.yaml" in digests and not same:
                self.take("config.yaml", lambda: _require_digest(record, "config.yaml", digests), serious=True)
        else:
            config = self.take("config.yaml", lambda: _require_digest(record, "config.yaml", digests), serious=True)
        provenance = self.take("provenance.json", lambda: _provenance(record, required=bool(digests)))
        for name in set(digests) - {"config.yaml"} if thorough else ():
            self.take(name, lambda name=name: _require_digest(record, name, digests))
        if result and not digests:
            rows = self.take("metrics.jsonl", record.rows)
            if config is not None:
                devices = config["runtime"]["devices"]
                self.take("result.json", lambda: _require_agreement(record, result, rows, devices), serious=True)
            if thorough and not self.serious:
                self.take("predictions.npz", lambda: _require_predictions(record, result))
        state: State = "damaged" if self.serious else "finished"
        return Contents(state, config, provenance, result, None, tuple(self.faults.values()))

    def unfinished(self, state: State) -> Contents:
        record = self.record
        config = self.take("config.yaml", lambda: record.read("config.yaml"), serious=True)
        provenance = self.take("provenance.json", lambda: _provenance(record), serious=True)
        failure = self.take("failure.json", lambda: record.read("failure.json"))
        self.take("metrics.jsonl", record.rows, serious=True)
        for name in ("failure.json", *_UNREAD):
            self.take(name, lambda name=name: _require_no_folder(record, name), serious=True)
        if self.serious and state != "running":
            state = "damaged"
        return Contents(state, config, provenance, None, failure, tuple(self.faults.values()))

    def take(self, name: str, read: Callable[[], Any], *, serious: bool = False) -> Any:
        """What `read` returns; None, and a fault of the file noted, where it raises one."""
        try:
            return read()
        except UserError as error:
            self.faults.setdefault(self.record.folder / name, error)
            self.serious = self.serious or serious
            return None


def _provenance(record: Record, *, required: bool = False) -> dict[str, Any] | None:
    """What the cell ran on. Without it nothing says which data, code and device its figures are of."""
    content = _require(record, "provenance.json") if required else record.read("provenance.json")
    if content == {}:
        raise DamagedError(record.folder / "provenance.json", "is empty", record.remedy)
    return content


def _require(record: Record, name: str, *, verified: bool = False) -> dict[str, Any]:
    content = record.read(name, verified=verified)
    if content is None:
        raise DamagedError(record.folder / name, "is gone", record.remedy)
    return content


def _has_digest(record: Record, name: str, digests: Mapping[str, Any]) -> bool:
    try:
        return name in digests and file_digest(record.folder / name) == digests[name]
    except OSError:
        return False


def _require_digest(record: Record, name: str, digests: Mapping[str, Any]) -> None:
    """Raise DamagedError where a file is not the one whose digest result.json recorded."""
    path = record.folder / name
    try:
        same = file_digest(path) == digests[name]
    except FileNotFoundError as error:
        raise DamagedError(path, "is gone", record.remedy) from error
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror})", record.remedy) from error
    if not same:
        raise DamagedError(path, "damaged (not the file that result.json sums up)", record.remedy)


def _require_no_folder(record: Record, name: str) -> None:
    path = record.folder / name
    if path.is_dir():
        raise DamagedError(path, "is a folder, not a file", record.remedy)


def _require_agreement(
    record: Record, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] | None, devices: int
) -> None:
    """Check a result without digests, as older versions wrote it, against what else is recorded of the cell.

    `rows` is None where they cannot be read. Raises DamagedError for a figure that two places tell differently.
    """

    def require(same: bool, problem: str, other: str | None = None) -> None:
        if not same:
            wrong = f"does not agree with {record.folder / other} ({problem})" if other else f"damaged ({problem})"
            raise DamagedError(record.folder / "result.json", wrong, record.remedy)

    require(result.get("last") is not None or not result["num_eval"], "last is missing")
    epochs = {row["epoch"]: row for row in rows or ()}
    for parts, prefix in _PARTS.items():
        name, curve = ".".join(parts), "metrics.jsonl"
        figures = functools.reduce(lambda node, key: (node or {}).get(key), parts, result)
        measured = [row for row in epochs.values() if f"{prefix}/top1" in row]
        require(figures is not None or not measured, f"{name} is missing", curve)
        if figures is None or not measured:
            continue
        for key in FIGURES:
            own, there = figures[key], epochs.get(figures["epoch"], {}).get(f"{prefix}/{key}")
            require(own == there or (own != own and there != there), f"{name}.{key} is {own} and {there}", curve)
        highest = max(row[f"{prefix}/top1"] for row in measured)
        require(parts[-1] == "last" or highest == figures["top1"], f"an epoch there has top-1 {highest}", curve)
    derived, left_out = result.get("derived") or {}, len((result.get("bad_images") or {}).get("eval", ()))
    counts = {"num_parameters": 0, "num_train": 0, "num_eval": left_out}
    for key, less in counts.items():
        there = derived.get(key, result[key] + less) - less
        require(there == result[key], f"{key} is {result[key]}, and {there} in what the training derived")
    seconds = result["wall_seconds"] * devices
    same = math.isclose(result["device_seconds"], seconds, rel_tol=1e-9)
    require(same, f"device_seconds is {result['device_seconds']}, and {devices} devices took {seconds}", "config.yaml")


def _require_predictions(record: Record, result: Mapping[str, Any]) -> None:
    """The same of the predictions: they must give the last epoch's top-1."""
    arrays = load_predictions(record)
    if arrays is None or not result.get("last"):
        return
    top1 = 100 * float((arrays["label"] == arrays["top5"][:, 0]).mean())
    if not math.isclose(top1, result["last"]["top1"], rel_tol=1e-9, abs_tol=1e-9):
        problem = f"damaged (they give top-1 {top1:.2f}, result.json has {result['last']['top1']:.2f})"
        raise DamagedError(record.folder / "predictions.npz", problem, record.remedy)


def load_answers(record: Record) -> tuple[np.ndarray, np.ndarray] | None:
    """The class and the predicted class (N,) of each evaluation image, of a record that `read_contents` finds no fault
    with; None where none are stored. Raises DamagedError for a file that holds anything else."""
    path = record.folder / "predictions.npz"
    if not path.exists():
        return None
    arrays = load_arrays(path, ("label", "top5"), record.remedy, verified=True)
    label, ranking = arrays["label"], arrays["top5"]
    if not (label.ndim == 1 and ranking.ndim == 2 and ranking.shape[0] == len(label) and ranking.size):
        raise DamagedError(path, "damaged (its arrays do not belong together)", record.remedy)
    return label, ranking[:, 0]


def load_predictions(record: Record) -> dict[str, np.ndarray] | None:
    """index (N,), label (N,), top5 (N, ≤ 5) and loss (N,) of the last epoch's model; None where none are stored.

    In addition classes (C,), the names, where the record has them.

    Raises DamagedError for a file that holds anything else.
    """
    path = record.folder / "predictions.npz"
    if not path.exists():
        return None
    arrays = load_arrays(path, ("index", "label", "top5", "loss"), record.remedy, optional=("classes",))
    label, ranking = arrays["label"], arrays["top5"]
    alike = all(arrays[name].shape == label.shape for name in ("index", "loss")) and ranking.shape[:1] == label.shape
    numbers = all(array.dtype.kind in "iuf" for name, array in arrays.items() if name != "classes")
    if not (alike and numbers and label.ndim == 1 and ranking.ndim == 2 and ranking.size):
        raise DamagedError(path, "damaged (its arrays do not belong together)", record.remedy)
    return arrays
