"""Saving a training's state so that a valid checkpoint exists at every instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

SCHEMA_VERSION = 1


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` beside `path`, flush it to the disk, then rename: readers see the old file or the new one.

    Raises OSError naming the file where the disk is full or read-only; the old checkpoint is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            torch.save(state | {"schema_version": SCHEMA_VERSION}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"could not save {path}: {error}; the previous checkpoint is intact") from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, on the CPU, or None where there is none. Raises ValueError for a newer schema."""
    if not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("schema_version", 0) > SCHEMA_VERSION:
        raise ValueError(
            f"{path}: written by a newer vitlab (schema {state['schema_version']}, this one reads {SCHEMA_VERSION})"
        )
    return state


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays to an .npz file, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **arrays)  # pyright: ignore[reportArgumentType]
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"could not save {path}: {error}") from error
