"""The cells of a study from W&B: through its API, or from offline .wandb files whose records are gone."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.analysis.collect import experiment_columns, frame, result_columns
from vitlab.config import ConfigError

_BLOCK, _HEADER = 32768, 7
_TRIES = 4
_STATES = {"finished": "finished", "running": "running", "pending": "running", "preempting": "running"}
"""W&B's state → ours; anything else (crashed, failed, killed) is a failed cell, not a low number."""


def collect_wandb(entity: str | None, project: str, study: str | None, output_dir: Path, refresh: bool) -> pd.DataFrame:
    """The runs of a W&B project (of one study, where given), as `collect` gives records.

    With `entity`, the server is asked once per page of 100 runs and the answer kept in `output_dir/wandb_cache`;
    `refresh` asks again. Without, the offline runs below `output_dir` are read. Raises ConfigError where there are
    none or the server refuses, naming what was asked.
    """
    if entity is None:
        runs = offline_runs(output_dir)
        where = f"offline below {output_dir}; for the server give entity=NAME"
    else:
        runs = _from_server(entity, project, study, output_dir, refresh)
        where = f"in {entity}/{project}"
    runs = [run for run in runs if "vitlab" in run["config"]]
    if study is not None:
        runs = [run for run in runs if run["config"]["vitlab"]["study"] == study]
    if not runs:
        raise ConfigError(f"source: no run of vitlab's{f' of study {study!r}' if study else ''} {where}")
    runs.sort(key=lambda run: (run["config"]["vitlab"]["name"], run["id"]))
    return frame(_row(run) for run in runs)


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(run["config"])
    about = config.pop("vitlab")
    row = {"id": run["id"], "name": about["name"], "state": _STATES.get(run["state"], "failed")}
    row |= experiment_columns({k: v for k, v in config.items() if not k.startswith("_")}, about["labels"])
    row |= {key: about[key] for key in ("devices", "commit", "dirty", "device_name")}
    summary = run["summary"]
    if row["state"] == "finished":
        row |= result_columns(_nest(summary)) | {"hits": summary.get("hits")}
    if run.get("url"):
        row["url"] = run["url"]
    return row | {"rows": json.dumps(run.get("history", []))}


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`last/top1: 3` → `{"last": {"top1": 3}}`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split("/")
        node = tree
        for parent in parents:
            child = node.get(parent)
            node[parent] = child if isinstance(child, dict) else {}
            node = node[parent]
        node[name] = value
    return tree


def _from_server(entity: str, project: str, study: str | None, output_dir: Path, refresh: bool) -> list[dict[str, Any]]:
    cache = output_dir / "wandb_cache" / f"{entity}_{project}_{study or 'all'}.json"
    if cache.is_file() and not refresh:
        return json.loads(cache.read_text())
    runs = _ask(entity, project, study)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps(runs))
    return runs


def _ask(entity: str, project: str, study: str | None) -> list[dict[str, Any]]:
    """One query per page, tried again with growing pauses when the server is busy or out of reach."""
    import wandb

    for attempt in range(_TRIES):
        try:
            found = wandb.Api(timeout=30).runs(
                f"{entity}/{project}", filters={"group": study} if study else {}, per_page=100, lazy=False
            )
            return [
                {"id": run.id, "state": run.state, "config": dict(run.config), "url": run.url,
                 "summary": dict(run.summary_metrics or {})}
                for run in found
            ]  # fmt: skip
        except Exception as error:
            final = attempt == _TRIES - 1 or "not find" in str(error).lower() or "permission" in str(error).lower()
            if final:
                reason = str(error).splitlines()[0][:200]
                raise ConfigError(
                    f"source: W&B gave no runs of {entity}/{project} ({reason}); check entity, project, the network "
                    "and the API key (`wandb login`)"
                ) from error
            time.sleep(2.0**attempt)
    raise AssertionError("the last attempt returns or raises")


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run in the .wandb files below `folder`. A run that was resumed has several files: they are one run."""
    merged: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.rglob("run-*.wandb"), key=lambda f: (f.parent.name, f.name, str(f))):
        run = read_offline_run(file)
        if run is None:
            continue
        earlier = merged.get(run["id"])
        if earlier:
            figures = [r["summary"]["last/top1"] for r in (earlier, run) if "last/top1" in r["summary"]]
            if len(set(figures)) > 1:
                raise ValueError(
                    f"{file}: two finished runs of cell {run['id']} disagree "
                    f"(last/top1 {figures[0]} and {figures[1]}); remove the one that is not to count"
                )
            epochs = {row["epoch"]: row for row in (*earlier["history"], *run["history"]) if "epoch" in row}
            run["history"] = [epochs[e] for e in sorted(epochs)]
            run["summary"] = earlier["summary"] | run["summary"]
            run["config"] = earlier["config"] | run["config"]
        merged[run["id"]] = run
    return list(merged.values())


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
            run["state"] = "finished" if record.exit.exit_code == 0 and "last/top1" in run["summary"] else "crashed"
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
