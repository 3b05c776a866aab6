"""W&B's offline runs: what their binary logs hold, read without a server."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run in the .wandb files below `folder`, oldest first; archived records are left out.

    A run that was resumed has several files: they are one run (see `merge_runs`).
    """
    files = [f for f in folder.rglob("run-*.wandb") if "archive" not in f.relative_to(folder).parts]
    files.sort(key=lambda f: (f.parent.name, f.name, str(f)))
    runs = [run | {"origin": str(file)} for file in files if (run := read_offline_run(file)) is not None]
    return merge_runs(runs)


def merge_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run per identity: a finished one stands, and later attempts complete earlier ones.

    Raises ValueError where two finished runs of one cell disagree.
    """
    merged: dict[str, dict[str, Any]] = {}
    for run in runs:
        identity = run["config"].get("vitlab", {}).get("id", run["id"])
        earlier = merged.get(identity)
        merged[identity] = run if earlier is None else _joined(identity, earlier, run)
    return list(merged.values())


def _joined(identity: str, earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    finished = [run for run in (earlier, later) if run["state"] == "finished" and "last/top1" in run["summary"]]
    figures = [run["summary"]["last/top1"] for run in finished]
    if len(set(figures)) > 1:
        places = [run.get("origin", run["id"]) for run in (later, earlier)]
        raise ValueError(
            f"{places[0]}: two finished runs of cell {identity} disagree (last/top1 {figures[0]} and {figures[1]}; the "
            f"other is {places[1]}); remove the one that is not to count"
        )
    kept, other = (earlier, later) if finished == [earlier] else (later, earlier)
    epochs = {row["epoch"]: row for row in (*other.get("history", ()), *kept.get("history", ())) if "epoch" in row}
    return kept | {
        "history": [epochs[e] for e in sorted(epochs)],
        "summary": other["summary"] | kept["summary"],
        "config": other["config"] | kept["config"],
    }


def read_offline_run(file: Path) -> dict[str, Any] | None:
    """A run from its binary log; None where the file ends before the run is named (killed at once).

    Raises ValueError for a file that is no .wandb log.
    """
    run: dict[str, Any] = {"id": None, "state": "crashed", "config": {}, "summary": {}, "history": []}
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
    return run if run["id"] else None


def _items(entries: Any) -> dict[str, Any]:
    """W&B's key-value messages as a mapping; nested keys joined by slashes."""
    return {"/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}


def _records(file: Path) -> Iterator[Any]:
    """The protocol-buffer records of a .wandb file: LevelDB's log format (blocks of 32 KiB) behind a 7-byte header.

    A torn tail, which a killed process leaves, ends the reading.
    """
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    if content[:4] != b":W&B":
        raise ValueError(f"{file}: not a .wandb file")
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
            return
        at += _HEADER + size
        parts += body
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(parts)
            parts = b""
            yield record
