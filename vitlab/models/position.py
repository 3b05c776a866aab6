"""Position embeddings of another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_position_embedding(
    embedding: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_prefix: int, antialias: bool = True
) -> Tensor:
    """Position embeddings (1, num_prefix + gh x gw, D) for another grid, by bicubic interpolation.

    The first `num_prefix` (class and distillation tokens) are kept. `antialias=True` is timm's way, False DeiT's.
    """
    if old_grid == new_grid:
        return embedding
    prefix, grid = embedding[:, :num_prefix], embedding[:, num_prefix:].float()
    grid = grid.view(1, *old_grid, -1).permute(0, 3, 1, 2)  # (1, D, gh, gw)
    grid = F.interpolate(grid, new_grid, mode="bicubic", antialias=antialias, align_corners=False)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(embedding.dtype)
    return torch.cat([prefix, grid], dim=1)
