"""AugMix (Hendrycks et al., ICLR 2020): several chains of operations, blended with one another and with the image.

Operations, magnitudes and the string's options are timm's (`augmix-m5-w4`); the Jensen-Shannon loss of the paper is
not part of it, as it is not part of timm's transform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv, gammaincinv
from torch import Tensor

from vitlab.core.device import to_device
from vitlab.core.plugins import register_policy
from vitlab.core.random import Draws
from vitlab.data.augment.policies import INCREASING, LEVELS, Plan, plan_of_levels, random_signs

TRANSLATE = 0.3
"""Share of the side that full strength moves an image by, as timm sets it for AugMix."""
DEPTHS = 3
"""A chain's length is drawn from 1 to this many operations."""
LEFT_OUT = ("Invert", "SolarizeAdd")
TABLE = {name: entry for name, entry in INCREASING.items() if name not in LEFT_OUT} | {
    f"Translate{axis}": (f"translate_{axis.lower()}", lambda level, sign: level / LEVELS * TRANSLATE * sign)
    for axis in "XY"
}


@dataclass(frozen=True)
class Blend:
    """Image + share x (Σ weights x chain(image) - image), with the roundings of timm's AugMix."""

    chains: list[Plan]
    weights: np.ndarray
    """(B, W), each row adds up to 1."""
    share: np.ndarray
    """(B,) from 0, the image itself, to 1, the mixture alone."""

    def __call__(self, images: Tensor, carry_out: Callable[[Plan, Tensor], Tensor]) -> Tensor:
        table = to_device(np.column_stack([self.weights, self.share]).astype(np.float32), images.device)
        *weights, share = table.T.view(-1, len(images), 1, 1, 1)
        mixed = torch.zeros(images.shape, device=images.device)
        for chain, weight in zip(self.chains, weights, strict=True):
            mixed.add_(carry_out(chain, images).float().mul_(weight))
        mixed = mixed.clamp_(0, 255).floor_()
        original = images.float()
        return mixed.sub_(original).mul_(share).add_(original).to(torch.uint8)


@register_policy("augmix", options=("m", "w", "d", "a", "mstd"), example="augmix-m5-w4")
def plan_augmix(options: Mapping[str, float], draws: Draws) -> Blend:
    """`w` chains (3) of `d` operations (random, 1 to 3) at magnitudes uniform up to `m` (3), or normal about `m` with
    deviation `mstd`; the weights of the chains from Dirichlet(`a`) and the share of the mixture from Beta(`a`, `a`),
    `a` = 1."""
    options = {"m": 3.0, "w": 3.0, "d": 0.0, "a": 1.0, "mstd": 0.0} | dict(options)
    width, fixed, alpha = int(options["w"]), int(options["d"]), options["a"]
    depth = fixed or DEPTHS
    gamma = gammaincinv(alpha, np.clip(draws.uniform("augmix_weights", width), 2.0**-54, None))  # (B, W)
    share = betaincinv(alpha, alpha, draws.uniform("augmix_share")[:, 0])
    steps = width * depth
    keys = np.array(list(TABLE))[draws.integers("augmix", len(TABLE), steps)]
    if options["mstd"]:
        level = options["m"] + options["mstd"] * draws.normal("augmix_level", steps)
    else:
        level = options["m"] * draws.uniform("augmix_level", steps)
    length = np.full((len(draws), width), fixed) if fixed else 1 + draws.integers("augmix_depth", DEPTHS, width)
    applied = np.tile(np.arange(depth), width) < np.repeat(length, depth, axis=1)
    plan = plan_of_levels(keys, np.clip(level, 0, LEVELS), random_signs(draws, "augmix_sign", steps), applied, TABLE)
    columns = [slice(chain * depth, (chain + 1) * depth) for chain in range(width)]
    chains = [Plan(plan.names[:, c], plan.values[:, c]) for c in columns]
    return Blend(chains, gamma / gamma.sum(1, keepdims=True), share)
