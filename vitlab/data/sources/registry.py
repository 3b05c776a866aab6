"""From a data set's configuration to its images."""

from __future__ import annotations

from typing import Literal, Protocol, Self

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.plugins import DATASETS
from vitlab.data.sources.pack import load_pack

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
    """A whole split as it was published, from the data set's pack where one is named."""
    return load_pack(dataset, split) if dataset.pack else DATASETS[dataset.kind](dataset, split)


def build_source(dataset: DatasetConfig, split: Split) -> Source:
    """The images of one split, after `val_fraction` and `train_per_class`, which choose the same images every time.

    Raises ConfigError or ValueError naming what was looked for, where, and how to get it.
    """
    if split == "eval" and dataset.val_fraction == 0:
        return load_split(dataset, "eval")
    source = load_split(dataset, "train")
    held_out = held_out_rows(source.labels, dataset.val_fraction)
    if split == "eval":
        return source.select(np.flatnonzero(held_out))
    kept = np.flatnonzero(~held_out)
    if dataset.train_per_class:
        kept = kept[_first_of_each_class(source.labels[kept], dataset)]
    return source if len(kept) == len(source) else source.select(kept)


def held_out_rows(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A mask (N,) of the images set aside: round(N x fraction) of them, spread evenly over the classes."""
    by_class = np.argsort(labels, kind="stable")
    places = np.floor((np.arange(round(len(labels) * fraction)) + 0.5) / max(fraction, 1e-12)).astype(np.int64)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class[np.minimum(places, len(labels) - 1)]] = True
    return chosen


def _first_of_each_class(labels: np.ndarray, dataset: DatasetConfig) -> np.ndarray:
    """Rows of the first `train_per_class` images of every class, in the data set's order."""
    wanted = dataset.train_per_class
    assert wanted
    counts = np.bincount(labels)
    if counts.min() < wanted:
        raise ConfigError(
            "dataset.train_per_class", f"{wanted} were asked for and a class of {dataset.name} has {counts.min()}"
        )
    by_class = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < wanted])
