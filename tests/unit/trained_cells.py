"""What a trained cell leaves in its folder, as tests compare it."""

from __future__ import annotations

import json
from pathlib import Path


def rows(cell: Path) -> list[dict]:
    """The metrics of a cell without clock readings."""
    file = cell / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    parsed = [json.loads(line) for line in lines if line.endswith("}")]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "device_seconds", "images_per_second")} for row in parsed
    ]


def origin(cell: Path) -> dict:
    return json.loads((cell / "provenance.json").read_text(encoding="utf-8"))
