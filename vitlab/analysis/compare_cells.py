"""What is different between two cells: configuration, code, environment, data, and what they say of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitlab.core.errors import UserError
from vitlab.study.contents import load_predictions, read_contents
from vitlab.study.record import Record


def describe_difference(output_dir: Path, first: str, second: str) -> list[str]:
    """Lines that name every difference. Raises UserError for an identity without a record, or with a damaged one."""
    a, b = (_require(output_dir, name) for name in (first, second))
    for record in (a, b):
        for fault in read_contents(record).faults:
            raise fault
    lines = [f"{first} → {second}"]
    for title, file, keys in (
        ("configuration", "config.yaml", ("experiment",)),
        ("run", "config.yaml", ("runtime",)),
        ("code", "provenance.json", ("code", "commit", "dirty")),
        ("environment", "provenance.json", ("packages", "device_name", "compiled", "host", "platform")),
        ("data", "provenance.json", ("data",)),
    ):
        old, new = ({k: (record.read(file) or {}).get(k) for k in keys} for record in (a, b))
        changes = _differences(old, new)
        lines += [f"{title}: " + ("the same" if not changes else "")] + [f"  {change}" for change in changes]
    for record in (a, b):
        result = record.read("result.json")
        last = result and result.get("last")
        lines.append(
            f"{record.id}: {record.state()}" + (f", top-1 {last['top1']:.2f}, loss {last['loss']:.4f}" if last else "")
        )
    lines.append(_disagreement(a, b))
    return lines


def _require(output_dir: Path, name: str) -> Record:
    record = Record(output_dir / name)
    if record.read("config.yaml") is None:
        known = (
            sorted(p.name for p in output_dir.iterdir() if (p / "config.yaml").is_file()) if output_dir.is_dir() else []
        )
        raise UserError(f"diff: no cell {name!r} in {output_dir}; there are: {', '.join(known[:20]) or 'none'}")
    return record


def _differences(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for name in dict.fromkeys([*old, *new]):
            lines += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return lines
    return [] if old == new else [f"{key.removeprefix('experiment.')}: {old} → {new}"]


def _disagreement(a: Record, b: Record) -> str:
    one, two = (load_predictions(record) for record in (a, b))
    if one is None or two is None:
        return "predictions: not stored for both"
    if not np.array_equal(one["index"], two["index"]) or not np.array_equal(one["label"], two["label"]):
        return "predictions: of different evaluation sets"
    first, second, label = one["top5"][:, 0], two["top5"][:, 0], one["label"]
    differ = first != second
    gained, lost = int((differ & (second == label)).sum()), int((differ & (first == label)).sum())
    return f"predictions: they disagree on {int(differ.sum())} of {len(label)} images ({gained} gained, {lost} lost)"
