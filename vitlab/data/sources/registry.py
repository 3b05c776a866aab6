"""From a data set's configuration to its images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol, Self

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.config.schema import share
from vitlab.core.plugins import DATASETS
from vitlab.core.random import permutation
from vitlab.data.sources.claims import check_loaded
from vitlab.data.sources.containers import State
from vitlab.data.sources.pack import PackSource, load_pack

Split = Literal["train", "eval"]


class Source(Protocol):
    """Labelled images. `labels` is (N,) int64; an image is (H, W, 3) uint8."""

    classes: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray: ...

    def select(self, rows: np.ndarray) -> Self:
        """The source of these rows only, in this order."""
        ...

    def fingerprint(self) -> str:
        """What tells these files from others: recorded with a cell, compared when it resumes."""
        ...


def load_split(dataset: DatasetConfig, split: Split) -> Source:
    """A whole split as it was published, from the data set's pack where one is named.

    Raises ConfigError where it does not hold what the configuration says, with what it does hold.
    """
    source = load_pack(dataset, split) if dataset.pack else DATASETS[dataset.kind](dataset, split)
    check_loaded(dataset, split, source)
    return source


def build_source(dataset: DatasetConfig, split: Split, copies: Mapping[State, State] | None = None) -> Source:
    """The images of one split, after `val_fraction`, `train_fraction` and `train_per_class`, which choose the same
    images every time. Their bytes are read from the `copies` of files that there are (`staging`).

    Raises UserError naming what was looked for, where, and how to get it.
    """
    if split == "eval" and dataset.val_fraction == 0:
        return _load_readable(dataset, "eval", copies)
    source = _load_readable(dataset, "train", copies)
    held_out = held_out_rows(source.labels, dataset.val_fraction)
    if split == "eval":
        return source.select(np.flatnonzero(held_out))
    kept = np.flatnonzero(~held_out)
    if dataset.train_fraction < 1:
        kept = kept[_fraction_of_each_class(source.labels[kept], dataset)]
    if dataset.train_per_class:
        kept = kept[_first_of_each_class(source.labels[kept], dataset)]
    return source if len(kept) == len(source) else source.select(kept)


def _load_readable(dataset: DatasetConfig, split: Split, copies: Mapping[State, State] | None) -> Source:
    """A split whose images can be read in any order: those of parquet files are in memory. Raises ConfigError where
    they do not fit."""
    if dataset.kind == "folder" and not dataset.pack:
        from vitlab.data.sources.folder import recognise
        from vitlab.data.sources.parquet_files import require_random_reads

        require_random_reads(recognise(dataset, evaluating=split == "eval"))
    source: Any = load_split(dataset, split)
    if copies and isinstance(source, PackSource):
        source = source.read_from(copies)
    elif copies:
        source.content = source.content.read_from(copies)
    if hasattr(getattr(source, "content", None), "in_memory"):
        source.content = source.content.in_memory()
    return source


def held_out_rows(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A mask (N,) of the images set aside: `share(N, fraction)` of them, spread evenly over the classes."""
    by_class = np.argsort(labels, kind="stable")
    places = np.floor((np.arange(share(len(labels), fraction)) + 0.5) / max(fraction, 1e-12)).astype(np.int64)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class[np.minimum(places, len(labels) - 1)]] = True
    return chosen


def _fraction_of_each_class(labels: np.ndarray, dataset: DatasetConfig) -> np.ndarray:
    """Rows of `train_fraction` of the images. Raises ConfigError where a class would keep none."""
    order = stratified_order(labels, dataset.subset_seed or 0)
    rows = order[: share(len(labels), dataset.train_fraction)]
    present = np.unique(labels)
    if len(np.unique(labels[rows])) < len(present):
        last = max(int(np.argmax(labels[order] == c)) for c in present)  # where the last class to come first appears
        least = math.ceil((last + 1) / len(labels) * 1e6) / 1e6
        raise ConfigError(
            "dataset.train_fraction",
            f"{dataset.train_fraction:g} of {len(labels):,} images leaves a class of {dataset.name} without any; "
            f"the least that keeps one of each is {least:g}",
        )
    return np.sort(rows)


def stratified_order(labels: np.ndarray, seed: int | str = 0) -> np.ndarray:
    """An order (N,) int64 of the images of which every beginning has the classes in their proportions.

    Within a class the images come in a random order that is always the same for a `seed`, so that a smaller fraction is
    a part of a larger one. Of n images of a class, the first k of N have k n / N, to one image.
    """
    shuffled = permutation(int(seed), "train_fraction", 0, len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_class[np.argsort((rank + 0.5) / counts[labels[by_class]], kind="stable")]


def _first_of_each_class(labels: np.ndarray, dataset: DatasetConfig) -> np.ndarray:
    """Rows of the first `train_per_class` images of every class, in the data set's order or `subset_seed`'s."""
    wanted = dataset.train_per_class
    assert wanted
    counts = np.bincount(labels)
    if counts.min() < wanted:
        raise ConfigError(
            "dataset.train_per_class", f"{wanted} were asked for and a class of {dataset.name} has {counts.min()}"
        )
    order = np.arange(len(labels))
    if dataset.subset_seed is not None:
        order = permutation(int(dataset.subset_seed), "train_per_class", 0, len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < wanted])
