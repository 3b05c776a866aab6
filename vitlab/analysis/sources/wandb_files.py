"""W&B's offline runs: what their binary logs hold, read without a server."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlab.core.integrity import DamagedError
from vitlab.core.metrics import figure

_BLOCK, _HEADER = 32768, 7
_REMEDY = "take the table from the records (source=runs), or remove the file"


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run in the .wandb files below `folder`, oldest first; archived records are left out.

    A run that was resumed has several files: they are one run (see `merge_runs`).
    """
    files = [f for f in folder.rglob("run-*.wandb") if "archive" not in f.relative_to(folder).parts]
    files.sort(key=lambda f: (f.parent.name, f.name, str(f)))
    return merge_runs([run | {"origin": str(file)} for file in files if (run := read_offline_run(file)) is not None])


def merge_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run per identity: a finished one counts, and later attempts complete earlier ones.

    Two finished runs of one cell that disagree are one damaged run: only a person can say which counts.
    """
    merged: dict[str, dict[str, Any]] = {}
    for run in runs:
        about = run["config"].get("vitlab")
        identity = str(about.get("id", run["id"]) if isinstance(about, dict) else run["id"])
        earlier = merged.get(identity)
        merged[identity] = run if earlier is None else _joined(identity, earlier, run)
    return list(merged.values())


def _joined(identity: str, earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    key = figure().summary_key
    finished = [run for run in (earlier, later) if run["state"] == "finished" and key in run["summary"]]
    figures = [run["summary"][key] for run in finished]
    faults = [*earlier.get("faults", ()), *later.get("faults", ())]
    kept, other = (earlier, later) if finished == [earlier] else (later, earlier)
    state = kept["state"]
    if len(figures) > 1 and figures[0] != figures[1]:
        first, second = (run.get("origin") or run.get("url") or run["id"] for run in (later, earlier))
        figures_found = f"{key} {figures[0]} and {figures[1]}; the other is {second}"
        problem = f"two finished runs of cell {identity} disagree ({figures_found})"
        faults.append(DamagedError(first, problem, "remove the one that is not to count"))
        state = "damaged"
    history = [*other.get("history", ()), *kept.get("history", ())]
    epochs = {row["epoch"]: row for row in history if isinstance(row.get("epoch"), int)}
    return kept | {
        "state": state,
        "faults": faults,
        "history": [epochs[e] for e in sorted(epochs)],
        "summary": other["summary"] | kept["summary"],
        "config": other["config"] | kept["config"],
    }


def read_offline_run(file: Path) -> dict[str, Any] | None:
    """A run from its binary log; None where the file ends before the run is named (killed at once).

    What is damaged is listed under `faults`; what precedes it in the file is kept. A run whose file cannot be read
    at all has the identity in the file's name.
    """
    run: dict[str, Any] = {"id": None, "state": "crashed", "config": {}, "summary": {}, "history": [], "faults": []}
    own = file.stem.removeprefix("run-")
    try:
        for record in _records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run["id"] = record.run.run_id
                run["config"] |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            elif kind == "config":
                run["config"] |= {u.key: json.loads(u.value_json) for u in record.config.update}
            elif kind == "summary":
                run["summary"] |= _items(record.summary.update)
            elif kind == "history":
                row = _items(record.history.item)
                run["history"].append({k: v for k, v in row.items() if not k.startswith("_")})
            elif kind == "exit":
                run["state"] = "finished" if record.exit.exit_code == 0 else "failed"
    except DamagedError as error:
        run["faults"].append(error)
        run["id"] = run["id"] or own
    if run["id"] not in (None, own):
        run["faults"].append(DamagedError(file, f"holds the run of cell {run['id']}", _REMEDY))
    return run if run["id"] else None


def _items(entries: Any) -> dict[str, Any]:
    """W&B's key-value messages as a mapping; nested keys joined by slashes."""
    return {"/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}


def _records(file: Path) -> Iterator[Any]:
    """The protocol-buffer records of a .wandb file: LevelDB's log format (blocks of 32 KiB) behind a 7-byte header.

    A torn tail, which a killed process leaves, ends the reading. Raises DamagedError for any other fault.
    """
    from wandb.proto import wandb_internal_pb2

    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedError(file, f"cannot be read ({error.strerror})", _REMEDY) from error
    if content[:4] != b":W&B":
        raise DamagedError(file, "not a .wandb file", _REMEDY)
    at, parts = _HEADER, b""
    while at + _HEADER <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", content, at)
        body = content[at + _HEADER : at + _HEADER + size]
        if len(body) < size or (kind == 0 and size == 0):
            return
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
            raise DamagedError(file, f"damaged (the checksum at byte {at} differs)", _REMEDY)
        at += _HEADER + size
        parts += body
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            try:
                record.ParseFromString(parts)
            except Exception as error:  # google's DecodeError, whose module is not declared
                raise DamagedError(file, f"damaged ({error})", _REMEDY) from error
            parts = b""
            yield record
