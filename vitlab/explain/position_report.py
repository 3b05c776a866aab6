"""explain=position: the three figures of what checkpoints have learned of place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitlab.core.files import make_folder, save_array
from vitlab.explain.attention import attention_maps, patch_grid
from vitlab.explain.explained_model import Subject
from vitlab.explain.figures import draw_distance, draw_filters, draw_similarity, save
from vitlab.explain.options import ExplainConfig
from vitlab.explain.pictures import load_pictures
from vitlab.explain.position import attention_distance, position_similarity, rgb_filters


def draw_place(subjects: Sequence[Subject], options: ExplainConfig, folder: Path, output_dir: str) -> list[Path]:
    """Write similarity and filters of each checkpoint, and all their attention distances in one figure."""
    make_folder(folder)
    files: list[Path] = []
    distances: dict[str, np.ndarray] = {}
    uniform = 0.0
    for subject in subjects:
        network = subject.restored.network
        similarity = subject.explained(lambda network=network: position_similarity(network)).cpu().numpy()
        filters = subject.explained(lambda network=network: rgb_filters(network)).cpu().numpy()
        stem = subject.stem
        title = f"Similarity of position embeddings\n{subject.label}"
        files += save(draw_similarity(similarity, title=title), folder / f"position_{stem}")
        files.append(folder / f"position_{stem}.npy")
        save_array(files[-1], similarity)
        title = f"RGB embedding filters (first {len(filters)} principal components)\n{subject.label}"
        files += save(draw_filters(filters, title=title), folder / f"filters_{stem}")
        values, uniform = _distances(subject, options, output_dir)
        label = subject.label if subject.label not in distances else f"{subject.label} ({len(distances) + 1})"
        distances[label] = values.numpy()
        files.append(folder / f"distance_{stem}.npy")
        save_array(files[-1], values.numpy())
    name = subjects[0].stem if len(subjects) == 1 else "checkpoints"
    title = "Mean attention distance, a dot for each head" + (f"\n{subjects[0].label}" if len(subjects) == 1 else "")
    return [*files, *save(draw_distance(distances, title=title, uniform=uniform), folder / f"distance_{name}")]


def _distances(subject: Subject, options: ExplainConfig, output_dir: str) -> tuple[Tensor, float]:
    """Mean attention distance (L, H) over the pictures, and what uniform attention would give, in pixels."""
    restored = subject.restored
    size = restored.model.image_size
    images = subject.inputs(load_pictures(options.images, restored.dataset, size, output_dir))
    grid = patch_grid(restored.network, images)
    patch = (size // grid[0], size // grid[1])
    sums, count = torch.zeros(()), grid[0] * grid[1]
    for part in images.split(options.batch):
        attention = subject.explained(lambda part=part: attention_maps(restored.network, part))
        sums = sums + attention_distance(attention, grid, patch).cpu() * len(part)
    uniform = attention_distance(torch.full((1, 1, 1, count, count), 1 / count), grid, patch)
    return sums / len(images), float(uniform)
