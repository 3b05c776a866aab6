"""Is a map faithful? Take away what it calls important, and see whether the model still knows the class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = tuple(i / 10 for i in range(11))
"""Shares of the patches that are taken away."""
PERTURBATION = 10
"""Positive and negative perturbation (Chefer et al.) average the accuracy over the shares 0 to 0.9."""


@dataclass(frozen=True)
class Curves:
    """How a method's maps stand up, over N images; `share` (S,) of patches, curves (S, N)."""

    share: Tensor
    most_first: Tensor
    """1 where the class is still the top prediction, the most relevant patches removed first."""
    least_first: Tensor
    """The same, the least relevant patches removed first."""
    deletion: Tensor
    """The class's probability, the most relevant patches removed first (Petsiuk et al., RISE)."""
    insertion: Tensor
    """The class's probability, the most relevant patches given first, onto an empty image."""

    def scores(self) -> dict[str, tuple[float, float]]:
        """Areas under the curves in percent, as (mean over images, standard error).

        `positive` and `deletion`: lower is better. `negative` and `insertion`: higher is better.
        """
        part = slice(0, PERTURBATION)
        areas = {
            "positive": _area(self.most_first[part], self.share[part]),
            "negative": _area(self.least_first[part], self.share[part]),
            "deletion": _area(self.deletion, self.share),
            "insertion": _area(self.insertion, self.share),
        }
        return {name: (float(a.mean()), _standard_error(a)) for name, a in areas.items()}


def _area(curve: Tensor, share: Tensor) -> Tensor:
    """Mean height (N,) of curves (S, N) in percent, by trapezia over the span of `share`."""
    return 100 * torch.trapezoid(curve, share, dim=0) / (share[-1] - share[0])


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


@torch.no_grad()
def perturbation_curves(
    model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor, *, batch: int = 64, fill: Tensor | None = None
) -> Curves:
    """Curves for images (N, 3, H, W), classes (N,) and maps (N, gh, gw); higher in a map is more relevant.

    Removed patches become `fill` (3, 1, 1), by default 0: the mean colour of normalised images, as in Chefer's
    evaluation. Ties are broken by place.
    """
    maps = maps.to(images.device)
    size = images.shape[-2:]
    empty = torch.zeros(3, 1, 1, device=images.device) if fill is None else fill.to(images.device)
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view_as(maps)  # 0: most relevant
    count = rank[0].numel()
    curves: dict[str, list[Tensor]] = {"most_first": [], "least_first": [], "deletion": [], "insertion": []}
    for share in STEPS:
        removed = round(share * count)
        for names, kept in (
            (("most_first", "deletion"), rank >= removed),
            (("least_first",), rank < count - removed),
            (("insertion",), rank < removed),
        ):
            hit, probability = _ask(model, images, targets, kept, empty, size, batch)
            for name in names:
                curves[name].append(hit if name.endswith("first") else probability)
    return Curves(torch.tensor(STEPS), **{name: torch.stack(rows) for name, rows in curves.items()})


def _ask(
    model: nn.Module, images: Tensor, targets: Tensor, kept: Tensor, empty: Tensor, size: torch.Size, batch: int
) -> tuple[Tensor, Tensor]:
    """Whether the class is still first, and its probability, both (N,) on the CPU, with only `kept` patches visible."""
    hits, probabilities = [], []
    for i in range(0, len(images), batch):
        part = slice(i, i + batch)
        visible = F.interpolate(kept[part].unsqueeze(1).to(images.dtype), tuple(size), mode="nearest")
        chances = model(images[part] * visible + empty * (1 - visible)).softmax(-1)
        hits.append(chances.argmax(1) == targets[part])
        probabilities.append(chances.gather(1, targets[part].unsqueeze(1)).squeeze(1))
    return torch.cat(hits).float().cpu(), torch.cat(probabilities).float().cpu()


def random_maps(count: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    """Uniform noise (count, gh, gw): the baseline that every method must beat."""
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def score_table(curves: Mapping[str, Curves]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of text, a row per method."""
    titles = {
        "positive": "positive pert. ↓", "negative": "negative pert. ↑", "deletion": "deletion ↓",
        "insertion": "insertion ↑",
    }  # fmt: skip
    rows = []
    for method, curve in curves.items():
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in curve.scores().values()]
        rows.append([method, *cells])
    return ["method", *titles.values()], rows
