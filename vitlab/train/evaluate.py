"""Exact evaluation: every image once, however many processes share the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vitlab.core.metrics import METRICS
from vitlab.train.distributed import gather_values

if TYPE_CHECKING:
    from vitlab.data.loader import Batch

EVAL_BATCH = 256
"""Images per forward pass. Fixed, so that training and task=evaluate agree to the last digit."""


@dataclass(frozen=True)
class Evaluation:
    """Figures over N images, and what the model said of each; the arrays are in the data set's order."""

    top1: float
    """Percent."""
    top5: float
    loss: float
    """Mean cross-entropy in nats."""
    index: np.ndarray
    """(N,) int64"""
    label: np.ndarray
    """(N,) int64"""
    ranking: np.ndarray
    """(N, 5) int32: the most probable classes, best first; fewer columns where there are fewer classes."""
    losses: np.ndarray
    """(N,) float32"""
    further: Mapping[str, float] = field(default_factory=dict)
    """The metrics that plugins registered."""

    def row(self) -> dict[str, float]:
        """Every metric by its name in METRICS."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, **self.further}


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The arithmetic of `recipe.precision`: bf16 autocast, or plain float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], normalise, device: torch.device, precision: str
) -> Evaluation | None:
    """Evaluate `model` on this process's share of the images and put the shares together.

    `normalise` turns uint8 images (B, 3, S, S) into the model's float input. Returns None on every rank but 0.
    """
    model.eval()
    further = [metric for metric in METRICS.values() if metric.compute]
    parts: list[tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for batch in batches:
        with autocast(device, precision):
            logits = model(normalise(batch.images))
        logits = logits.float()  # (B, C)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        values = [metric.compute(logits, batch.labels).float() for metric in further]  # pyright: ignore
        ranking = logits.topk(min(5, logits.shape[1])).indices
        parts.append((batch.index, batch.labels, ranking, losses, torch.stack([losses, *values], 1)))
    local = _join(parts)
    shares = gather_values(local)
    if shares is None:
        return None
    index, label, ranking, losses, values = (
        np.concatenate(column) for column in zip(*(s for s in shares if s), strict=True)
    )
    order = np.argsort(index)
    index, label, ranking, losses = index[order], label[order], ranking[order], losses[order]
    hits = ranking == label[:, None]
    return Evaluation(
        top1=100 * float(hits[:, 0].mean()),
        top5=100 * float(hits.any(1).mean()),
        loss=float(losses.astype(np.float64).mean()),
        index=index,
        label=label,
        ranking=ranking,
        losses=losses,
        further={m.name: float(v) for m, v in zip(further, values.astype(np.float64).mean(0)[1:], strict=True)},
    )


def _join(parts: list) -> tuple[np.ndarray, ...] | None:
    """One array per column, copied from the device once, after all batches are on their way."""
    if not parts:
        return None
    index, labels, ranking, losses, values = zip(*parts, strict=True)
    tensors = (torch.cat(labels), torch.cat(ranking).int(), torch.cat(losses), torch.cat(values))
    return (np.concatenate(index), *(t.cpu().numpy() for t in tensors))
