"""Saving a training's state so that a valid checkpoint exists at every instant."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError, NewerError, is_archive, require_whole_archive, train_again

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
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = error.__context__ if isinstance(error.__context__, OSError) else error  # torch buries a full disk
        raise OSError(f"could not save {path}: {reason}; what was saved before is intact") from error


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn a state that does not fit what is loaded from it into a DamagedError that names the file."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DamagedError(
            path, f"does not fit the cell's model or optimizer ({reason})", train_again(path.parent.name)
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, on the CPU, or None where there is none.

    Raises DamagedError for a damaged file, NewerError for a newer schema, UserError for another program's file.
    """
    if not path.exists():
        return None
    remedy = train_again(path.parent.name)
    if path.is_dir():
        raise DamagedError(path, "is a folder, not a file", remedy)
    if is_archive(path):
        require_whole_archive(path, remedy)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        state = {}
    except Exception as error:  # a damaged pickle makes the reader raise nearly anything
        reason = (str(error).splitlines() or ["it is empty"])[0][:120]
        raise DamagedError(path, f"damaged, or cannot be read ({reason})", remedy) from error
    if not isinstance(state, dict) or not isinstance(state.get("schema_version"), int):
        raise UserError(
            f"{path}: not of vitlab, or damaged. Checkpoints of other programs can be evaluated (task=evaluate), "
            "explained and fine-tuned, but cannot be resumed; to start from its weights: pretrain=checkpoint "
            f"pretrain.path={path}"
        )
    if state["schema_version"] > SCHEMA_VERSION:
        raise NewerError(
            f"{path}: written by a newer vitlab (schema {state['schema_version']}, this one reads {SCHEMA_VERSION})"
        )
    return state
