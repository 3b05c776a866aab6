"""In what results differ beyond their configuration (code, packages, devices, threads, compilation), and which cells
mean something else than when their study was last planned.

The plan, the record of a resumed cell and the notes under a table all ask this module, so that they judge alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import CellConfig, experiment
from vitlab.core.errors import UserError
from vitlab.study.identity import differences, identity
from vitlab.study.record import Record

if TYPE_CHECKING:
    from vitlab.study.plan import PlannedCell

SETTINGS = ("code", "commit", "dirty", "packages", "device_name", "devices", "threads", "compiled", "speed")
"""Keys of an attempt, as provenance.json has them. A missing one, or None, was not recorded and is not judged."""
AS_WRITTEN = "as written"
"""The `speed` of a step in which nothing is compiled or chosen (train/step.py)."""
_NO_NUMBERS = ("hydra-core", "wandb")
"""Recorded packages that cannot change a number: the configuration they compose or log is part of the identity."""

Attempt = Mapping[str, Any]
Compose = Callable[[Sequence[str]], CellConfig]
"""The cell that overrides mean with today's code and defaults; raises UserError where they mean none."""


def attempts(provenance: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The settings of every attempt that a cell's weights come from, the first one first; none without a record.

    An attempt that began at step 0 owes nothing to those before it.
    """
    if provenance is None:
        return []
    parts = [*provenance.get("earlier", ()), provenance]
    begun = max((i for i, part in enumerate(parts) if part.get("from_step") == 0), default=0)
    return [{key: part.get(key) for key in SETTINGS} for part in parts[begun:]]


def mixtures(found: Iterable[Attempt]) -> list[str]:
    """What differs among attempts, one phrase for each kind; empty where they are alike.

    Two attempts ran the same code where the content of its files is the same, whatever the commits. CPU threads count
    on a CPU only, since nothing else depends on them.
    """
    found = list(found)
    phrases = []
    if len(codes := _codes(found)) > 1:
        phrases.append(f"{len(codes)} versions of the code ({', '.join(codes)})")
    if packages := _packages(found):
        phrases.append(f"versions of packages ({', '.join(packages)})")
    for key, noun in (("device_name", "kinds of device"), ("devices", "device counts")):
        values = _distinct(a.get(key) for a in found)
        if len(values) > 1:
            phrases.append(f"{len(values)} {noun} ({', '.join(values)})")
    threads = _distinct(a.get("threads") for a in found if str(a.get("device_name")).endswith("CPU"))
    if len(threads) > 1:
        phrases.append(f"{len(threads)} counts of CPU threads ({', '.join(threads)})")
    if len(_distinct(a.get("compiled") for a in found)) > 1:
        phrases.append("compiled and uncompiled models")
    speeds = _distinct(a.get("speed") for a in found if a.get("compiled") or a.get("speed") != AS_WRITTEN)
    if len(speeds) > 1:
        phrases.append(f"{len(speeds)} ways to run the step ({'; '.join(speeds)})")
    return phrases


def _distinct(values: Iterable[Any]) -> list[str]:
    return sorted({str(value) for value in values if value is not None})


def _codes(found: Sequence[Attempt]) -> list[str]:
    """The versions of the code, each as it is shown. Records of older vitlabs hold no fingerprint: there the commit
    counts, and a clean commit that is also recorded with a fingerprint is that code."""
    clean = {a["commit"]: a["code"] for a in found if a.get("code") and a.get("commit") and not a.get("dirty")}
    shown: dict[str, set[str]] = {}
    for attempt in found:
        commit, dirty = attempt.get("commit"), bool(attempt.get("dirty"))
        key = attempt.get("code") or (None if dirty else clean.get(commit))
        if key is None and commit is None:
            continue
        about = f"commit {commit[:9]}{' with changes' if dirty else ''}" if commit else "no commit"
        shown.setdefault(key or about, set()).add(about)
    return sorted(f"{key[:8]}: {', '.join(sorted(about))}" if about != {key} else key for key, about in shown.items())


def _packages(found: Sequence[Attempt]) -> list[str]:
    versions: dict[str, set[str]] = {}
    for attempt in found:
        for package, version in (attempt.get("packages") or {}).items():
            versions.setdefault(package, set()).add(version)
    return [
        f"{p} {' and '.join(sorted(v))}" for p, v in sorted(versions.items()) if len(v) > 1 and p not in _NO_NUMBERS
    ]


def drifted(
    cells: Iterable[PlannedCell], known: Sequence[Mapping[str, Any]], output_dir: Path, compose: Compose | None
) -> list[str]:
    """A note for each cell of the study, as it was `known`, whose own overrides mean another cell today.

    What the user typed for a cell last time is composed again; where that still is the recorded cell, another value was
    typed this time, which is no drift. Without `compose`, cells for which other overrides were typed are left out.
    """
    before = {entry["name"]: entry for entry in known}
    notes = []
    for cell in cells:
        entry = before.get(cell.name)
        if entry is None or entry["id"] == cell.id or cell.config.study.part != "cell":
            continue
        now = cell.config.cell
        if list(entry.get("overrides", ())) != list(cell.overrides):
            try:
                now = compose(entry.get("overrides", ())) if compose else None
            except UserError:  # those words mean no cell any more, and nobody typed them now
                now = None
        recorded = Record(output_dir / entry["id"]).read_intact("config.yaml")
        if now is None or not recorded or identity(now) == entry["id"]:
            continue
        changes = differences(recorded["experiment"], experiment(now)) or ["the code's semantics"]
        notes.append(f"{cell.name} was {entry['id']} and is now {identity(now)}: {'; '.join(changes)}")
    return notes
