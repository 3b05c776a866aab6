"""Which operations a sample goes through, and how strongly: AutoAugment, RandAugment, colour jitter.

The meaning of names, levels and strings is timm's (timm.data.auto_augment), which DeiT trains with; the policies are
AutoAugment's (Cubuk et al., CVPR 2019, "ImageNet policy") and RandAugment's (Cubuk et al., 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from vitlab.core.plugins import register_policy
from vitlab.core.random import Draws

LEVELS = 10.0
"""The magnitude at which an operation is at full strength."""
TRANSLATE = 0.45
"""Share of the side that full strength moves an image by."""


@dataclass(frozen=True)
class Plan:
    """What happens to each of B samples, in L steps: `names` (B, L) of operations, "" for none; `values` (B, L)."""

    names: np.ndarray
    values: np.ndarray

    @staticmethod
    def one_after_another(plans: list[Plan]) -> Plan:
        """All the steps of several plans for the same samples."""
        if not plans:
            return Plan(np.empty((0, 0), dtype=object), np.empty((0, 0)))
        return Plan(np.hstack([p.names for p in plans]), np.hstack([p.values for p in plans]))

    def steps(self) -> list[Step]:
        """The plan, step by step, with the samples sorted by operation."""
        return [_sort(names, values) for names, values in zip(self.names.T, self.values.T, strict=True)]


@dataclass(frozen=True)
class Step:
    """One operation for each of B samples, sorted by operation: sample `order[i]` (B,) comes i-th, and `values` (B,)
    float32 are in that order. The first `sizes[0]` samples go through `names[0]` and so on."""

    order: np.ndarray
    values: np.ndarray
    names: list[str]
    sizes: list[int]


def _sort(names: np.ndarray, values: np.ndarray) -> Step:
    found, kind, sizes = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(kind, kind="stable")
    return Step(order, values[order].astype(np.float32), found.tolist(), sizes.tolist())


Level = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _fixed(_: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return np.zeros_like(sign)


def _signed(full: float) -> Level:
    return lambda level, sign: level / LEVELS * full * sign


def _whole(function: Callable[[np.ndarray], np.ndarray]) -> Level:
    return lambda level, _: function(level / LEVELS)


def _enhance(level: np.ndarray, _: np.ndarray) -> np.ndarray:
    return level / LEVELS * 1.8 + 0.1


def _enhance_increasing(level: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return np.maximum(0.1, 1 + level / LEVELS * 0.9 * sign)


_COMMON: dict[str, tuple[str, Level]] = {
    "AutoContrast": ("autocontrast", _fixed),
    "Equalize": ("equalize", _fixed),
    "Invert": ("invert", _fixed),
    "Rotate": ("rotate", _signed(30)),
    "SolarizeAdd": ("solarize_add", _whole(lambda v: np.minimum(128, np.floor(v * 110)))),
    "ShearX": ("shear_x", _signed(0.3)),
    "ShearY": ("shear_y", _signed(0.3)),
    "TranslateX": ("translate_x", _signed(TRANSLATE)),
    "TranslateY": ("translate_y", _signed(TRANSLATE)),
}
_PLAIN: dict[str, tuple[str, Level]] = _COMMON | {
    "Posterize": ("posterize", _whole(lambda v: np.floor(v * 4))),
    "Solarize": ("solarize", _whole(lambda v: np.minimum(256, np.floor(v * 256)))),
    **{name: (name.lower(), _enhance) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
}
INCREASING: dict[str, tuple[str, Level]] = _COMMON | {
    "Posterize": ("posterize", _whole(lambda v: np.maximum(0, 4 - np.floor(v * 4)))),
    "Solarize": ("solarize", _whole(lambda v: 256 - np.minimum(256, np.floor(v * 256)))),
    **{name: (name.lower(), _enhance_increasing) for name in ("Color", "Contrast", "Brightness", "Sharpness")},
}
_ORIGINAL = _PLAIN | {"Posterize": ("posterize", _whole(lambda v: np.floor(v * 4) + 4))}

# AutoAugment's ImageNet policy, as (operation, probability, magnitude) twice.
IMAGENET_POLICY = [
    [("Posterize", 0.4, 8), ("Rotate", 0.6, 9)],
    [("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)],
    [("Equalize", 0.8, 8), ("Equalize", 0.6, 3)],
    [("Posterize", 0.6, 7), ("Posterize", 0.6, 6)],
    [("Equalize", 0.4, 7), ("Solarize", 0.2, 4)],
    [("Equalize", 0.4, 4), ("Rotate", 0.8, 8)],
    [("Solarize", 0.6, 3), ("Equalize", 0.6, 7)],
    [("Posterize", 0.8, 5), ("Equalize", 1.0, 2)],
    [("Rotate", 0.2, 3), ("Solarize", 0.6, 8)],
    [("Equalize", 0.6, 8), ("Posterize", 0.4, 6)],
    [("Rotate", 0.8, 8), ("Color", 0.4, 0)],
    [("Rotate", 0.4, 9), ("Equalize", 0.6, 2)],
    [("Equalize", 0.0, 7), ("Equalize", 0.8, 8)],
    [("Invert", 0.6, 4), ("Equalize", 1.0, 8)],
    [("Color", 0.6, 4), ("Contrast", 1.0, 8)],
    [("Rotate", 0.8, 8), ("Color", 1.0, 2)],
    [("Color", 0.8, 8), ("Solarize", 0.8, 7)],
    [("Sharpness", 0.4, 7), ("Invert", 0.6, 8)],
    [("ShearX", 0.6, 5), ("Equalize", 1.0, 9)],
    [("Color", 0.4, 0), ("Equalize", 0.6, 3)],
    [("Equalize", 0.4, 7), ("Solarize", 0.2, 4)],
    [("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)],
    [("Invert", 0.6, 4), ("Equalize", 1.0, 8)],
    [("Color", 0.6, 4), ("Contrast", 1.0, 8)],
    [("Equalize", 0.8, 8), ("Equalize", 0.6, 3)],
]


def plan_flip(probability: float, draws: Draws) -> Plan:
    """Left to right, with `probability`."""
    flipped = draws.uniform("flip") < probability
    return Plan(np.where(flipped, "flip", "").astype(object), np.zeros(flipped.shape))


class Stage(Protocol):
    """What a policy returns that is more than a list of operations: a function of the images."""

    def __call__(self, images: Tensor, carry_out: Callable[[Plan, Tensor], Tensor]) -> Tensor:
        """New uint8 images (B, 3, H, W); `carry_out(plan, images)` applies the operations of a plan."""
        ...


@register_policy("original")
def plan_auto_augment(options: Mapping[str, float], draws: Draws) -> Plan:
    """One of AutoAugment's 25 sub-policies per sample."""
    chosen = draws.integers("autoaugment", len(IMAGENET_POLICY))[:, 0]
    applied, sign = draws.uniform("autoaugment_apply", 2), random_signs(draws, "autoaugment_sign", 2)
    table = np.array([[entry[1:] for entry in policy] for policy in IMAGENET_POLICY])  # (25, 2, 2)
    keys = np.array([[entry[0] for entry in policy] for policy in IMAGENET_POLICY])
    probability, level = table[chosen, :, 0], table[chosen, :, 1]
    return plan_of_levels(keys[chosen], level, sign, applied < probability, _ORIGINAL)


@register_policy("rand", options=("m", "mstd", "mmax", "inc", "n", "p"), example="rand-m9-mstd0.5-inc1")
def plan_rand_augment(options: Mapping[str, float], draws: Draws) -> Plan:
    """`n` operations per sample, drawn with replacement, each applied with probability `p` at magnitude `m`.

    `options` are timm's: m magnitude (10), n operations (2), p probability (0.5), mstd deviation of the magnitude
    (0; above 100: uniform up to m), mmax its ceiling (10), inc=1 operations whose severity always increases.
    """
    options = {"m": 10.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "mmax": LEVELS, "inc": 0.0} | dict(options)
    table = INCREASING if options["inc"] else _PLAIN
    steps = int(options["n"])
    keys = np.array(list(table))[draws.integers("randaugment", len(table), steps)]
    if options["mstd"] > 100:
        level = draws.uniform("randaugment_level", steps) * options["m"]
    else:
        level = options["m"] + options["mstd"] * draws.normal("randaugment_level", steps)
    level = np.clip(level, 0, options["mmax"])
    applied = draws.uniform("randaugment_apply", steps) < options["p"]
    return plan_of_levels(keys, level, random_signs(draws, "randaugment_sign", steps), applied, table)


def plan_color_jitter(strength: float, draws: Draws) -> Plan:
    """Brightness, contrast and saturation in random order, each by a factor uniform in 1 ± strength (torchvision)."""
    names = np.array(["brightness", "contrast", "color"])
    order = np.argsort(draws.uniform("jitter_order", 3), axis=1)
    factors = max(0.0, 1 - strength) + draws.uniform("jitter", 3) * (1 + strength - max(0.0, 1 - strength))
    return Plan(names[order], np.take_along_axis(factors, order, 1))


def random_signs(draws: Draws, stream: str, n: int) -> np.ndarray:
    """(B, n) of 1 and -1, equally often."""
    return np.where(draws.uniform(stream, n) < 0.5, -1.0, 1.0)


def plan_of_levels(
    keys: np.ndarray, level: np.ndarray, sign: np.ndarray, applied: np.ndarray, table: Mapping[str, tuple[str, Level]]
) -> Plan:
    """The plan (B, L) of timm's operations `keys` (B, L) at magnitudes `level` (0 to 10) and with signs (±1), where
    they are `applied` (bool). `table` says of each key which operation it is, and its value at a magnitude."""
    names, values = np.full(keys.shape, "", dtype=object), np.zeros(keys.shape)
    for key, (name, to_value) in table.items():
        rows = (keys == key) & applied
        names[rows] = name
        values[rows] = to_value(level[rows], sign[rows])
    return Plan(names, values)
