"""One folder per cell: all that is known about it, readable at every instant, whatever dies when.

A finished cell is one that has a `result.json`, and it is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from vitlab.study.identity import recorded_identity

SCHEMA_VERSION = 1
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there
State = Literal["finished", "running", "failed", "interrupted", "missing"]


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
        try:
            with (self.folder / "lock").open("r+", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who ask do not see one another
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the cell; yields False where another process holds it. Raises OSError for a read-only folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+", encoding="utf-8") as stream:
            if not _acquire(stream):
                yield False
                return
            stream.truncate(0)
            stream.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
            stream.flush()
            yield True

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON or YAML file atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        temporary = path.with_name(f".{name}.{os.getpid()}")
        text = (
            yaml.safe_dump(content, sort_keys=False) if path.suffix == ".yaml" else json.dumps(content, indent=1) + "\n"
        )
        try:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(f"could not write {path}: {error}") from error

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON or YAML file of the folder, or None.

        Raises ValueError for a damaged file, a newer schema, or a file that belongs to another record.
        """
        path = self.folder / name
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            content = yaml.load(text, _YAML) if path.suffix == ".yaml" else json.loads(text)
        except (json.JSONDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path}: damaged ({error}); remove it or restore it") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: damaged (no mapping inside); remove it or restore it")
        if content.get("schema_version", 0) > SCHEMA_VERSION:
            raise ValueError(
                f"{path}: written by a newer vitlab (schema {content['schema_version']}, this one reads up to "
                f"{SCHEMA_VERSION}); update vitlab or use another output_dir"
            )
        _check_owner(path, content)
        return content

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl; it is on the disk when this returns. Raises OSError that names the file."""
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(row)) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise OSError(f"could not write {path}: {error}") from error

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that a dying process left unfinished is not one."""
        path = self.folder / "metrics.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def keep_rows(self, epochs: int) -> None:
        """Drop the rows after epoch `epochs`: what follows is about to be trained again."""
        rows = self.rows()
        kept = [row for row in rows if row["epoch"] <= epochs]
        path = self.folder / "metrics.jsonl"
        if path.exists() and path.read_text(encoding="utf-8") != (
            text := "".join(json.dumps(row) + "\n" for row in kept)
        ):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def remove_temporaries(self) -> None:
        """Remove what killed processes left half written. Only for the process that holds the cell."""
        for entry in self.folder.glob(".*"):
            if entry.name.rpartition(".")[2].isdigit():
                entry.unlink(missing_ok=True)

    def archive(self) -> Path:
        """Move everything but the archive itself into `archive/<time>`, so that the cell can be trained anew.

        Raises ValueError where a process is training the cell.
        """
        with self.locked() as held:
            if not held:
                raise ValueError(f"{self.folder}: another process is training this cell; end it before study.rerun")
            (self.folder / "archive").mkdir(exist_ok=True)
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

    def log_tail(self, lines: int = 5) -> list[str]:
        """The last lines of the cell's log."""
        path = self.folder / "log.txt"
        return path.read_text(errors="replace", encoding="utf-8").splitlines()[-lines:] if path.exists() else []


def _check_owner(path: Path, content: dict[str, Any]) -> None:
    """Raise ValueError where what a file says of its cell, or of its study, is not true of the place it is in.

    A cell's folder has the cell's identity as its name, and the identity follows from the recorded experiment.
    """
    cell = path.parent.name
    if "id" in content and content["id"] != cell:
        raise ValueError(
            f"{path}: belongs to cell {content['id']}, and this is the folder of {cell}; put the cell's own file back, "
            f"or train the cell again with study.rerun='[{cell}]'"
        )
    if "experiment" in content and "semantics" in content:
        meant = recorded_identity(content["experiment"], content["semantics"])
        if meant != cell:
            raise ValueError(
                f"{path}: holds the configuration of cell {meant}, and this is the folder of {cell}; put the cell's "
                f"own file back, or train the cell again with study.rerun='[{cell}]'"
            )
    if path.parent.name == "studies" and content.get("name", path.stem) != path.stem:
        raise ValueError(f"{path}: is the list of study {content['name']!r}; give the file that name, or remove it")


def _acquire(stream: Any, tries: int = 5) -> bool:
    """Take the lock; tried for half a second, since whoever only asks for a state holds it for an instant."""
    for attempt in range(tries):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1 * (attempt + 1 < tries))
        else:
            return True
    return False


def records(output_dir: Path) -> list[Record]:
    """Every cell's record below `output_dir`."""
    if not output_dir.is_dir():
        return []
    return [Record(entry) for entry in sorted(output_dir.iterdir()) if (entry / "config.yaml").is_file()]


def write_study(output_dir: Path, name: str, content: dict[str, Any]) -> Path:
    """Write the list of a study's cells to `output_dir/studies/<name>.json`, atomically."""
    Record(output_dir / "studies").write(f"{name}.json", {"schema_version": SCHEMA_VERSION, "name": name} | content)
    return output_dir / "studies" / f"{name}.json"


def read_study(output_dir: Path, name: str | None = None) -> dict[str, Any] | None:
    """The study of that name, or the last one; None where there is none."""
    folder = output_dir / "studies"
    if name is None:
        files = sorted(folder.glob("*.json"), key=lambda f: f.stat().st_mtime_ns) if folder.is_dir() else []
        if not files:
            return None
        name = files[-1].stem
    return Record(folder).read(f"{name}.json")


def place(output_dir: str | Path, study: str, identity: str) -> int | None:
    """A cell's place in the order of its study, or None where the study does not list it."""
    content = read_study(Path(output_dir), study)
    ids = [entry["id"] for entry in content["cells"]] if content else []
    return ids.index(identity) if identity in ids else None
