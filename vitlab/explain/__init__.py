"""Explanations of Vision Transformers: functions of tensors, for any unmodified model of timm's.

    from vitlab.explain import attention_maps, relevance, rollout

The functions are imported when they are first used: the command line checks its options before torch starts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlab.explain.attention import attention_maps, rollout, rollout_map
    from vitlab.explain.faithfulness import perturbation_curves, random_maps
    from vitlab.explain.features import class_attention, feature_relevance, patch_features, principal_components
    from vitlab.explain.methods import relevance
    from vitlab.explain.position import attention_distance, position_similarity, rgb_filters
    from vitlab.explain.recording import UnfitError

_HOMES = {
    "attention_maps": "attention", "rollout": "attention", "rollout_map": "attention", "relevance": "methods",
    "position_similarity": "position", "attention_distance": "position", "rgb_filters": "position",
    "class_attention": "features", "feature_relevance": "features", "patch_features": "features",
    "principal_components": "features", "perturbation_curves": "faithfulness", "random_maps": "faithfulness",
    "UnfitError": "recording",
}  # fmt: skip

__all__ = [
    "UnfitError",
    "attention_distance",
    "attention_maps",
    "class_attention",
    "feature_relevance",
    "patch_features",
    "perturbation_curves",
    "position_similarity",
    "principal_components",
    "random_maps",
    "relevance",
    "rgb_filters",
    "rollout",
    "rollout_map",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
