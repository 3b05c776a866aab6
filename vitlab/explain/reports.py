"""Figures of heat maps, arranged by checkpoint, picture, class and method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitlab.core.archives import save_array
from vitlab.core.files import make_folder
from vitlab.explain.explained_model import Subject
from vitlab.explain.figures import METHOD_SOURCES, METHOD_TITLES, Tile, draw_tiles, save
from vitlab.explain.options import ExplainConfig, MethodName
from vitlab.explain.pictures import Picture, load_pictures

ROWS = 6
"""Rows of a figure; more pictures than that go on further sheets."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """A checkpoint's pictures, its answers, and its maps for one method."""

    subject: Subject
    pictures: list[Picture]
    method: MethodName
    targets: Tensor
    """(B, K)"""
    probabilities: Tensor
    """(B, K)"""
    maps: Tensor
    """(B, K, gh, gw)"""

    def tile(self, picture: int, k: int, title: str | None = None) -> Tile:
        """The picture under its map."""
        return Tile(
            self.named(picture, k) if title is None else title, self.image(picture), self.maps[picture, k].numpy()
        )

    def named(self, picture: int, k: int) -> str:
        """`tabby, p = 0.93`: a class and its probability; nothing where the model has no classes."""
        if not self.subject.restored.num_classes:
            return ""
        name = self.subject.classes.short(int(self.targets[picture, k]))
        chance = float(self.probabilities[picture, k])
        shown = f"p = {chance:.2f}" if chance >= 0.005 else "p < 0.01"
        return f"{name if len(name) < 22 else name[:20] + '…'}, {shown}"

    def labels(self) -> list[str]:
        """The pictures' names, with their classes where those are known."""
        names = self.subject.classes
        return [p.name if p.label is None else f"{p.name} ({names.short(p.label)})" for p in self.pictures]

    def image(self, picture: int) -> np.ndarray:
        return self.pictures[picture].pixels.permute(1, 2, 0).numpy()

    def write(self, folder: Path, how: str = "") -> list[Path]:
        """The raw maps, one .npy for each picture and class, as the method gives them (not scaled).

        `how` is put after the method in the files' names.
        """
        files = []
        for b, picture in enumerate(self.pictures):
            for k in range(self.targets.shape[1]):
                asked = "" if self.method == "rollout" else f"_class{int(self.targets[b, k])}"
                file = folder / f"{self.method}{how}_{self.subject.stem}_{picture.name}{asked}.npy"
                save_array(file, self.maps[b, k].numpy())
                files.append(file)
        return files


def explain_pictures(
    subject: Subject, options: ExplainConfig, methods: Sequence[MethodName], output_dir: str
) -> list[Seen]:
    """Explain the chosen pictures by each of `methods`."""
    restored = subject.restored
    if any(method != "rollout" for method in methods):
        restored.require_classifier(
            "explain=relevance", "; explain=features, explain=rollout and explain=position need none"
        )
    pictures = load_pictures(options.images, restored.dataset, restored.input_size, output_dir)
    images = subject.inputs(pictures)
    if not restored.num_classes:  # rollout knows no class
        none = torch.zeros(len(images), 1, dtype=torch.int64)
        return [Seen(subject, pictures, m, none, none, subject.maps(m, images, none, options)) for m in methods]
    probabilities = subject.probabilities(images, options.batch)
    targets = subject.targets(options, probabilities)
    chosen = probabilities.gather(1, targets)
    return [Seen(subject, pictures, m, targets, chosen, subject.maps(m, images, targets, options)) for m in methods]


def draw_panels(subjects: Sequence[Subject], options: ExplainConfig, folder: Path, output_dir: str) -> list[Path]:
    """Write the figures and raw maps of explain=rollout or explain=relevance; returns the files."""
    make_folder(folder)
    method: MethodName = "rollout" if options.kind == "rollout" else options.method
    if options.compare and len(subjects) == 1:
        if options.kind == "rollout":
            return _compare_fusions(subjects[0], options, folder, output_dir)
        return _compare_methods(subjects[0], options, folder, output_dir)
    seen = [explain_pictures(subject, options, [method], output_dir)[0] for subject in subjects]
    files = [file for one in seen for file in one.write(folder)]
    if options.compare:
        return [*files, *_compare_checkpoints(seen, method, folder)]
    several = seen[0].targets.shape[1] > 1
    rows = _class_rows if several else _map_rows
    source = METHOD_SOURCES[method]
    if len(seen) == 1:
        labels = seen[0].labels()
        lines = [rows(seen[0], b) for b in range(len(labels))]
        return [
            *files,
            *draw_sheets(
                lines, labels, f"{source}\n{seen[0].subject.label}", folder / f"{method}_{seen[0].subject.stem}"
            ),
        ]
    for b, (picture, label) in enumerate(zip(seen[0].pictures, seen[0].labels(), strict=True)):
        figure = draw_tiles(
            [rows(one, b) for one in seen],
            title=f"{source}\n{label}",
            row_labels=[o.subject.label for o in seen],
        )
        files += save(figure, folder / f"{method}_checkpoints_{picture.name}")
    return files


def _map_rows(seen: Seen, picture: int) -> list[Tile]:
    """input | map | overlay"""
    named = seen.named(picture, 0)
    return [
        Tile(f"predicted: {named}" if named and seen.method == "rollout" else "input", seen.image(picture)),
        Tile("map", heat=seen.maps[picture, 0].numpy()),
        seen.tile(picture, 0, "overlay" if seen.method == "rollout" else named),
    ]


def _class_rows(seen: Seen, picture: int) -> list[Tile]:
    """input, then an overlay for each class"""
    count = seen.targets.shape[1]
    return [Tile("input", seen.image(picture)), *(seen.tile(picture, k) for k in range(count))]


def draw_sheets(rows: Sequence[list[Tile]], labels: Sequence[str], title: str, stem: Path) -> list[Path]:
    """Figures of up to ROWS rows each."""
    files = []
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        name = stem.name if len(rows) <= ROWS else f"{stem.name}_{start // ROWS + 1}"
        files += save(draw_tiles(rows[part], title=title, row_labels=labels[part]), stem.with_name(name))
    return files


def _compare_methods(subject: Subject, options: ExplainConfig, folder: Path, output_dir: str) -> list[Path]:
    """A row for each picture, a column for each method."""
    seen = explain_pictures(subject, options, options.methods, output_dir)
    files = [file for one in seen for file in one.write(folder)]
    rows = []
    for b in range(len(seen[0].pictures)):
        tiles = [one.tile(b, 0, METHOD_TITLES[one.method] if b % ROWS == 0 else "") for one in seen]
        rows.append([Tile(seen[0].named(b, 0), seen[0].image(b)), *tiles])
    labels = seen[0].labels()
    return [
        *files,
        *draw_sheets(
            rows,
            labels,
            f"Methods side by side, for the class above the picture\n{subject.label}",
            folder / f"methods_{subject.stem}",
        ),
    ]


def _compare_fusions(subject: Subject, options: ExplainConfig, folder: Path, output_dir: str) -> list[Path]:
    """Rollout by the three ways to fuse heads."""
    seen = {
        fusion: explain_pictures(subject, dataclasses.replace(options, head_fusion=fusion), ["rollout"], output_dir)[0]
        for fusion in ("mean", "max", "min")
    }
    first = seen["mean"]
    files = [file for fusion, one in seen.items() for file in one.write(folder, f"_{fusion}")]
    rows = [
        [Tile("input", first.image(b)), *(one.tile(b, 0, f"heads: {fusion}") for fusion, one in seen.items())]
        for b in range(len(first.pictures))
    ]
    labels = first.labels()
    title = f"{METHOD_SOURCES['rollout']}\n{subject.label}"
    return [*files, *draw_sheets(rows, labels, title, folder / f"rollout_fusions_{subject.stem}")]


def _compare_checkpoints(seen: Sequence[Seen], method: MethodName, folder: Path) -> list[Path]:
    """A row for each picture, a column for each checkpoint."""
    rows = [
        [Tile("input", seen[0].image(b)), *(one.tile(b, 0, f"{one.subject.label}\n{one.named(b, 0)}") for one in seen)]
        for b in range(len(seen[0].pictures))
    ]
    above = "what it predicts" if method == "rollout" else "its class"
    title = f"{METHOD_SOURCES[method]}\ncheckpoints side by side, each with {above}"
    return draw_sheets(rows, seen[0].labels(), title, folder / f"{method}_compared")
