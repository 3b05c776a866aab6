"""Whose sizes a model has: those of the choice, or the architecture's own where the user names another one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_NUMBER = re.compile(r".*_(\d{2,4})")


def own_sizes(model: Mapping[str, Any], label: str | None, typed: Collection[str]) -> tuple[dict[str, Any], str | None]:
    """The values of `model`, and what to call it.

    Where `model.name` is not the one of the choice `label`, or was typed, the architecture brings its own sizes, and
    only those count that were typed or that an experiment's file sets. The name then says which architecture it is, and
    in brackets which sizes are not the choice's or the architecture's: `vit_small_patch16_224(depth=6)`.
    """
    values = dict(model)
    chosen = _choice(label)
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
    """Side in pixels of the images that timm's architecture `name` is made for: most names end in it."""
    named = _NUMBER.fullmatch(name.partition(".")[0])
    if named:
        return int(named[1])
    import timm  # two seconds, for the few names that do not tell

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return known.input_size[-1] if known else 224


def _choice(label: str | None) -> Mapping[str, Any] | None:
    """The values of a choice under conf/model, None for any other name."""
    from vitlab.config.choices import choice, options
    from vitlab.config.schema import plain

    return plain(choice("model", label)) if label in options("model") else None
