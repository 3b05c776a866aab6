"""FractalDB as a data set: its images are rendered when they are asked for, and only the part that is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitlab.config import DatasetConfig, FractalConfig
from vitlab.core.files import default_cache_dir
from vitlab.core.plugins import register_dataset
from vitlab.data.formula.cache import GeometryCache, fingerprint
from vitlab.data.formula.render import instance, mask_keys, render


class FractalSource:
    """`categories` x `instances` images, category by category; an instance's number says which picture it is.

    Making one computes the geometry that `cache_dir` lacks, with a progress bar. Raises ConfigError for options that
    no FractalDB can be made of, DiskError where the cache cannot be written.
    """

    def __init__(self, spec: FractalConfig, cache_dir: Path, *, threads: int | None = None) -> None:
        self.spec = spec
        self._cache = GeometryCache(spec, cache_dir)
        self._cache.prepare(threads)
        self.classes = tuple(f"{category:05}" for category in range(spec.categories))
        self.labels = np.repeat(np.arange(spec.categories), spec.instances)
        kinds = [instance(number) for number in range(spec.instances)]
        self._variants = np.array([kind.variant for kind in kinds])
        self._counts = np.array([kind.count for kind in kinds])
        self._flips = np.array([kind.flip for kind in kinds])
        self._rows: np.ndarray | None = None
        self._keys: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_keys": None}

    @property
    def image_size(self) -> int:
        """Side of every image in pixels."""
        return self.spec.image_size

    @property
    def folder(self) -> Path:
        """Where the geometry is."""
        return self._cache.folder

    def image(self, index: int, epoch: int = 0) -> np.ndarray:
        """The image (S, S, 3) uint8, its channels equal. `epoch` matters with fresh masks only."""
        grey = self.crop(index, None, epoch)
        return np.repeat(grey[..., None], 3, axis=-1)

    def crop(self, index: int, box: np.ndarray | tuple[int, int, int, int] | None, epoch: int = 0) -> np.ndarray:
        """The part of an image in `box` (top, left, height, width), (h, w) uint8; what lies outside is black."""
        row = int(self._rows[index]) if self._rows is not None else range(len(self))[index]
        category, number = divmod(row, self.spec.instances)
        packed = self._cache.codes(category)[self._variants[number]]
        key, flip = int(self._epoch_keys(epoch)[row]), int(self._flips[number])
        if box is None:
            return render(packed, key, flip=flip)
        top, left, height, width = (int(v) for v in box)
        first = max(top, 0), max(left, 0)
        last = min(top + height, self.image_size), min(left + width, self.image_size)
        inside = *first, max(last[0] - first[0], 0), max(last[1] - first[1], 0)
        if inside == (top, left, height, width):
            return render(packed, key, flip=flip, box=inside)
        whole = np.zeros((height, width), np.uint8)
        if inside[2] and inside[3]:
            part = render(packed, key, flip=flip, box=inside)
            whole[first[0] - top : last[0] - top, first[1] - left : last[1] - left] = part
        return whole

    def select(self, rows: np.ndarray) -> FractalSource:
        """The source of these rows only, in this order; it shares the geometry."""
        chosen = object.__new__(FractalSource)
        chosen.__dict__ |= self.__dict__
        chosen._rows = np.asarray(rows) if self._rows is None else self._rows[rows]
        chosen.labels = self.labels[rows]
        return chosen

    def fingerprint(self) -> str:
        """Digest of all that the images depend on."""
        return fingerprint(self.spec)

    def _epoch_keys(self, epoch: int) -> np.ndarray:
        """The keys of the masks of all images of the whole set; one epoch's are kept."""
        epoch = epoch if self.spec.fresh_masks else 0
        if self._keys is None or self._keys[0] != epoch:
            spec = self.spec
            pictures = np.empty((spec.categories, spec.instances, 3), np.int64)
            pictures[..., 0] = np.arange(spec.categories)[:, None]
            pictures[..., 1], pictures[..., 2] = self._variants, self._counts
            self._keys = epoch, mask_keys(spec.mask_seed, pictures.reshape(-1, 3), epoch)
        return self._keys[1]


@register_dataset("fractal")
def load_fractal(dataset: DatasetConfig, split: str) -> FractalSource:
    """FractalDB, rendered when it is asked for; it has no evaluation split."""
    assert dataset.fractal is not None, "checked by check_cell"
    return FractalSource(dataset.fractal, default_cache_dir())
