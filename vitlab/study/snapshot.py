"""The code of a study, copied once, so that its cells train on what it was when they began.

`output_dir/code/FINGERPRINT` holds vitlab, its configuration and the user's plugins, read-only. FINGERPRINT is the hash
of `files.sha256`, which lists every file with its own hash; `origin.json` and `code.patch` say where the code is from.
Equal code is one copy, however many studies use it. What no unfinished cell needs is removed when a study ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import shutil
import stat
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.core.errors import UserError
from vitlab.core.files import is_locked, locked, make_folder, unwritten, write_text
from vitlab.core.integrity import DIGEST
from vitlab.study.provenance import (
    EXPECTED,
    MANIFEST,
    ORIGIN,
    PATCH,
    ROOT,
    code_patch,
    code_version,
    code_with,
    snapshot_here,
)  # fmt: skip
from vitlab.study.record import Record

if TYPE_CHECKING:
    from vitlab.study.plan import Plan, PlannedCell

FOLDER = "code"
_PARTS = (("vitlab", "*.py"), ("hydra_plugins", "*.py"), ("conf", "*.yaml"), ("vitlab/conf", "*.yaml"))
"""Folders below the root and what of them is copied, with run.py; an installed vitlab has its conf/ inside."""
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))


@contextlib.contextmanager
def frozen(plan: Plan) -> Iterator[Plan]:
    """Inside, the plan's code is a snapshot that no other command removes; after, unused ones are removed.

    Raises UserError where the snapshot that a cell has begun on is damaged or gone, DiskError where none can be made.
    """
    if not plan.todo:
        remove_unused(plan.output_dir)
        yield plan
        return
    folder = make_folder(plan.output_dir / FOLDER)
    user = folder / f"{uuid.uuid4().hex}.user"
    try:
        with contextlib.ExitStack() as stack:
            with _alone(folder):
                stack.enter_context(locked(user))
                code = take_snapshot(folder, plan.cells[0].config.plugins)
                user.write_text("\n".join({code.name, *(c.code for c in plan.todo if c.code)}), encoding="utf-8")
                for cell in plan.todo:
                    if cell.code and (problem := damage(folder / cell.code)):
                        raise UserError(_refusal(cell, folder / cell.code, problem))
            yield replace(plan, code=code)
    finally:
        with contextlib.suppress(OSError):
            user.unlink(missing_ok=True)
        remove_unused(plan.output_dir)


def _refusal(cell: PlannedCell, folder: Path, problem: str) -> str:
    return (
        f"{folder}: the code that {cell.name} ({cell.id}) was begun with {problem}; nothing was started. Restore it; "
        f"or continue the cell on today's code, which its record then says: study.code=live; or train it again: "
        f"study.rerun='[{cell.id}]'"
    )


def take_snapshot(folder: Path, plugins: Sequence[str]) -> Path:
    """The snapshot of today's code in `folder`, made where it is missing or damaged. Raises DiskError."""
    files = _sources(plugins)
    manifest = _manifest(files)
    made = (folder / _name(manifest)).absolute()
    if not damage(made):
        return made
    part = folder / f".{made.name}.{os.getpid()}.part"
    try:
        for name, file in files.items():
            make_folder((part / name).parent)
            shutil.copy2(file, part / name)
        write_text(part / MANIFEST, manifest)
        write_text(part / PATCH, code_patch())
        write_text(part / ORIGIN, json.dumps({"code": code_with(plugins), **code_version()}, indent=1) + "\n")
        if problem := damage(part, made.name):  # a file was edited while it was copied
            raise UserError(f"{folder}: the code {problem} while it was copied; type the command again")
        _set_writable(part, False)
        if made.exists():  # damaged; this copy has the content that its name promises
            _remove(made)
        part.chmod(0o755)  # a folder that is moved is written to
        part.replace(made)
        made.chmod(0o555)
    except OSError as error:
        raise unwritten(made, error) from error
    finally:
        _remove(part)
    return made


def damage(folder: Path, name: str | None = None) -> str:
    """What is wrong with a snapshot, as the end of a sentence; empty where it holds what its name promises."""
    if not folder.is_dir():
        return "is gone"
    try:
        manifest = (folder / MANIFEST).read_text(encoding="utf-8")
        if _name(manifest) != (name or folder.name):
            return f"is damaged ({MANIFEST} has changed)"
        for line in manifest.splitlines():
            digest, _, file = line.partition("  ")
            if hashlib.sha256((folder / file).read_bytes()).hexdigest() != digest:
                return f"is damaged ({file} has changed)"
    except OSError as error:
        return f"is damaged ({Path(str(error.filename)).name}: {error.strerror})"
    return ""


def begun_on(cell: PlannedCell, output_dir: Path) -> str | None:
    """The snapshot on which a cell has to continue; None where it begins, or has begun on the user's folder itself.

    A cell without a checkpoint has trained nothing that counts.
    """
    record = Record(output_dir / cell.id)
    if cell.again or cell.state in ("missing", "finished", "damaged") or not (record.folder / "last.pt").exists():
        return None
    return (record.read_intact("provenance.json") or {}).get("snapshot")


def version_of(folder: Path) -> dict[str, Any]:
    """`code`, `commit` and `dirty` of a snapshot, as `provenance.settings` has them; empty where it is damaged."""
    try:
        return json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def describe_continued(cells: Sequence[PlannedCell], output_dir: Path, plugins: Sequence[str]) -> list[str]:
    """A note for each snapshot of other code than today's on which cells continue."""
    notes = []
    for code in dict.fromkeys(cell.code for cell in cells if cell.code):
        names = [cell.name for cell in cells if cell.code == code]
        if version_of(output_dir / FOLDER / code).get("code") != code_with(plugins):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            notes.append(
                f"the code has changed: {', '.join(names[:3])}{more} {'goes' if len(names) == 1 else 'go'} on with "
                f"the code begun with, {output_dir / FOLDER / code}; study.code=live takes today's"
            )
    return notes


@contextlib.contextmanager
def importing_from(code: Path | None) -> Iterator[None]:
    """Processes that are started inside import vitlab from the snapshot `code`; None: from where this one has it.

    They do not run this process's main module, which is no part of the snapshot.
    """
    root, main = (code or ROOT).absolute(), vars(sys.modules["__main__"])
    kept = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH", EXPECTED)}
    path, script = sys.path.copy(), main.pop("__file__", None)
    ours = {root, ROOT} - set(_LIBRARIES)  # an installed vitlab lies where torch does
    others = [entry for entry in sys.path if Path(entry).absolute() not in ours]
    known = [entry for entry in (kept["PYTHONPATH"] or "").split(os.pathsep) if entry and entry != str(root)]
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(root), *known]), "PYTHONSAFEPATH": "1"}
    os.environ |= {EXPECTED: root.name} if code else {}
    sys.path[:] = [str(root), *others]
    try:
        yield
    finally:
        sys.path[:] = path
        main |= {"__file__": script} if script is not None else {}
        for name, value in kept.items():
            os.environ.pop(name, None)
            os.environ |= {name: value} if value is not None else {}


def require_expected_code() -> None:
    """Raise UserError where this process was to run a snapshot and runs other code."""
    wanted = os.environ.get(EXPECTED)
    if wanted and snapshot_here() != wanted:
        raise UserError(f"the code of this study, {FOLDER}/{wanted}, is gone; nothing was trained on other code")


def remove_unused(output_dir: Path) -> list[str]:
    """Remove the snapshots that no running command and no unfinished cell of any study names; returns their names."""
    folder, removed = output_dir / FOLDER, []
    if not folder.is_dir():
        return []
    with _alone(folder):
        needed: set[str] = set()
        for user in folder.glob("*.user"):
            if is_locked(user):
                needed |= set(user.read_text(encoding="utf-8").split())
            else:
                user.unlink(missing_ok=True)
        entries = [entry for entry in folder.iterdir() if (entry / MANIFEST).is_file() and entry.name not in needed]
        needed |= _named_by_cells(output_dir) if entries else set()
        for entry in entries:
            if entry.name not in needed or entry.name.startswith("."):
                _remove(entry)
                removed.append(entry.name)
    return removed


def _named_by_cells(output_dir: Path) -> set[str]:
    """The snapshots that the lists of studies, the submitted jobs and the records of unfinished cells name."""
    named: set[str] = set()
    cells: dict[str, set[str]] = {}
    for file in (output_dir / "studies").glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            for entry in json.loads(file.read_text(encoding="utf-8"))["cells"]:
                cells.setdefault(entry["id"], set()).add(str(entry.get("code")))
    for file in (output_dir / "slurm").glob("*/code"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            code = file.read_text(encoding="utf-8").strip()
            for cell in json.loads((file.parent / "jobs.json").read_text(encoding="utf-8")):
                cells.setdefault(cell, set()).add(code)
    cells.pop(DIGEST, None)
    for cell, codes in cells.items():
        record = Record(output_dir / cell)
        if not (record.folder / "result.json").exists():
            named |= codes | {str((record.read_intact("provenance.json") or {}).get("snapshot"))}
    return named


def _sources(plugins: Iterable[str]) -> dict[str, Path]:
    """Every file of a snapshot by its place in it."""
    found = {"run.py": ROOT / "run.py"} if (ROOT / "run.py").is_file() else {}
    for part, pattern in _PARTS:
        found |= {file.relative_to(ROOT).as_posix(): file for file in (ROOT / part).rglob(pattern)}
    for name in plugins:
        found |= _plugin_files(name)
    return dict(sorted(found.items()))


def _plugin_files(name: str) -> dict[str, Path]:
    """The file of a plugin, with its package where it is in one; none of an installed library's."""
    found = importlib.util.find_spec(name)
    if found is None or not found.origin or any(Path(found.origin).is_relative_to(place) for place in _LIBRARIES):
        return {}
    file, parts = Path(found.origin).absolute(), name.split(".")
    base = file.parents[len(parts) - (file.name != "__init__.py")]
    top = base / parts[0]
    files = top.rglob("*.py") if (top / "__init__.py").is_file() else [file]
    return {entry.relative_to(base).as_posix(): entry for entry in files}


def _manifest(files: dict[str, Path]) -> str:
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n" for name, file in files.items())


def _name(manifest: str) -> str:
    return hashlib.sha256(manifest.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Held while snapshots are made and removed."""
    with locked(make_folder(folder) / ".lock", wait=math.inf):
        yield


def _remove(folder: Path) -> None:
    if folder.is_dir():
        _set_writable(folder, True)
        shutil.rmtree(folder, ignore_errors=True)


def _set_writable(folder: Path, writable: bool) -> None:
    """Let the owner write to the folder's files and folders, or nobody."""
    for entry in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(entry.stat().st_mode)
        with contextlib.suppress(OSError):
            entry.chmod(mode | stat.S_IWUSR if writable else mode & ~0o222)
