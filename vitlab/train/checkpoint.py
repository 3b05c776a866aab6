"""Saving a training's state so that a valid checkpoint exists at every instant."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

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
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        reason = error.__context__ if isinstance(error.__context__, OSError) else error  # torch buries a full disk
        raise OSError(f"could not save {path}: {reason}; what was saved before is intact") from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`, on the CPU, or None where there is none. Raises ValueError for a damaged file, a
    newer schema, or another program's file."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        state = {}
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0][:120]
        raise ValueError(
            f"{path}: cannot be read, or damaged ({reason}); restore the file, or train anew with study.rerun=all"
        ) from error
    if "schema_version" not in state:
        raise ValueError(
            f"{path}: not of vitlab. Checkpoints of other programs can be evaluated (task=evaluate), explained and "
            f"fine-tuned, but cannot be resumed; to start from its weights: pretrain=checkpoint pretrain.path={path}"
        )
    if state["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{path}: written by a newer vitlab (schema {state['schema_version']}, this one reads {SCHEMA_VERSION})"
        )
    return state
