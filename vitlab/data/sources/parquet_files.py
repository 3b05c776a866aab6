"""Parquet files of images, as the Hugging Face hub has them: a struct of bytes and path, and a label, in each row.

A row is compressed together with its row group, so an image at random costs the whole group. A set that fits in memory
is read whole; of any other, the files are taken out once, byte for byte, by task=pack pack.format=files.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import UserError
from vitlab.core.files import in_units
from vitlab.core.terminal import progress_bar
from vitlab.data.sources.class_folders import TRAINED, synset_of
from vitlab.data.sources.containers import BadImageError, Names, Ranges, State, state_of
from vitlab.data.sources.index import Found, Index, Indexed, index_of, require_numbered
from vitlab.data.sources.tar_files import files_below, split_of

LABELS = ("label", "labels", "class", "target", "fine_label")
"""Names that a column of labels has."""
MEMORY_SHARE = 8
"""One part of this machine's memory in so many may be filled with images from parquet."""


def import_pyarrow(key: str, what: str) -> Any:
    """pyarrow, which is installed only where parquet is read. Raises ConfigError naming `key` where it is not."""
    try:
        for part in ("types", "compute", "parquet"):
            importlib.import_module(f"pyarrow.{part}")
    except ImportError:
        raise ConfigError(key, f"{what} is parquet, which pyarrow reads; install it: pip install pyarrow") from None
    return importlib.import_module("pyarrow")


class ParquetLayout(Indexed):
    """Images in parquet files."""

    @functools.cached_property
    def in_memory(self) -> bool:
        """Whether all of it fits in the part of this machine's memory that may be filled."""
        return sum(state.bytes for state in self.states) <= _memory() // MEMORY_SHARE


def require_random_reads(layout: object) -> None:
    """Raise ConfigError, with the command that converts them, for parquet files that are more than memory holds."""
    if isinstance(layout, ParquetLayout) and not layout.in_memory:
        raise ConfigError(
            "dataset.root",
            f"{layout.root} holds parquet files, {in_units(sum(s.bytes for s in layout.states))}, from which no "
            "image can be read without its neighbours, and which do not fit in memory; take the files out once, byte "
            "for byte, with the same data set and task=pack pack.format=files pack.path=FOLDER, then train with "
            "dataset.root=FOLDER",
        )


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def recognise_parquet(dataset: DatasetConfig, root: Path) -> ParquetLayout | None:
    """The parquet files in `root`, or one folder below; None where there are none. Raises ConfigError."""
    if not (files := files_below(root, ".parquet")):
        return None
    import_pyarrow("dataset.root", str(files[0]))
    top = root if root.is_dir() else root.parent
    names = [file.relative_to(top).as_posix() for file in files]
    require_numbered(names)
    image, label, classes = _columns(files[0])
    make = functools.partial(RowGroups, column=image)
    layout = ParquetLayout(dataset, root, files, lambda: _build(layout, files, names, (image, label), classes), make)
    layout.variant = "with sizes" if layout.in_memory else ""
    return layout


def _open(file: str | Path) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises ConfigError."""
    pyarrow = import_pyarrow("dataset.root", str(file))
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError("dataset.root", f"{file} is no whole parquet file ({error}); get it again") from error


def _columns(file: Path) -> tuple[str, str, tuple[str, ...]]:
    """The columns of the images and of the labels, and the labels' names where the schema has them."""
    types = import_pyarrow("dataset.root", str(file)).types
    with _open(file) as parquet:
        schema = parquet.schema_arrow
    found = {f.name: f.type for f in schema}
    images = [n for n, t in found.items() if types.is_struct(t) and t.get_field_index("bytes") >= 0]
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        features = {}
    names = {
        n: tuple(f["names"]) for n, f in features.items() if isinstance(f, dict) and isinstance(f.get("names"), list)
    }
    simple = {n for n, t in found.items() if types.is_integer(t) or types.is_string(t) or types.is_large_string(t)}
    label = next((n for n in LABELS if n in simple), None) or next((n for n in names if n in simple), None)
    if not images or label is None:
        what = (
            "no column of images (a struct with bytes)" if not images else f"no column of labels ({', '.join(LABELS)})"
        )
        raise ConfigError("dataset.root", f"{file} has {what}; its columns are {', '.join(found)}")
    return images[0], label, names.get(label, ())


def _build(
    layout: ParquetLayout, files: list[Path], names: list[str], columns: tuple[str, str], classes: tuple[str, ...]
) -> Index:
    pyarrow = import_pyarrow("dataset.root", str(files[0]))
    image, label = columns
    splits: dict[str, Found] = {}
    wanted = [f"{image}.path", label, *([f"{image}.bytes"] if layout.in_memory else [])]
    with progress_bar(f"reading {layout.root}", len(files)) as advance:
        for number, (file, name) in enumerate(zip(files, names, strict=True)):
            found, row = splits.setdefault(split_of(name) or TRAINED, Found()), 0
            with _open(file) as parquet:
                for group in range(parquet.num_row_groups):
                    try:
                        table = parquet.read_row_group(group, columns=wanted)
                        if not {image, label} <= set(table.column_names):
                            raise ConfigError(
                                "dataset.root", f"{file} has no column {image} or {label}, as {files[0]} has"
                            )
                    except (pyarrow.ArrowException, OSError) as error:
                        raise _broken(str(file), group, error) from error
                    pictures = table.column(image).combine_chunks()
                    fields = {pictures.type.field(i).name for i in range(pictures.type.num_fields)}
                    paths = pictures.field("path").to_pylist() if "path" in fields else [None] * len(table)
                    sizes = [0] * len(table)
                    if layout.in_memory:
                        sizes = _lengths(pyarrow, pictures.field("bytes"))
                    first = len(found.paths)
                    found.paths += [path or f"{first + i:08}" for i, path in enumerate(paths)]
                    found.labels += ["" if value is None else str(value) for value in table.column(label).to_pylist()]
                    found.places += [(number, row + i, size) for i, size in enumerate(sizes)]
                    row += len(table)
            advance()
    trained = splits.get(TRAINED) or next(iter(splits.values()))
    if all(synset_of(path.rpartition("/")[2]) for path in trained.paths):
        classes = ()  # ImageNet's: the classes of the folders are synsets
    return index_of(splits, [state_of(f) for f in files], layout.root, "parquet", classes, make=layout.make_content)


def _lengths(pyarrow: Any, values: Any) -> list[int]:
    return pyarrow.compute.fill_null(pyarrow.compute.binary_length(values.cast(pyarrow.large_binary())), 0).to_pylist()


def _broken(file: str, group: int, error: Exception) -> UserError:
    return UserError(f"{file}: row group {group} cannot be read ({str(error).splitlines()[0]}); get the file again")


class RowGroups(Ranges):
    """Image i is in row `offsets[i]` of a parquet file: the row group that was read last is kept, or all of them."""

    def __init__(
        self, files: Sequence[State], file_of: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, names: Names, *,
        column: str, keep_all: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(files, file_of, offsets, sizes, names)
        self.column, self.keep_all = column, keep_all
        self._groups: dict[tuple[int, int], Any] = {}
        self._starts: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_groups": {}, "_starts": {}}

    def select(self, rows: np.ndarray) -> RowGroups:
        part = RowGroups(
            self.files, self.file_of[rows], self.offsets[rows], self.sizes[rows], self.names.select(rows),
            column=self.column, keep_all=self.keep_all,
        )  # fmt: skip
        part.copies, part._groups, part._starts = self.copies, self._groups, self._starts
        return part

    def in_memory(self) -> RowGroups:
        """The same with every row group read, before worker processes are started, which then share them."""
        other = self.select(np.arange(len(self.offsets)))
        other._groups, other.keep_all = {}, True
        for index in self.stored():
            other.read(int(index))
        return other

    def read(self, index: int) -> bytes:
        number, row = int(self.file_of[index]), int(self.offsets[index])
        if number not in self._starts:
            os.close(self._opened(number))  # raises where it was replaced
            with _open(self._place(number)) as parquet:
                counts = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
            self._starts[number] = np.cumsum([0, *counts])
        group = int(np.searchsorted(self._starts[number], row, side="right")) - 1
        if (number, group) not in self._groups:
            if not self.keep_all:
                self._groups.clear()
            self._groups[number, group] = self._read_group(number, group)
        value = self._groups[number, group][row - int(self._starts[number][group])].as_py()
        if not value:
            raise BadImageError(f"{self.where(index)}: the row has no bytes")
        return value

    def _read_group(self, number: int, group: int) -> Any:
        pyarrow = import_pyarrow("dataset.root", self.files[number].path)
        try:
            with _open(self._place(number)) as parquet:
                table = parquet.read_row_group(group, columns=[f"{self.column}.bytes"])
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(self.files[number].path, group, error) from error
        return table.column(self.column).combine_chunks().field("bytes")

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self.read(index))
