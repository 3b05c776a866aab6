"""From a matrix per layer to one from the output's tokens to the input's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.core.errors import ConfigError
from vitlab.explain.recording import UnfitError

HeadFusion = Literal["mean", "max", "min"]


def fuse_heads(attention: Tensor, how: HeadFusion = "mean") -> Tensor:
    """(B, H, Q, K) → (B, Q, K)."""
    if how == "mean":
        return attention.mean(1)
    return attention.amax(1) if how == "max" else attention.amin(1)


def chain(layers: Sequence[Tensor], with_residual: Callable[[Tensor], Tensor], start_layer: int = 0) -> Tensor:
    """The product of the layers' matrices (B, Q, K), last layer leftmost: (B, N_out, N_in).

    `with_residual` adds the skip connection to a square matrix. A class token that joins after the patches (CaiT) and
    attention that pools the tokens in the end are followed. Raises UnfitError where a layer's attention is not
    global over one sequence of tokens, ConfigError where `start_layer` is out of range.
    """
    if not 0 <= start_layer < len(layers):
        raise ConfigError("start_layer", f"got {start_layer}, allowed: 0 to {len(layers) - 1} (the model's layers)")
    joint: Tensor | None = None
    class_joined = False
    for matrix in layers[start_layer:]:
        queries, keys = matrix.shape[-2:]
        tokens = keys if joint is None else joint.shape[-2]
        if queries == 1 and (keys == tokens + 1 or class_joined):
            if keys == tokens + 1:
                assert joint is not None
                joint = F.pad(joint, (1, 0, 1, 0))
                joint[:, 0, 0] = 1
                class_joined, tokens = True, keys
            matrix = F.pad(matrix, (0, 0, 0, keys - 1))  # only the class token attends
            queries = keys
        if joint is not None and (
            matrix.shape[0] != joint.shape[0] or keys > tokens or (keys < tokens and queries > 1)
        ):
            raise _not_global(queries, keys, tokens)
        if queries == keys:
            matrix = with_residual(matrix)
        elif queries != 1:
            raise _not_global(queries, keys, tokens)
        joint = matrix if joint is None else matrix @ joint[:, tokens - keys :]
    assert joint is not None
    return joint


def _not_global(queries: int, keys: int, tokens: int) -> UnfitError:
    return UnfitError(
        f"its attention ({queries} by {keys}, after {tokens} tokens) is not global over one sequence of tokens, so "
        "the layers cannot be chained; method=attnlrp works on it"
    )


def eye_like(matrix: Tensor) -> Tensor:
    """The identity, as (N, N) of `matrix` (B, N, N)."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def patch_grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """The patches' rows and columns for `images` (B, 3, H, W). Raises UnfitError for a model without patches."""
    embed = getattr(model, "patch_embed", None) or getattr(model, "embeds", None)
    height, width = images.shape[-2:]
    feature_size = getattr(embed, "dynamic_feat_size", None)
    if feature_size is not None:
        rows, columns = feature_size((height, width))
        return int(rows), int(columns)
    patch = getattr(embed, "patch_size", None)
    if patch is None:
        raise UnfitError(
            "the model has no patch embedding, so there is no grid of patches to map to; method=attnlrp works on it"
        )
    vertical, horizontal = (patch, patch) if isinstance(patch, int) else patch
    return height // vertical, width // horizontal


def to_grid(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Weights over tokens (B, N), prefix tokens first → the patches' (B, gh, gw)."""
    count = grid[0] * grid[1]
    if weights.shape[-1] < count:
        raise UnfitError(
            f"its attention has {weights.shape[-1]} tokens for {count} patches: they are merged on the way, so no map "
            "of patches follows; method=attnlrp works on it"
        )
    return weights[:, weights.shape[-1] - count :].unflatten(1, grid)
