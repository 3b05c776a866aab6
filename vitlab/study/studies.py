"""The lists of studies, `output_dir/studies/NAME.json`: which cells each has, under which names.

A cell belongs to every study that lists it. What a command plans is added to its study's list; cells that it does not
plan stay there, unless `study.replace` takes them out. No record is ever removed.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitlab.config import GROUPS
from vitlab.core.errors import UserError
from vitlab.core.files import make_folder, write_text
from vitlab.core.integrity import DamagedError, Shape, misfit, read_mapping, sealed, texts
from vitlab.study.record import SCHEMA_VERSION

FOLDER = "studies"
TYPE_AGAIN = "restore the file, or type the study's command again: it writes the list and trains nothing twice"
STUDY: dict[str, Shape] = {
    "name": str, "table?": str,
    "cells": [{
        "id": str, "name": str, "part": str, "labels": texts, "aliases": [str], "experiment?": dict, "code?": str,
    }],
}  # fmt: skip
"""A file of `output_dir/studies`."""
Entry = Mapping[str, Any]


def write_study(output_dir: Path, name: str, content: dict[str, Any]) -> Path:
    """Write the list of a study's cells to `output_dir/studies/<name>.json`, atomically, a line for each cell."""
    whole = sealed({"schema_version": SCHEMA_VERSION, "name": name} | content)
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items() if key != "cells"]
    cells = ",\n  ".join(json.dumps(cell) for cell in whole["cells"])
    path = make_folder(output_dir / FOLDER) / f"{name}.json"
    write_text(path, "{\n" + ",\n".join([*lines, f' "cells": [\n  {cells}\n ]']) + "\n}\n")
    return path


def read_study(output_dir: Path, name: str | None = None) -> dict[str, Any] | None:
    """The study of that name, or the last one; None where there is none. Raises DamagedError or NewerError.

    A list that was just read is the same object: nobody may change it.
    """
    folder = output_dir / FOLDER
    if name is None:
        files = sorted(folder.glob("*.json"), key=lambda f: f.stat().st_mtime_ns) if folder.is_dir() else []
        if not files:
            return None
        name = files[-1].stem
    path = folder / f"{name}.json"
    try:
        about = path.stat()
    except OSError:  # nothing there, or what the reader says of it
        return _read(path, name)
    return _read_once(path, name, (about.st_ino, about.st_mtime_ns, about.st_size))


@functools.lru_cache(maxsize=1)
def _read_once(path: Path, name: str, _version: tuple[int, int, int]) -> dict[str, Any] | None:
    return _read(path, name)


def _read(path: Path, name: str) -> dict[str, Any] | None:
    content = read_mapping(path, TYPE_AGAIN, SCHEMA_VERSION)
    if content is None:
        return None
    if problem := misfit(content, STUDY):
        raise DamagedError(path, f"damaged ({problem})", TYPE_AGAIN)
    if content["name"] != name:
        raise DamagedError(path, f"is the list of study {content['name']!r}", TYPE_AGAIN)
    return content


def read_studies(output_dir: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The name and the cells of every study whose list can be read."""
    for file in sorted((output_dir / FOLDER).glob("*.json")):
        with contextlib.suppress(UserError):
            if content := read_study(output_dir, file.stem):
                yield file.stem, content["cells"]


def places(output_dir: Path, identity: str) -> dict[str, int]:
    """A cell's place in the order of every study that lists it."""
    found = {}
    for name, cells in read_studies(output_dir):
        ids = [entry["id"] for entry in cells]
        if identity in ids:
            found[name] = ids.index(identity)
    return found


def others(known: Iterable[Entry], planned: Sequence[Entry]) -> list[Entry]:
    """The cells of a study that a command does not plan.

    Those are left out that are planned under another identity: the same name, and the same typed for the cell, which
    means something else since a default or the code has changed.
    """
    ids = {entry["id"] for entry in planned}
    meant = {(entry["name"], _of_cell(entry)) for entry in planned}
    return [entry for entry in known if entry["id"] not in ids and (entry["name"], _of_cell(entry)) not in meant]


def _of_cell(entry: Entry) -> tuple[str, ...]:
    """What was typed for the cell itself, and not for how it is run."""
    words = entry.get("overrides", ())
    return tuple(w for w in words if w.lstrip("+~").partition("=")[0].partition(".")[0] in (*GROUPS, "seed"))


def joined(known: Sequence[Entry], planned: Sequence[Entry]) -> list[Entry]:
    """The list of a study after a command: in the order of the plan; where other cells stay, in the order of before,
    with new cells after them."""
    stay = {entry["id"]: entry for entry in others(known, planned)}
    if not stay:
        return list(planned)
    now = {entry["id"]: entry for entry in planned}
    kept = [now.pop(entry["id"], None) or stay.get(entry["id"]) for entry in known]
    return [*(entry for entry in kept if entry), *now.values()]
