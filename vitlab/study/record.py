"""One folder per cell: all that is known about it, readable at every instant, whatever dies when.

A finished cell is one that has a `result.json`, and it is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from vitlab.config import GROUPS, CellConfig
from vitlab.core.errors import UserError, as_user_error
from vitlab.core.files import append_line, is_locked, locked, make_folder, remove_parts, write_text
from vitlab.core.integrity import (
    DamagedError,
    Shape,
    any_number,
    digest_of,
    file_digest,
    finite,
    misfit,
    percent,
    plain_fingerprints,
    read_mapping,
    read_text,
    sealed,
    texts,
    train_again,
)
from vitlab.study.identity import identity, older_identity, recorded_identity

SCHEMA_VERSION = 1
DIGESTED = ("config.yaml", "metrics.jsonl", "predictions.npz", "predictions_ema.npz")
"""The files whose digests result.json holds under `files`: they no longer change when it is written."""
State = Literal["finished", "running", "failed", "interrupted", "missing", "damaged"]
"""`damaged`: something of the record that counts cannot be read, or is not what was written (see study/contents.py)."""

FIGURES: dict[str, Shape] = {"loss": any_number, "top1": percent, "top5": percent}
"""An evaluation: mean cross-entropy in nats, accuracies in percent."""
ROW: dict[str, Shape] = {
    "epoch": int, "step?": int, "train/loss?": any_number, "train/lr?": any_number, "images_per_second?": finite,
    "seconds?": finite, "device_seconds?": finite,
} | {f"{name}/{key}?": shape for name in ("eval", "eval_ema") for key, shape in FIGURES.items()}  # fmt: skip
"""A line of metrics.jsonl."""
_ATTEMPT: dict[str, Shape] = {
    "code?": str, "commit?": str, "dirty?": bool, "packages?": texts, "device_name?": str, "devices?": int,
    "threads?": int, "compiled?": bool, "speed?": str, "from_step?": int, "snapshot?": str,
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


class Record:
    """The folder of one cell, `output_dir/<identity>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def id(self) -> str:
        return self.folder.name

    def state(self) -> State:
        """Where the cell stands; only the file system is asked."""
        if (self.folder / "result.json").exists():
            return "finished"
        if not self.folder.exists():
            return "missing"
        if self.is_locked():
            return "running"
        if (self.folder / "failure.json").exists():
            return "failed"
        return "interrupted" if (self.folder / "config.yaml").exists() else "missing"

    def is_locked(self) -> bool:
        """Whether a living process holds this cell. A dead holder cannot: its lock ends with it."""
        return is_locked(self.folder / "lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the cell; yields False where another process holds it. Raises DiskError for a read-only folder."""
        file = make_folder(self.folder) / "lock"
        with locked(file) as held:
            if held:  # who, for people
                holder = {"host": socket.gethostname(), "pid": os.getpid()}
                file.write_text(json.dumps(holder), encoding="utf-8")
            yield held

    @property
    def remedy(self) -> str:
        """What to do about a damaged file of this cell."""
        return train_again(self.id)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON or YAML file with its digest, whole or not at all. Raises DiskError that names it."""
        path = make_folder(self.folder) / name
        whole = sealed(content)
        text = yaml.safe_dump(whole, sort_keys=False) if path.suffix == ".yaml" else json.dumps(whole, indent=1) + "\n"
        write_text(path, text)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json, which ends the cell: `result`, and the digests of the files that it sums up."""
        files = {name: file_digest(self.folder / name) for name in DIGESTED if (self.folder / name).is_file()}
        self.write("result.json", {"schema_version": SCHEMA_VERSION, "id": self.id} | result | {"files": files})

    def fail_by(self, error: BaseException) -> None:
        """Write failure.json for `error`, with the traceback of a bug. Called while it is handled."""
        mistake = as_user_error(error)
        shown = "" if mistake else traceback.format_exc()
        self.fail(type(mistake or error).__name__, str(mistake or error), shown)

    def fail(self, kind: str, message: str, shown: str = "") -> None:
        """Write failure.json: what ended an attempt at this cell; `shown` is the traceback of a bug."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        content = {"id": self.id, "type": kind, "message": message, "traceback": shown, "at": at}
        self.write("failure.json", content)

    def read(self, name: str, *, verified: bool = False) -> dict[str, Any] | None:
        """A JSON or YAML file of the folder, or None; `verified`: its bytes are known to be those that were written.

        Raises DamagedError for a file that is damaged or belongs to another record, NewerError for a newer schema.
        """
        path = self.folder / name
        content = read_mapping(path, self.remedy, SCHEMA_VERSION, verified=verified)
        if content is None:
            return None
        _check_owner(path, content, self.remedy)
        return content

    def read_intact(self, name: str) -> dict[str, Any] | None:
        """The same for those who only show it: None also for a damaged file."""
        try:
            return self.read(name)
        except DamagedError:
            return None

    def why_failed(self) -> str:
        """failure.json in a line."""
        return failure_line(self.read_intact("failure.json") or {})

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl; it is on the disk when this returns. Raises DiskError that names the file."""
        append_line(self.folder / "metrics.jsonl", json.dumps(dict(row)))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one of each epoch from the first; a last line that a dying process left
        unfinished is not one. Raises DamagedError for any other line that is not the next epoch's row."""
        path = self.folder / "metrics.jsonl"
        lines = (read_text(path, self.remedy) or "").splitlines(keepends=True)
        rows: list[dict[str, Any]] = []
        for epoch, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                problem = misfit(row, ROW)
            except (ValueError, RecursionError) as error:
                problem = str(error)
            if problem and epoch == len(lines) and not line.endswith("\n"):
                break
            if problem or row["epoch"] != epoch:
                problem = problem or f"epoch is {row['epoch']}"
                raise DamagedError(path, f"damaged (line {epoch}: {problem})", self.remedy)
            rows.append(row)
        return rows

    def keep_rows(self, epochs: int) -> None:
        """Drop the rows after epoch `epochs`: what follows is about to be trained again.

        Raises DamagedError where not every epoch up to it has a row.
        """
        path = self.folder / "metrics.jsonl"
        if len(rows := self.rows()) < epochs:
            raise DamagedError(path, f"damaged (it has {len(rows)} of {epochs} epochs)", self.remedy)
        text = "".join(json.dumps(row) + "\n" for row in rows[:epochs])
        if path.exists() and path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def remove_temporaries(self) -> None:
        """Remove what killed processes left half written. Only for the process that holds the cell."""
        remove_parts(self.folder)

    def archive(self) -> Path:
        """Move everything but the archive itself into `archive/<time>`, so that the cell can be trained again.

        Raises UserError where a process is training the cell.
        """
        if (self.folder / "lock").is_dir():  # damage; no process can hold it
            shutil.rmtree(self.folder / "lock")
        with self.locked() as held:
            if not held:
                raise UserError(f"{self.folder}: another process is training this cell; end it before study.rerun")
            make_folder(self.folder / "archive")
            target = self.folder / "archive" / time.strftime("%Y%m%d-%H%M%S")
            number = 1
            while target.exists():
                number += 1
                target = target.with_name(f"{target.name.partition('.')[0]}.{number}")
            target.mkdir()
            entries = [e for e in self.folder.iterdir() if e.name not in ("archive", "lock")]
            # the result first: a folder that is half moved must not count as finished; then what would be resumed from
            for entry in sorted(entries, key=lambda e: (e.name != "result.json", e.name != "last.pt")):
                shutil.move(str(entry), target / entry.name)
        return target

    def log(self, line: str) -> None:
        """Add a line to the cell's log."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def log_tail(self, lines: int = 5) -> list[str]:
        """The last lines of the cell's log."""
        path = self.folder / "log.txt"
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:] if path.is_file() else []

    def log_traceback(self) -> str:
        """The last traceback in the end of the cell's log; empty where there is none."""
        lines = self.log_tail(400)
        starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
        return "\n".join(lines[starts[-1] :]) if starts else ""


def _check_owner(path: Path, content: dict[str, Any], remedy: str) -> None:
    """Raise DamagedError where a file has not its kind's shape, or is not of the cell whose folder it lies in.

    A cell's folder has the cell's identity as its name, and the identity follows from the recorded experiment.
    """
    cell = path.parent.name
    if content.get("id", cell) != cell:
        raise DamagedError(path, f"belongs to cell {content['id']}, and this is the folder of {cell}", remedy)
    if problem := misfit(content, FILES.get(path.name, {})):
        raise DamagedError(path, f"damaged ({problem})", remedy)
    if path.name == "config.yaml" and "semantics" in content:
        meant = recorded_identity(content["experiment"], content["semantics"], content.get("plugins"))
        if meant != cell:
            raise DamagedError(
                path, f"holds the configuration of cell {meant}, and this is the folder of {cell}", remedy
            )


def failure_line(failure: Mapping[str, Any]) -> str:
    """Why a cell failed, in a line: the message, with the kind of error where it is a bug."""
    message = str(failure.get("message", ""))
    return f"{failure.get('type', 'error')}: {message}" if failure.get("traceback") else message


def name_of_record(cell: CellConfig, output_dir: Path) -> str:
    """The cell's identity; or its name under the rule before, where only that has a finished record."""
    now = identity(cell)
    if (output_dir / now).exists():
        return now
    before = older_identity(cell)
    return before if (output_dir / before / "result.json").exists() else now


def records(output_dir: Path) -> list[Record]:
    """Every cell's record below `output_dir`."""
    if not output_dir.is_dir():
        return []
    return [Record(entry) for entry in sorted(output_dir.iterdir()) if (entry / "config.yaml").is_file()]


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
