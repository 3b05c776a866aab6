"""A small data set of tars on a disk to copy from, and what staging it does and says."""

from __future__ import annotations

import numpy as np
from forms import draw_tree, numbered, webdataset

from vitlab.config import DatasetConfig
from vitlab.data.sources import staged_file, staging
from vitlab.data.sources.staging import splits_of, staged


def cut_small(monkeypatch):
    """Blocks of 1,000 bytes, all of which are compared."""
    monkeypatch.setattr(staged_file, "BLOCK", 1000)
    monkeypatch.setattr(staging, "LOOKS", 10**6)


def draw_shards(folder, monkeypatch):
    """A data set of four tars, of some 40 small blocks each, in `folder/shards`."""
    cut_small(monkeypatch)
    return webdataset(draw_numbered(folder), folder / "shards")


def draw_numbered(folder):
    return numbered(draw_tree(folder / "birds", per_class=8, size=24))


def birds(root, stage, **changes):
    return DatasetConfig("birds", "folder", root=str(root), stage=str(stage), **changes)


def stage(dataset, **options):
    """The copies, and what is said meanwhile: [(where to, text)]."""
    reports, said = staged(dataset, splits_of(dataset), **options), []
    while True:
        try:
            report = next(reports)
        except StopIteration as end:
            return end.value, said
        if report.to != "view":
            said.append((report.to, report.text))


def screen(said):
    return [text for to, text in said if to == "screen"]


def copied(dataset):
    """The bytes that staging copies now."""
    before = staged_file.StagedFile._copy
    done = []
    try:
        staged_file.StagedFile._copy = lambda self, block: (done.append(self._length(block)), before(self, block))[1]
        stage(dataset)
    finally:
        staged_file.StagedFile._copy = before
    return sum(done)


def total(folder):
    return sum(file.stat().st_size for file in folder.glob("*.tar"))


def noted(disk):
    """Blocks that were copied so far."""
    found = [np.fromfile(file, "<u8", offset=file.read_bytes().index(b"\n") + 1) for file in disk.rglob("*.sums")]
    return sum(int((sums > 0).sum()) for sums in found)
