"""Attention maps of an unmodified model, and Attention Rollout (Abnar & Zuidema, ACL 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.core.errors import ConfigError
from vitlab.explain.recording import Recording, UnfitError, prepared, record, unwrapped


def attention_maps(model: nn.Module, images: Tensor) -> Tensor:
    """Softmax attention of every layer, (L, B, H, N, N), for images (B, 3, H, W): a[l, b, h, q] sums to 1 over keys.

    Works under fused attention and leaves the model as it was. Attention that pools the tokens in the end is not
    among them. Raises UnfitError for a model without attention, or whose layers' attention differ in shape.
    """
    model = unwrapped(model)
    with prepared(model), torch.no_grad():
        maps = [a for a in record(model, images, backward=False).attention() if a.shape[-1] == a.shape[-2]]
    if len({tuple(a.shape) for a in maps}) != 1 or maps[0].shape[0] != len(images):
        shapes = sorted({"×".join(map(str, a.shape[1:])) for a in maps})
        raise UnfitError(f"its attention is not global and alike in every layer (heads×queries×keys: {shapes})")
    return torch.stack([a.detach() for a in maps])


def rollout(
    attention: Sequence[Tensor] | Tensor,
    *,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    start_layer: int = 0,
) -> Tensor:
    """Attention Rollout (B, N, N) from attention (L, B, H, N, N): Π_l rownorm(½ (fused A_l + I)), last layer leftmost.

    Rows sum to 1. `discard_ratio` sets that share of each fused matrix to 0, smallest entries first (never the class
    token's attention to itself); `start_layer` leaves out the layers before it. Class-agnostic by construction.
    """
    if not 0 <= discard_ratio < 1:
        raise ConfigError("discard_ratio", f"got {discard_ratio}, allowed: 0 up to, but not including, 1")

    def with_residual(matrix: Tensor) -> Tensor:
        matrix = (matrix + eye_like(matrix)) / 2
        return matrix / matrix.sum(-1, keepdim=True)

    layers = [_discard(fuse_heads(a, head_fusion), discard_ratio) for a in attention]
    return chain(layers, with_residual, start_layer)


def _discard(matrix: Tensor, share: float) -> Tensor:
    """`matrix` (B, Q, K) with its smallest entries 0."""
    flat = matrix.flatten(1)
    count = int(flat.shape[1] * share)
    if not count:
        return matrix
    dropped = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(count, largest=False).indices, True)
    dropped[:, 0] = False
    return flat.masked_fill(dropped, 0).view_as(matrix)


def rollout_map(
    model: nn.Module,
    images: Tensor,
    *,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    start_layer: int = 0,
) -> Tensor:
    """Attention Rollout from what the classifier reads to the patches: (B, gh, gw), for images (B, 3, H, W).

    What the classifier reads is measured: the class token's row, or the mean of the rows of all pooled tokens.
    """
    model = unwrapped(model)
    with prepared(model):
        recording = record(model, images, backward=False)
        attention = [a.detach() for a in recording.attention()]
        joint = rollout(attention, head_fusion=head_fusion, discard_ratio=discard_ratio, start_layer=start_layer)
        read = read_tokens(recording, joint.shape[-2]).to(joint.dtype)  # (B, N)
    weights = torch.einsum("bn,bnm->bm", read / read.sum(-1, keepdim=True), joint)
    return to_grid(weights, patch_grid(model, images)).detach()


def read_tokens(recording: Recording, count: int) -> Tensor:
    """Which of the last layer's `count` tokens the logits depend on, (B, count) bool: class token, or pooled ones."""
    tokens, logits = recording.tokens, recording.logits
    if tokens is None or tokens.shape[1] != count or not logits.requires_grad:
        first = torch.zeros(len(logits), count, dtype=torch.bool, device=logits.device)
        first[:, 0] = True
        return first
    # Random weights: the sum of all logits may not depend on a token where the classifier's rows cancel.
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.rand(logits.shape, generator=generator).to(logits)
    (gradient,) = recording.pull("gradient", cotangent, [tokens])
    assert gradient is not None
    return (gradient != 0).any(-1)


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
        "the layers cannot be chained; explain.method=attnlrp works on it"
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
            "the model has no patch embedding, so there is no grid of patches to map to; "
            "explain.method=attnlrp works on it"
        )
    vertical, horizontal = (patch, patch) if isinstance(patch, int) else patch
    return height // vertical, width // horizontal


def to_grid(weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """Weights over tokens (B, N), prefix tokens first → the patches' (B, gh, gw)."""
    count = grid[0] * grid[1]
    if weights.shape[-1] < count:
        raise UnfitError(
            f"its attention has {weights.shape[-1]} tokens for {count} patches: they are merged on the way, so no map "
            "of patches follows; explain.method=attnlrp works on it"
        )
    return weights[:, weights.shape[-1] - count :].unflatten(1, grid)
