"""Files: one rule for their names, atomic writes, locks, and errors that name them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vitlab.core.errors import FULL, ConfigError, UserError, reason

if TYPE_CHECKING:  # these take their time, and most commands need none of them
    from filelock import BaseFileLock

_PART = ".part"


class DiskError(UserError):
    """The system refuses to write: the disk is full, read-only or not this user's, or the place is no folder."""


def default_cache_dir() -> Path:
    """$VITLAB_CACHE, else vitlab/ in $XDG_CACHE_HOME, else ~/.cache/vitlab."""
    if place := os.environ.get("VITLAB_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitlab"


def in_units(count: float) -> str:
    """A number of bytes as people read it: `7.5 GB`, `1.2 MB`, `55.3 KB`, `12 bytes`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= 0.99995 * unit:  # what would be written as 1000.0 of the next one
            return f"{count / unit:,.1f} {name}"
    return f"{count:.0f} bytes"


def free_space(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free


def require_space(folder: Path, needed: int) -> None:
    """Raise DiskError where the disk of `folder` has less than `needed` bytes free."""
    free = free_space(folder)
    if needed > free:
        raise DiskError(f"{folder}: {in_units(needed)} are needed and {in_units(free)} are free; make room")


def make_folder(folder: Path) -> Path:
    """Make `folder` and its parents where they are missing. Raises DiskError that names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: no folder can be made there ({reason(error)})") from error
    return folder


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary stream whose content becomes `path`, on the disk, when the block ends; readers see old or new.

    Raises DiskError naming `path` where the disk refuses; what was there before is then untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}{_PART}")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError) -> DiskError:
    """The system's refusal to write `path`."""
    then = "; make room and run the same command again" if error.errno in FULL else ""
    return DiskError(f"could not write {path}: {reason(error)}; what was there before is intact{then}")


def remove_parts(folder: Path) -> None:
    """Remove the unfinished files of killed processes. Only for the process that holds the folder's lock."""
    for entry in folder.glob(f".*{_PART}"):
        entry.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises DiskError."""
    with written_whole(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all. Raises DiskError."""
    write_bytes(path, text.encode("utf-8"))


def append_line(path: Path, line: str) -> None:
    """Add a line; it is on the disk when this returns. Raises DiskError."""
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise unwritten(path, error) from error


@contextlib.contextmanager
def locked(file: Path, *, wait: float = 0.5, say: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock `file`; yields False where another process still holds it after `wait` seconds.

    The lock ends with its holder, however that dies. `say` is called once where there is somebody to wait for. Raises
    DiskError where `file` cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(file)
    try:
        held = _acquired(lock, 0) or (say(), _acquired(lock, wait))[1]
    except OSError as error:
        raise DiskError(f"{file}: cannot be locked ({reason(error)})") from error
    try:
        yield held
    finally:
        if held:
            lock.release()


def _acquired(lock: BaseFileLock, wait: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=wait)
    except Timeout:
        return False
    return True


def is_locked(file: Path) -> bool:
    """Whether a living process holds the lock `file`; asking takes nothing away from others."""
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who ask do not see one another
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


MOST_BYTES = 100
"""Of a name in UTF-8: an ending, an identity and a temporary's number still fit into the 255 of a file system."""
_RULE = f"a name has letters of any script, digits, spaces and . _ -, and at most {MOST_BYTES} bytes"


def require_name(key: str, name: str, fallback: str = "new") -> None:
    """Raise ConfigError where `name`, the value of `key`, cannot be the name of a file everywhere.

    `fallback` is suggested where nothing of the name can be kept.
    """
    size = len(name.encode(errors="surrogateescape"))
    if not name.strip(" "):
        wrong = "it is empty"
    elif name in (".", ".."):
        wrong = "that is a folder"
    elif size > MOST_BYTES:
        wrong = f"it has {size} bytes"
    elif name != name.strip(" "):
        wrong = "it begins or ends with a space"
    elif bad := next((c for c in name if not _allowed(c)), None):
        wrong = f"{bad!r} is none of these"
    else:
        return
    shown = name if len(name) <= 60 else f"{name[:57]}…"
    raise ConfigError(key, f"got {shown!r}; {_RULE}, and {wrong}; for instance {key}={_suggested(name, fallback)}")


def clean_name(text: str, fallback: str = "new") -> str:
    """`text` as a name that `require_name` accepts: other characters become `_`; one that is too long keeps its
    beginning and ends in a digest of the whole."""
    name = "".join(c if _allowed(c) else "_" for c in text).strip(" ")
    if len(name.encode()) > MOST_BYTES:
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
        name = f"{name.encode()[: MOST_BYTES - 9].decode(errors='ignore')}_{digest}"
    return name if name.strip(" .") else fallback


def text_of(name: str, encoding: str = "utf-8") -> str:
    """A file's name as text that can be printed and written: bytes that are no text in `encoding` become `\\xe9`.

    The same in every locale, and for names in other encodings than the machine's (an archive from elsewhere).
    """
    return os.fsencode(name).decode(encoding, "backslashreplace")


def _allowed(character: str) -> bool:
    """Letters, the combining marks of some scripts, digits, `. _ -` and the space."""
    kind = unicodedata.category(character)
    return character in " ._-" or kind[0] in "LM" or kind == "Nd"


def _suggested(name: str, fallback: str) -> str:
    """A name that can be typed without quotes, and is taken for text."""
    found = clean_name(name.strip(" "), fallback).replace(" ", "_").lstrip("._-")
    is_text = found.lstrip("0123456789_.-eE") and found.lower() not in ("null", "true", "false", "nan", "inf")
    return found if is_text else fallback
