"""Class relevance of image patches: three methods, on any timm Vision Transformer as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.core.errors import ConfigError
from vitlab.explain.attention import chain, eye_like, patch_grid, read_tokens, to_grid
from vitlab.explain.lrp_rules import OVERWRITTEN
from vitlab.explain.recording import Recording, UnfitError, prepared, record, unwrapped

Method = Literal["lrp", "generic", "attnlrp"]


def relevance(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | Sequence[int] | int | None = None,
    *,
    method: Method = "lrp",
    start_layer: int = 0,
    readout: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The relevance of each patch of images (B, 3, H, W) for a class: (B, gh, gw), or (B, K, gh, gw) for K classes.

    `targets`: class indices (B,) or (B, K), one index for all images, or None for the predicted class. `method`:

    - `lrp`: Chefer et al. (CVPR 2021), eq. 13-14: Π_l (I + E_h[(∇A_l ⊙ R_l)⁺]), R the layer-wise relevance; ≥ 0.
    - `generic`: Chefer et al. (ICCV 2021), eq. 5-6: the same with the attention A_l itself in place of R_l; ≥ 0.
    - `attnlrp`: Achtibat et al. (ICML 2024): relevance down to the pixels, summed over patches; signed. Its total is
      not the class's score: biases, embeddings and each softmax keep a part.

    `readout` makes the scores to be explained, (B, C), of the model's output, where those are not the logits.
    An image's map does not depend on the batch. Half-precision weights are widened first. Raises UnfitError, saying
    why and which method fits; ConfigError for a class or layer out of range.
    """
    model = unwrapped(model)
    with prepared(model):
        recording = record(model, images, readout=readout)
        classes = check_targets(targets, recording.logits)  # (B, K)
        recording.recorder.reuse = classes.shape[1] > 1
        explain = _pixels if method == "attnlrp" else _chained
        try:
            maps = [explain(recording, one_hot, method, start_layer) for one_hot in _seeds(classes, recording.logits)]
        except RuntimeError as error:
            if OVERWRITTEN not in str(error):
                raise
            other = "explain=rollout" if method == "attnlrp" else "explain.method=attnlrp, or explain=rollout,"
            raise UnfitError(f"it writes over activations that relevance needs; {other} may work on it") from error
    stacked = torch.stack([_onto_patches(m, model, images) for m in maps], 1)
    single = targets is None or isinstance(targets, int) or torch.as_tensor(targets).ndim < 2
    return stacked[:, 0] if single else stacked


def check_targets(targets: Tensor | Sequence[int] | int | None, logits: Tensor) -> Tensor:
    """Class indices (B, K) for logits (B, C). Raises ConfigError for an index out of range or a wrong shape."""
    size, count = logits.shape
    if targets is None:
        return logits.argmax(1, keepdim=True)
    classes = torch.as_tensor(targets, device=logits.device)
    if classes.is_floating_point():
        raise ConfigError("targets", f"class indices are whole numbers, got {classes.dtype}")
    classes = classes.expand(size) if classes.ndim == 0 else classes
    classes = classes.unsqueeze(1) if classes.ndim == 1 else classes
    if classes.ndim != 2 or len(classes) != size:
        raise ConfigError("targets", f"expected ({size},) or ({size}, K) class indices, got {tuple(classes.shape)}")
    wrong = classes[(classes < 0) | (classes >= count)]
    if len(wrong):
        raise ConfigError("targets", f"class {int(wrong[0])} is out of range: the model has {count} (0 to {count - 1})")
    return classes.long()


def _seeds(classes: Tensor, logits: Tensor) -> list[Tensor]:
    """For each of K classes the rows (B, C) that start the backward pass."""
    return [F.one_hot(column, logits.shape[1]).to(logits.dtype) for column in classes.unbind(1)]


def _chained(recording: Recording, one_hot: Tensor, method: str, start_layer: int) -> Tensor:
    """Relevance of all tokens, (B, N), by products of layer matrices."""
    tokens = recording.tokens
    attention = [a for a in recording.attention() if a.requires_grad]
    inputs = attention + ([tokens] if tokens is not None else [])
    gradients = recording.pull("gradient", one_hot, inputs)
    values = recording.pull("relevance", one_hot, inputs) if method == "lrp" else [x.detach() for x in inputs]
    layers = [
        (g * v).clamp_min_(0).mean(1)
        for g, v in zip(gradients[: len(attention)], values, strict=False)
        if g is not None and v is not None
    ]
    joint = chain(layers, lambda m: m + eye_like(m), start_layer)  # (B, Q, N)
    if method == "lrp":
        _refuse_foreign(recording)
    read = read_tokens(recording, joint.shape[-2]).to(joint.dtype)
    if tokens is not None and joint.shape[-2] == tokens.shape[1]:
        g, v = gradients[-1], values[-1]
        assert g is not None and v is not None
        score = (v if method == "lrp" else g * v).sum(-1).clamp_min(0) * read
        total = score.sum(-1, keepdim=True)
        read = torch.where(total > 0, score / total.clamp_min(torch.finfo(total.dtype).tiny), read)
    return torch.einsum("bq,bqn->bn", read / read.sum(-1, keepdim=True), joint)


def _refuse_foreign(recording: Recording) -> None:
    """Operations without a rule that lie after the first attention would be passed with a gradient, not relevance."""
    unknown = sorted(name for name, before in recording.recorder.foreign.items() if before > 0)
    if unknown:
        raise UnfitError(
            f"its layers use {', '.join(unknown)}, for which lrp has no rule; "
            "explain.method=generic or explain.method=attnlrp may fit"
        )


def _pixels(recording: Recording, one_hot: Tensor, method: str, start_layer: int) -> Tensor:
    """AttnLRP's input × modified gradient, summed over colours: (B, H, W)."""
    if start_layer:
        raise ConfigError("start_layer", "explain.method=attnlrp goes down to the pixels and takes no start_layer")
    (gradient,) = recording.pull("attnlrp", one_hot, [recording.images])
    if gradient is None:
        raise UnfitError("its class scores do not depend on the image by any differentiable path")
    return (recording.images * gradient).detach().sum(1)


def _onto_patches(values: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """Token weights (B, N), or pixels (B, H, W), as (B, gh, gw); pixels stay where the model has no patches."""
    if values.ndim == 2:
        return to_grid(values, patch_grid(model, images)).detach()
    try:
        rows, columns = patch_grid(model, images)
    except UnfitError:
        return values
    height, width = values.shape[-2:]
    vertical, horizontal = height // rows, width // columns
    kept = values[:, : rows * vertical, : columns * horizontal]
    return kept.unflatten(2, (columns, horizontal)).unflatten(1, (rows, vertical)).sum((2, 4))
