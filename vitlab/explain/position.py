"""What a Vision Transformer learns of position: embeddings, patch filters, attention distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.core.archives import save_array
from vitlab.core.files import make_folder
from vitlab.explain.attention import attention_maps, patch_grid
from vitlab.explain.explained_model import Subject
from vitlab.explain.figures import draw_distance, draw_filters, draw_similarity, save
from vitlab.explain.options import ExplainConfig
from vitlab.explain.pictures import load_pictures
from vitlab.explain.recording import UnfitError, unwrapped


def position_similarity(model: nn.Module) -> Tensor:
    """Cosine similarity of every two patches' position embeddings, (gh, gw, gh, gw) in [-1, 1].

    Prefix tokens (class, distillation, registers) are dropped; the grid is the model's own. Raises UnfitError for a
    model without learned absolute position embeddings.
    """
    embedding, grid = position_embedding(unwrapped(model))
    unit = F.normalize(embedding.flatten(0, 1), dim=-1)
    return (unit @ unit.T).clamp(-1, 1).view(*grid, *grid)


def position_embedding(model: nn.Module) -> tuple[Tensor, tuple[int, int]]:
    """The patches' position embeddings (gh, gw, D) and their grid. Raises UnfitError where there are none."""
    holder = model if hasattr(model, "pos_embed") else getattr(model, "embeds", model)
    embedding = getattr(holder, "pos_embed", None)
    if not isinstance(embedding, Tensor):
        raise UnfitError(
            "the model has no position embedding of its own (it uses rotary or relative positions, or none); "
            "explain=rollout, explain=features and explain=relevance work on it"
        )
    embedding = embedding.detach().float()
    if embedding.ndim == 4:  # (1, gh, gw, D)
        return embedding[0], (embedding.shape[1], embedding.shape[2])
    rows, columns = (int(n) for n in model.patch_embed.grid_size)  # pyright: ignore
    if embedding.shape[1] < rows * columns:
        raise UnfitError(f"{embedding.shape[1]} position embeddings do not make the model's grid, {rows} by {columns}")
    return embedding[0, -rows * columns :].view(rows, columns, -1), (rows, columns)


def attention_distance(attention: Tensor, grid: tuple[int, int], patch_size: tuple[int, int] | int = 16) -> Tensor:
    """Mean distance in pixels between a query patch and what it attends to: (L, H), from attention (L, B, H, N, N).

    Prefix tokens are dropped and rows sum to 1 again (ViT paper, figure 11). Uniform attention over 14 x 14 patches
    of 16 pixels gives 116.49 px.
    """
    vertical, horizontal = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    count = grid[0] * grid[1]
    if attention.shape[-1] < count:
        raise UnfitError(
            f"the attention has {attention.shape[-1]} tokens for {count} patches: they are merged on the way"
        )
    among = attention[..., -count:, -count:].float()
    among = among / among.sum(-1, keepdim=True)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows.flatten() * vertical, columns.flatten() * horizontal], 1).float()  # (gh gw, 2)
    distance = torch.cdist(places, places).to(among.device)
    return (among * distance).sum(-1).mean((1, 3))


def rgb_filters(model: nn.Module, count: int = 28) -> Tensor:
    """The first principal components of the patch embedding's filters, (count, 3, p, p) scaled to [0, 1] each.

    ViT paper, figure 7, left. Fewer where there are fewer. Raises UnfitError for a model whose patches are not
    embedded by one convolution of RGB.
    """
    projection = getattr(getattr(unwrapped(model), "patch_embed", None), "proj", None)
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 4 or weight.shape[1] != 3:
        raise UnfitError("the model does not embed RGB patches by one convolution, so there are no filters to show")
    flat = weight.detach().cpu().double().flatten(1)
    _, _, components = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    filters = components[:count].view(-1, *weight.shape[1:])
    signs = filters.flatten(1).gather(1, filters.flatten(1).abs().argmax(1, keepdim=True)).sign()
    filters = filters * signs.view(-1, 1, 1, 1)  # a component's sign is arbitrary: its largest entry is positive
    low, high = (f(filters.flatten(1), 1).values.view(-1, 1, 1, 1) for f in (torch.min, torch.max))
    return ((filters - low) / (high - low).clamp_min(1e-12)).float()


def draw_position(subjects: Sequence[Subject], options: ExplainConfig, folder: Path, output_dir: str) -> list[Path]:
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
    size = restored.input_size
    images = subject.inputs(load_pictures(options.images, restored.dataset, size, output_dir))
    grid = patch_grid(restored.network, images)
    patch = (size[0] // grid[0], size[1] // grid[1])
    sums, count = torch.zeros(()), grid[0] * grid[1]
    for part in images.split(subject.batch(images, options)):
        attention = subject.explained(lambda part=part: attention_maps(restored.network, part))
        sums = sums + attention_distance(attention, grid, patch).cpu() * len(part)
    uniform = attention_distance(torch.full((1, 1, 1, count, count), 1 / count), grid, patch)
    return sums / len(images), float(uniform)
