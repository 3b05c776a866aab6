"""Opening the files that weights lie in: PyTorch's, safetensors (whole or in shards), NumPy's .npz of Google's JAX.

Nothing in a file is executed: PyTorch's reader builds tensors, plain containers, NumPy's numbers, paths and the
`argparse.Namespace` of DeiT's arguments, and nothing else. The sizes that a file declares are compared with the file's
own before memory is taken.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import math
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitlab.core.archives import is_archive, require_whole_archive
from vitlab.core.errors import ConfigError, UserError
from vitlab.core.hub import INDEX
from vitlab.core.integrity import DamagedError, one_line_of, train_again

_MOST_UNPACKED = 64
"""No file of weights unpacks to more than so many times its size; random numbers hardly compress."""
_MOST_SHARDS = 10_000
_SCALAR: Any = np.float64(0).__reduce__()[0]  # a function of NumPy's whose module has another name in NumPy 1
_PLAIN: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, codecs.encode, np.dtype, _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"), (codecs.encode, "_codecs.encode"),
    *{type(np.dtype(code)) for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")},
]  # fmt: skip
"""What may be built besides tensors and plain containers: DeiT's arguments, paths, and NumPy's numbers (`best_acc`)."""


def read_file(path: Path) -> dict[str, Any]:
    """What a file of weights holds: its tensors by their names, or what its program stored around them.

    Raises ConfigError for a missing file, UserError or DamagedError, naming the file and the reason, for one that is
    truncated, holds no weights, declares more than it holds, or needs code to be read.
    """
    if not path.is_file():
        raise ConfigError("checkpoint", f"there is no file {str(path)!r}")
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return dict(_read_safetensors(path))
    if path.suffix == ".npz":
        return dict(_read_npz(path))
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    return dict(content)


def remedy_of(path: Path) -> str:
    """What to do about a damaged checkpoint: train again where it lies in a cell's folder, else get it again."""
    if path.with_name("config.yaml").exists():
        return train_again(path.parent.name)
    return "copy or download it again"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)  # compares the header's sizes with the file's before it reads a tensor
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy or download it again") from error


def shards_of(index: Path) -> list[Path]:
    """The files that a shard index names, in order. Raises DamagedError for an index that names others than its
    neighbours."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(index, f"no index of shards ({type(error).__name__}: {error})", remedy_of(index)) from error
    plain = all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names)
    if not names or not plain or len(names) > _MOST_SHARDS:
        raise DamagedError(index, "names no files next to it", remedy_of(index))
    return [index.with_name(name) for name in names]


def _read_shards(index: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for shard in shards_of(index):
        if not shard.is_file():
            raise UserError(f"{index}: its shard {shard.name} is not there; download the whole folder again")
        found |= read_file(shard)
    return found


def _read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file as tensors. Raises DamagedError where one is no plain array of numbers."""
    if not is_archive(path):
        raise DamagedError(path, "not an .npz file", remedy_of(path))
    found = {}
    with _opened(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                _require_array(path, entry, stream)
    require_whole_archive(path, remedy_of(path))
    try:
        with np.load(path, allow_pickle=False) as content:
            for name in content.files:
                array = np.asarray(content[name])
                if array.dtype.itemsize == 2 and array.dtype.kind == "V":  # bfloat16, which NumPy has no name for
                    found[name] = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
                elif array.dtype.kind in "fiu":
                    found[name] = torch.from_numpy(np.array(array))
    except Exception as error:  # whole, and of another kind: NumPy raises nearly anything
        raise DamagedError(path, f"not an .npz file of arrays ({one_line_of(error)})", remedy_of(path)) from error
    return found


def _require_array(path: Path, entry: zipfile.ZipInfo, stream: Any) -> None:
    """Raise DamagedError where an entry's header declares another size than the entry has."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        declared = stream.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
    except Exception as error:
        raise DamagedError(path, f"{entry.filename} is no array ({one_line_of(error)})", remedy_of(path)) from error
    if dtype.hasobject:
        raise UserError(f"{path}: refused: {entry.filename} holds Python objects, and only numbers are allowed")
    if declared != entry.file_size:
        raise DamagedError(
            path, f"{entry.filename} declares {declared:,} bytes and has {entry.file_size:,}", remedy_of(path)
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive whose entries declare no more than a file of this size can hold."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise DamagedError(path, f"damaged, or cut short ({one_line_of(error)})", remedy_of(path)) from error
    with archive:
        declared, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if declared > _MOST_UNPACKED * size:
            raise UserError(
                f"{path}: refused: it has {size:,} bytes and declares {declared:,}, as no file of weights does; get it "
                "from where it was made"
            )
        yield archive


def _read_torch(path: Path) -> Any:
    if is_archive(path):
        with _opened(path):
            pass
        require_whole_archive(path, remedy_of(path))
    try:
        with torch.serialization.safe_globals(_PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols: what cannot be read is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if culprit := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path}: refused: reading it would call or build {culprit[1]}, and only tensors, plain values and "
                "argparse.Namespace are allowed; save the model's state_dict() instead"
            ) from error
        raise DamagedError(path, "not a checkpoint, or a damaged one", remedy_of(path)) from error
    except Exception as error:  # a damaged pickle makes the reader raise nearly anything
        reason = (str(error).splitlines() or ["it is empty"])[0].partition(". ")[0]
        raise DamagedError(path, f"not a checkpoint, or a truncated one ({reason})", remedy_of(path)) from error
    return content


def require_held(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise DamagedError for a tensor that is larger than what is stored of it: one number may be spread, by strides of
    0, over any shape, and a model of that shape would take the memory."""
    for name, tensor in tensors.items():
        held = tensor.untyped_storage().nbytes() if tensor.layout == torch.strided else math.inf
        if tensor.numel() * tensor.element_size() > held:
            problem = f"{name} is declared as {tuple(tensor.shape)} and only {held:,} bytes of it are there"
            raise DamagedError(path, problem, remedy_of(path))
