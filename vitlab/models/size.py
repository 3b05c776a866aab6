"""How many parameters a plain Vision Transformer has, by arithmetic: plans need it before timm is imported."""

from __future__ import annotations

import re

from vitlab.config import ModelConfig
from vitlab.config.choices import native_image_size

_SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
"""timm's names → width and depth."""
_PLAIN = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_\d+")


def count_parameters(model: ModelConfig, num_classes: int) -> int | None:
    """Of timm's `vit_*` and `deit_*` with the sizes given in `model`; None for any other name.

    Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021): patch embedding, class token, a position embedding
    for each token, blocks of attention and an MLP four times as wide, a final norm and a linear head.
    """
    named = _PLAIN.fullmatch(model.name)
    if named is None:
        return None
    width, depth = _SIZES[named[1]]
    width, depth, patch = model.embed_dim or width, model.depth or depth, model.patch_size or int(named[2])
    tokens = (model.image_size // patch) ** 2 + 1
    embedding = (3 * patch**2 + 1) * width + width + tokens * width
    block = 12 * width**2 + 13 * width  # qkv 3, projection 1, MLP 4 + 4; their biases 9; two norms 4
    return embedding + depth * block + 2 * width + (width + 1) * num_classes


def check_label(label: str, num_parameters: int, num_classes: int) -> None:
    """Raise RuntimeError where `label` names an architecture of timm's that has another number of parameters.

    A table's row must never name a model that was not built. Labels that name no plain architecture pass.
    """
    if _PLAIN.fullmatch(label) is None:
        return
    own = count_parameters(ModelConfig(label, native_image_size(label)), num_classes)
    if own != num_parameters:
        raise RuntimeError(
            f"the model called {label} has {num_parameters:,} parameters as it is built here, and {label} with "
            f"{num_classes} classes has {own:,}"
        )
