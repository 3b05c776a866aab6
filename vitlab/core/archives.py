"""Arrays and tensors in archives (.npz, PyTorch's .pt): written whole or not at all, read only where they are whole."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.core.files import written_whole
from vitlab.core.integrity import DamagedError, one_line_of

if TYPE_CHECKING:
    import numpy as np


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip archive does, which .npz and PyTorch's .pt are."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def require_whole_archive(path: Path, remedy: str) -> None:
    """Read a zip archive against its own checksums. Raises DamagedError where they differ.

    NumPy notices most damage, PyTorch does not look: a flipped bit of a weight loads without a word.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror or error})", remedy) from error
    except Exception as error:  # damaged headers make zipfile and zlib raise nearly anything
        raise DamagedError(path, f"damaged, or cut short ({one_line_of(error)})", remedy) from error
    if broken is not None:
        raise DamagedError(path, f"damaged (the checksum of {broken} differs)", remedy)


def load_arrays(
    path: Path, names: Sequence[str], remedy: str, *, optional: Sequence[str] = (), verified: bool = False
) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file, and the optional ones that it has.

    `verified`: its bytes are known to be those that were written. Raises DamagedError for a file that is missing,
    damaged or lacks a named one.
    """
    if not verified:
        require_whole_archive(path, remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            inside = (*names, *(name for name in optional if f"{name}.npy" in archive.NameToInfo))
            return {name: _array(bytearray(archive.read(f"{name}.npy"))) for name in inside}
    except Exception as error:  # whole, and of another kind: pickled objects, no arrays, other names
        raise DamagedError(path, f"not the arrays that were written ({one_line_of(error)})", remedy) from error


def _array(content: bytearray) -> np.ndarray:
    """An .npy file's array. NumPy's own reader takes most of its time to parse the header, which many files share."""
    import numpy as np

    start, size = (10, content[8:10]) if content[6] == 1 else (12, content[8:12])
    end = start + int.from_bytes(size, "little")
    shape, by_column, kind = _layout(bytes(content[:end]))
    return np.frombuffer(content, kind, offset=end).reshape(shape, order="F" if by_column else "C")


@functools.lru_cache(256)
def _layout(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    from numpy.lib import format as npy

    stream = io.BytesIO(header)
    version = npy.read_magic(stream)
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)


def save_arrays(path: Path, *, compressed: bool = True, **arrays: np.ndarray) -> None:
    """Write named arrays to an .npz file, whole or not at all. Raises DiskError."""
    import numpy as np

    with written_whole(path) as stream:
        (np.savez_compressed if compressed else np.savez)(stream, **arrays)  # pyright: ignore[reportArgumentType]


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file, whole or not at all. Raises DiskError."""
    import numpy as np

    with written_whole(path) as stream:
        np.save(stream, array)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values as `torch.save` does, whole or not at all. Raises DiskError."""
    import torch

    with written_whole(path) as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # how torch reports a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
