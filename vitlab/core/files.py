"""Where files that can be made again are kept, and arrays written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def default_cache_dir() -> Path:
    """$VITLAB_CACHE, else vitlab/ in $XDG_CACHE_HOME, else ~/.cache/vitlab."""
    if place := os.environ.get("VITLAB_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitlab"


def text_of(name: str, encoding: str = "utf-8") -> str:
    """A file's name as text that can be printed and written: bytes that are no text in `encoding` become `\\xe9`.

    The same in every locale, and for names in other encodings than the machine's (an archive from elsewhere).
    """
    return os.fsencode(name).decode(encoding, "backslashreplace")


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays to an .npz file, atomically. Raises OSError that names the file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **arrays)  # pyright: ignore[reportArgumentType]
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"could not save {path}: {error}") from error
