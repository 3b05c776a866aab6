"""What became of a study's runs in W&B, in a line for each kind of outcome: what happened, and what to type."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlab.core.errors import UserError
from vitlab.study.mirror import OUTCOME
from vitlab.study.record import Record


def describe_uploads(records: Sequence[Record], output_dir: Path) -> list[str]:
    """The lines on the cells of these records that have been trained; none for cells without a run of W&B's."""
    kinds: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        if outcome := _outcome(record):
            kinds[_kind(outcome, record)].append(record)
    return [_line(kind, cells, output_dir) for kind, cells in kinds.items()]


def _outcome(record: Record) -> dict[str, Any] | None:
    try:
        outcome = record.read(OUTCOME)
    except (UserError, ValueError):  # it is no part of the result
        outcome = None
    if outcome is None and _unsynced(record):  # of a vitlab that kept no such file
        return {"mode": "offline", "why": "asked", "uploaded": False}
    return outcome


def _kind(outcome: dict[str, Any], record: Record) -> tuple[str, ...]:
    """What cells with the same line have in common: what happened, the server, the error."""
    mode, why, error = (str(outcome.get(key) or "") for key in ("mode", "why", "error"))
    if mode == "disabled":
        return ("disabled", "", "")
    if outcome.get("uploaded"):
        return ("uploaded", str(outcome.get("page") or outcome.get("server")).partition("/runs/")[0], "")
    if not _unsynced(record):
        return ("nothing kept", "", error) if error else ("synced", "", "")
    if mode == "online":
        return ("cut off", str(outcome.get("server") or ""), error)
    return (why, str(outcome.get("server") or ""), error)


def _line(kind: tuple[str, ...], cells: list[Record], output_dir: Path) -> str:
    what, where, error = kind
    count = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
    because = f" ({error})" if error else ""
    folder = shlex.quote(str(cells[0].folder)) if len(cells) == 1 else f"{shlex.quote(str(output_dir))}/*"
    later = f"to upload: wandb sync {folder}/wandb/{'run-*' if what == 'cut off' else 'offline-run-*'}"
    return {
        "disabled": "W&B: off (wandb.mode=disabled)",
        "uploaded": f"W&B: {count} at {where}",
        "synced": f"W&B: {count} logged offline and uploaded since",
        "nothing kept": f"W&B: {count} not logged{because}; the records on disk are complete",
        "cut off": f"W&B: {where} did not take all of {count}{because}; {later}",
        "no key": f"W&B: {count} logged offline, since no key is configured (to have one: wandb login); {later}",
        "no answer": f"W&B: {where} did not answer{because}, so {count} logged offline; {later}",
        "key refused": f"W&B: {where} does not accept the key (another one: wandb login --relogin), so {count} logged "
        f"offline; {later}",
    }.get(what, f"W&B: {count} logged offline, as asked (wandb.mode=offline or WANDB_MODE); {later}")


def _unsynced(record: Record) -> list[Path]:
    """The folders of runs that `wandb sync` has not uploaded yet; it leaves a file beside what it has."""
    folders = record.folder.glob("wandb/*run-*")
    return [f for f in folders if any(f.glob("run-*.wandb")) and not any(f.glob("run-*.wandb.synced"))]
