"""A table of labels: a CSV, TSV or parquet file that says of which class each image file is."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import reason
from vitlab.data.sources.class_folders import EVALUATED, TRAINED
from vitlab.data.sources.containers import LooseFiles, Names, State
from vitlab.data.sources.index import Found, Index, Indexed, index_of
from vitlab.data.sources.listing import EXTENSIONS
from vitlab.data.sources.parquet_files import import_pyarrow

FILES = ("image", "file", "filename", "file_name", "filepath", "path", "image_path", "img", "image_id", "imageid", "id")
LABELS = ("label", "class", "target", "category", "labels", "class_name", "diagnosis")
SPLITS = ("split", "set", "subset", "partition")
_MEANT = {"training": TRAINED, "tr": TRAINED, "eval": "val", "dev": "val"}
"""Other words for a split."""


class LabelTable(Indexed):
    """Image files below a root, labelled by a table; nothing of it is kept, as files may change any time."""

    kept = False


def recognise_table(dataset: DatasetConfig) -> LabelTable:
    """The layout of `dataset.table`. Raises ConfigError where a file is missing."""
    assert dataset.table, "asked for by the caller"
    if not dataset.root or not (root := Path(dataset.root)).is_dir():
        raise ConfigError("dataset.root", f"got {dataset.root!r}; give the folder that the files named in "
                          f"{dataset.table} are relative to, dataset.root=FOLDER")  # fmt: skip
    tables = {"dataset.table": Path(dataset.table)}
    tables |= {"dataset.eval_table": Path(dataset.eval_table)} if dataset.eval_table else {}
    for key, table in tables.items():
        if not table.is_file():
            raise ConfigError(key, f"there is no file {str(table)!r}")
    layout = LabelTable(dataset, root, list(tables.values()), lambda: _build(dataset, root, tables))
    layout.variant = f"{dataset.file_column} {dataset.label_column} {dataset.split_column} {sorted(map(str, tables))}"
    return layout


def _build(dataset: DatasetConfig, root: Path, tables: dict[str, Path]) -> Index:
    splits: dict[str, Found] = {}
    finder = _Finder(root)
    files: list[str] = []
    labels: set[str] = set()
    for key, table in tables.items():
        columns, rows = read_table(table, key)
        file_at = _column(columns, "file_column", dataset.file_column, FILES, table)
        label_at = _column(columns, "label_column", dataset.label_column, LABELS, table)
        split_at = _column(columns, "split_column", dataset.split_column, SPLITS, table)
        assert file_at is not None and label_at is not None, "needed columns, or refused"
        usual = TRAINED if key == "dataset.table" else EVALUATED[0]
        with ThreadPoolExecutor(16) as pool:
            found_files = list(pool.map(finder.find, (row[file_at] for row in rows)))
        missing = [row[file_at] for row, found in zip(rows, found_files, strict=True) if found is None]
        if missing:
            raise ConfigError(key, f"{len(missing):,} of {len(rows):,} rows of {table} name no image file in {root}, "
                              f"with or without an extension; the first: {missing[0]!r}")  # fmt: skip
        for number, (row, found) in enumerate(zip(rows, found_files, strict=True), 2):
            assert found is not None, "refused above"
            split = usual if split_at is None else _split_named(row[split_at], table, number)
            label = row[label_at].strip()
            if not label and split == TRAINED:
                raise ConfigError(key, f"{table}: row {number} ({row[file_at]}) has no label in the column "
                                  f"{columns[label_at]!r}")  # fmt: skip
            part = splits.setdefault(split, Found())
            part.paths.append(found[0])
            part.labels.append(label)
            part.places.append((len(files), 0, found[1]))
            files.append(found[0])
            labels |= {label} if split == TRAINED else set()
    if TRAINED not in splits:
        raise ConfigError("dataset.table", f"{dataset.table} has no row to train on")
    numbers = all(label.isdecimal() for label in labels)
    classes = sorted(labels, key=int) if numbers else sorted(labels)
    states = [State(str(root / file), 0, 0) for file in files]

    def content(
        _: Sequence[State], file_of: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, names: Names
    ) -> LooseFiles:
        return LooseFiles(root, Names(files[i] for i in file_of))

    form = f"files labelled by {' and '.join(table.name for table in tables.values())}"
    return index_of(splits, states, root, form, classes, make=content, by_name=True)


def _column(columns: list[str], key: str, asked: str | None, usual: Sequence[str], table: Path) -> int | None:
    """Where a column is: the one asked for, else the first of the `usual` names. Raises ConfigError, but None for a
    split that nobody asked for."""
    known = [column.strip().lower() for column in columns]
    if asked is not None:
        if asked not in columns:
            raise ConfigError(f"dataset.{key}", f"{table} has no column {asked!r}; it has {', '.join(columns)}")
        return columns.index(asked)
    found = next((known.index(name) for name in usual if name in known), None)
    if found is None and key != "split_column":
        what = key.removesuffix("_column")
        raise ConfigError(f"dataset.{key}", f"{table} has the columns {', '.join(columns)}; say which one is the "
                          f"{what}: dataset.{key}=COLUMN")  # fmt: skip
    return found


def _split_named(text: str, table: Path, number: int) -> str:
    name = text.strip().lower()
    name = _MEANT.get(name, name)
    if name not in (TRAINED, *EVALUATED):
        raise ConfigError("dataset.split_column", f"{table}: row {number} is of the split {text!r}; known are "
                          f"{', '.join((TRAINED, *EVALUATED))}")  # fmt: skip
    return name


def read_table(table: Path, key: str) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and the rows as text. Raises ConfigError, naming `key`, for a file that is no table."""
    if table.suffix.lower() == ".parquet":
        pyarrow = import_pyarrow(key, str(table))
        try:
            content = pyarrow.parquet.read_table(table)
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(key, f"{table} is no whole parquet file ({error})") from error
        values = [["" if v is None else str(v) for v in column.to_pylist()] for column in content.columns]
        return content.column_names, [list(row) for row in zip(*values, strict=True)]
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = max("\t,;", key=first.count)
            columns, *rows = [row for row in csv.reader(stream, delimiter=delimiter) if row]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(key, f"{table} is no table with a line of column names, in UTF-8 ({why})") from error
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ConfigError(key, f"{table}: row {number} has {len(row)} cells, and there are {len(columns)} columns")
    return columns, rows


class _Finder:
    """Finds the file that a table names, in `root`, with or without its extension."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> tuple[str, int] | None:
        """The path relative to the root, and its bytes; None where there is no such file."""
        name = os.path.normpath(name.strip()).replace(os.sep, "/")
        for found in (name, *self._with_extension(name)):
            try:
                state = os.stat(self.root / found)
            except (OSError, ValueError):
                continue
            if os.path.isfile(self.root / found):
                return found, state.st_size
        return None

    def _with_extension(self, name: str) -> list[str]:
        folder, _, own = name.rpartition("/")
        if folder not in self._stems:
            names = os.listdir(self.root / folder) if (self.root / folder).is_dir() else []
            stems: dict[str, list[str]] = {}
            for entry in names:
                stem, dot, ending = entry.rpartition(".")
                if dot and f".{ending.lower()}" in EXTENSIONS:
                    stems.setdefault(stem, []).append(entry)
            self._stems[folder] = stems
        found = sorted(self._stems[folder].get(own, []))
        if len(found) > 1:
            raise ConfigError("dataset.table", f"{name!r} may be {' or '.join(found)}; name the files with extensions")
        return [f"{folder}/{entry}" if folder else entry for entry in found]
