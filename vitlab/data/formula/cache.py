"""The geometry of a FractalDB on disk: computed once, shared by all processes through the page cache.

One file per category, named after its number, in a folder named after everything that shapes it; a smaller FractalDB
is the beginning of a larger one and shares its files. A file appears whole or not at all, is sealed with a checksum,
and is computed again where it does not hold what it should. One process at a time writes to a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import FractalConfig, build
from vitlab.core.device import usable_cores
from vitlab.core.errors import UserError
from vitlab.core.files import DiskError, in_units, locked, make_folder, remove_parts, require_space, written_whole
from vitlab.core.terminal import progress_bar
from vitlab.data.formula.geometry import NUM_VARIANTS, build_geometry, resampled_geometry
from vitlab.data.formula.render import pack
from vitlab.data.formula.search import Search

_MAGIC = b"vitlab fractal\n"
ELSEWHERE = ", or choose another place (for the cache: the environment variable VITLAB_CACHE)"
VERSION = 1
"""Raised when the same options would give other bytes; part of every fingerprint."""
_SAVE_EVERY = 20
"""Finds of the search between two saves."""


def geometry_key(spec: FractalConfig) -> str:
    """12 hex digits of everything that a category's geometry depends on, besides its number."""
    names = ("search_seed", "threshold", "image_size", "num_points", "degenerate")
    return _digest({"version": VERSION} | {name: getattr(spec, name) for name in names})


def fingerprint(spec: FractalConfig) -> str:
    """16 hex digits that tell the pictures of one FractalDB from those of another."""
    return _digest({"version": VERSION} | asdict(spec), 16)


def _digest(values: dict[str, Any], length: int = 12) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:length]


class GeometryCache:
    """The owner codes of a FractalDB's categories; `prepare` makes what is missing, `codes` maps it into memory.

    Raises ConfigError for a `spec` outside the schema's ranges, beyond which the kernels would leave their arrays.
    """

    def __init__(self, spec: FractalConfig, cache_dir: Path) -> None:
        build(FractalConfig, asdict(spec), "dataset.fractal")
        self.spec, self.folder = spec, Path(cache_dir) / "fractal"
        self._key = geometry_key(spec)
        self._shape = NUM_VARIANTS, spec.image_size, (spec.image_size + 1) // 2
        self._open: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a process maps its own

    def codes(self, category: int) -> np.ndarray:
        """Packed owner codes (25, S, ceil(S / 2)) uint8 of a category, read-only. Raises StaleError."""
        if category not in self._open:
            _, payload = read_sealed(self._file(category), self._about(category))
            self._open[category] = np.frombuffer(payload, np.uint8).reshape(self._shape)
        return self._open[category]

    def prepare(self, threads: int | None = None) -> None:
        """Search and compute what is missing, truncated or damaged; one process at a time, the others wait.

        Raises ConfigError where the categories cannot be found, DiskError where the cache cannot be written.
        """
        threads = threads or usable_cores()
        missing = self._missing(range(self.spec.categories), threads)
        if not missing:
            return
        with alone(self.folder):
            make_folder(self.folder / self._key)
            missing = self._missing(missing, threads, say=True)
            for folder in (self.folder, self.folder / self._key):
                remove_parts(folder)
            if missing:
                require_space(self.folder, len(missing) * int(np.prod(self._shape)))
                self._compute(missing, find_categories(self.spec, self.folder, threads), threads)

    def _compute(self, missing: list[int], categories: list[np.ndarray], threads: int) -> None:
        spec = self.spec

        def compute(number: int) -> None:
            category = categories[number]
            size, points = spec.image_size, spec.num_points
            if spec.degenerate == "resample":
                codes = resampled_geometry(category, number, seed=spec.search_seed, image_size=size, num_points=points)
            else:
                codes = build_geometry(category, image_size=size, num_points=points)
            write_sealed(self._file(number), self._about(number), pack(codes))

        size = len(missing) * int(np.prod(self._shape))
        label = f"FractalDB: geometry ({in_units(size)} in {self.folder})"
        with ThreadPoolExecutor(threads) as pool, progress_bar(label, len(missing)) as advance:
            try:
                for _ in pool.map(compute, missing):
                    advance()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _missing(self, categories: Sequence[int], threads: int, say: bool = False) -> list[int]:
        """Those of `categories` whose file is not there whole; `say` why, where there is one."""

        def is_whole(category: int) -> bool:
            try:
                read_sealed(self._file(category), self._about(category), verify=True)
            except (FileNotFoundError, NotADirectoryError):
                return False
            except StaleError as error:
                if say:
                    print(f"{error}; computing it again", file=sys.stderr)
                return False
            return True

        with ThreadPoolExecutor(threads) as pool:
            return [c for c, whole in zip(categories, pool.map(is_whole, categories), strict=True) if not whole]

    def _file(self, category: int) -> Path:
        return self.folder / self._key / f"{category:05}.geometry"

    def _about(self, category: int) -> dict[str, Any]:
        return {"version": VERSION, "key": self._key, "category": category}


def find_categories(spec: FractalConfig, folder: Path, threads: int = 1) -> list[np.ndarray]:
    """The categories of `spec`, each (K, 7), from `folder`'s file of finds or by going on where that stops.

    Raises ConfigError as `Search.extend` does.
    """
    file = folder / f"categories_{spec.search_seed}_{spec.threshold!r}.search"
    about = {"version": VERSION, "seed": spec.search_seed, "threshold": spec.threshold}
    search = _load_search(file, about)
    wanted = spec.categories - len(search.categories)
    if wanted > 0:
        with progress_bar("FractalDB: search of categories", wanted) as advance:

            def found() -> None:
                advance()
                if len(search.categories) % _SAVE_EVERY == 0:
                    _save_search(file, about, search)

            search.extend(spec.categories, threads=threads, found=found)
        _save_search(file, about, search)
    return search.categories[: spec.categories]


def _save_search(file: Path, about: dict[str, Any], search: Search) -> None:
    assert search.state is not None
    words, position = search.state
    sizes = [len(category) for category in search.categories]
    payload = np.concatenate(search.categories).astype("<f8").tobytes() + words.astype("<u4").tobytes()
    more = {"sizes": sizes, "candidates": search.candidates, "position": position}
    write_sealed(file, about | more, np.frombuffer(payload, np.uint8))


def _load_search(file: Path, about: dict[str, Any]) -> Search:
    search = Search(about["seed"], about["threshold"])
    try:
        header, payload = read_sealed(file, about, verify=True)
    except FileNotFoundError:
        return search
    except StaleError as error:
        print(f"{error}; searching again", file=sys.stderr)
        return search
    rows = np.frombuffer(payload[: 56 * sum(header["sizes"])], "<f8").reshape(-1, 7)
    search.categories = np.split(rows, np.cumsum(header["sizes"])[:-1])
    search.candidates = header["candidates"]
    search.state = np.frombuffer(payload[56 * len(rows) :], "<u4").astype(np.uint32), header["position"]
    return search


class StaleError(UserError):
    """A file that is not whole, or not of what it should be."""


def write_sealed(file: Path, header: dict[str, Any], payload: np.ndarray) -> None:
    """Write `payload` (uint8) with `header` and a checksum, at once or not at all."""
    content = np.ascontiguousarray(payload).data
    line = json.dumps(header | {"bytes": content.nbytes, "crc32": zlib.crc32(content)}, sort_keys=True)
    with written_whole(file) as stream:
        stream.write(_MAGIC + line.encode() + b"\n")
        stream.write(content)


def read_sealed(file: Path, expected: dict[str, Any], *, verify: bool = False) -> tuple[dict[str, Any], memoryview]:
    """Header and payload of a sealed file, the payload mapped into memory; `verify` reads it all for the checksum.

    Raises FileNotFoundError, or StaleError where the file is truncated, damaged, or not as `expected`.
    """
    with open(file, "rb") as stream:
        magic, line = stream.readline(len(_MAGIC)), stream.readline()
        try:
            header = json.loads(line) if magic == _MAGIC else None
        except ValueError:
            header = None
        if not isinstance(header, dict) or not {"bytes", "crc32"} <= header.keys():
            raise StaleError(f"{file}: not a file of this cache, or cut short")
        start = stream.tell()
        content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    payload = content[start:]
    if len(payload) != header["bytes"]:
        raise StaleError(f"{file}: truncated ({len(payload)} of {header['bytes']} bytes)")
    for name, value in expected.items():
        if header.get(name) != value:
            raise StaleError(f"{file}: {name} is {header.get(name)!r}, not {value!r}")
    if verify and zlib.crc32(payload) != header["crc32"]:
        raise StaleError(f"{file}: damaged (its checksum differs)")
    return header, payload


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, waiting for whoever holds it. Inside, a refusal to write says what else to do.

    Raises DiskError.
    """
    try:
        make_folder(folder)
        with locked(folder / ".lock", wait=math.inf, say=lambda: _waiting(folder)):
            yield
    except DiskError as error:
        raise error.extended(ELSEWHERE) from error


def _waiting(folder: Path) -> None:
    print(f"waiting for another process that writes in {folder}", file=sys.stderr)
