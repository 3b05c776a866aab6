"""Saving a training's state so that a valid checkpoint exists at every instant."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vitlab.core.errors import UserError
from vitlab.core.files import save_tensors
from vitlab.core.integrity import DamagedError, NewerError, is_archive, require_whole_archive, train_again

SCHEMA_VERSION = 1


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, whole or not at all. Raises DiskError where the disk is full or read-only."""
    save_tensors(path, state | {"schema_version": SCHEMA_VERSION})


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
