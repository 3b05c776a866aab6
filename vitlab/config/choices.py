"""What one choice of a group means, without composing a run: its values, and the sizes of a model that is named.

The parameters of a plain ViT are counted by arithmetic: plans need their number before timm is imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vitlab.config.parse import build, register_schemas
from vitlab.config.schema import GROUPS, ModelConfig, plain
from vitlab.config.suggestions import suggest
from vitlab.core.errors import ConfigError

_IN_WHEEL = Path(__file__).parents[1] / "conf"
CONF = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).parents[2] / "conf"
"""The folder of all choices: next to vitlab/ in a checkout, inside it where a wheel is installed."""
SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_NUMBER = re.compile(r"(?:vit_|deit|beit|swin|xcit|cait|eva).*_(\d{2,4})")
"""Names that end in their image's size, as most transformers' do; a ResNet's number is another."""
_WIDTHS = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
"""timm's names → width and depth."""
_PLAIN = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d+)_\d+")


@cache
def choice(group: str, name: str) -> Any:
    """The frozen dataclass that `conf/GROUP/NAME.yaml` describes. Raises ConfigError for an unknown name."""
    register_schemas()
    return build(GROUPS[group], compose_group(group, name), group)


def options(group: str) -> list[str]:
    """The names of a group's options."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def compose_group(group: str, name: str) -> dict[str, Any]:
    """The plain values of one option of a group that has no schema, such as `table`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    if name not in options(group):
        raise ConfigError(group, f"{name!r} is no choice of conf/{group}.{suggest(name, options(group))}")
    if GlobalHydra.instance().is_initialized():
        tree = compose(f"{group}/{name}")
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            tree = compose(f"{group}/{name}")
    return OmegaConf.to_container(tree[group], resolve=True)  # pyright: ignore


def own_sizes(model: Mapping[str, Any], label: str | None, typed: Collection[str]) -> tuple[dict[str, Any], str | None]:
    """The values of `model`, and what to call it.

    Where `model.name` is not the one of the choice `label`, or was typed, the architecture brings its own sizes, and
    only those count that were typed or that an experiment's file sets. The name then is that of the architecture, and
    in brackets which sizes are not the choice's or the architecture's: `vit_small_patch16_224(depth=6)`.
    """
    values = dict(model)
    chosen = _values(label)
    name = values.get("name")
    if "model.name" in typed or (chosen is not None and name != chosen["name"]):
        own = {**dict.fromkeys(SIZES), "image_size": native_image_size(str(name))}
        given = {k for k in own if f"model.{k}" in typed or (chosen is not None and values.get(k) != chosen[k])}
        values |= {key: value for key, value in own.items() if key not in given}
        called = str(name)
    elif chosen is not None:
        own, called = {key: chosen[key] for key in (*SIZES, "image_size")}, label
    else:
        return values, label
    other = [f"{key}={values[key]}" for key in own if key in values and values[key] != own[key]]
    return values, f"{called}({','.join(other)})" if other else called


def native_image_size(name: str) -> int:
    """Side in pixels of the images that timm's architecture `name` is made for."""
    named = _NUMBER.fullmatch(name.partition(".")[0])
    if named:
        return int(named[1])
    import timm  # two seconds, for the few names without a size

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return known.input_size[-1] if known else 224


def _values(label: str | None) -> Mapping[str, Any] | None:
    """The values of a choice under conf/model, None for any other name."""
    return plain(choice("model", label)) if label in options("model") else None


def count_parameters(model: ModelConfig, num_classes: int) -> int | None:
    """Of timm's `vit_*` and `deit_*` with the sizes given in `model`; None for any other name.

    Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021): patch embedding, class token, a position embedding
    for each token, blocks of attention and an MLP four times as wide, a final norm and a linear head.
    """
    named = _PLAIN.fullmatch(model.name)
    if named is None:
        return None
    width, depth = _WIDTHS[named[1]]
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
