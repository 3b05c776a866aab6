"""The keys of `explain`, one flat schema for its four kinds, and the checkpoints that it reads.

Light: a mistake is reported before torch is imported.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitlab.config import Config, ConfigError, build, find_checkpoint
from vitlab.core.hub import INDEX
from vitlab.core.integrity import misfit, read_mapping

MethodName = Literal["rollout", "generic", "lrp", "attnlrp"]
OF_EVALUATION = re.compile(r"eval(?::(\d+)(?:-(\d+))?)?")
"""`explain.images` that are of the evaluation set: `eval`, `eval:N`, `eval:N-M`."""


_ROLLOUT = ("head_fusion", "discard_ratio", "start_layer")
_USED = {
    "position": ("images", "labels"),
    "rollout": ("images", "labels", "compare", *_ROLLOUT),
    "relevance": ("images", "labels", "compare", "method", "start_layer", "class_index", "class_name", "top_k"),
    "relevance explain.compare=true": ("images", "labels", "compare", "method", "methods", "class_index", "class_name",
                                       *_ROLLOUT),
    "features": ("images", "labels", "method", *_ROLLOUT),
    "faithfulness": ("images", "labels", "methods", "num_images", "target", "synthetic", *_ROLLOUT),
    "faithfulness explain.synthetic=true": ("methods", "synthetic", "synthetic_steps"),
}  # fmt: skip
"""What each kind reads in addition to `batch` and `output`."""
_STUDY = {"cells": [{"id": str, "name?": str, "part?": str}]}
"""What is read of a study's file."""


def _number(default: Any, low: float | None = None, high: float | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class ExplainConfig:
    """What `task=explain` draws. conf/explain/base.yaml repeats these values; a test compares them."""

    kind: Literal["position", "rollout", "features", "relevance", "faithfulness"]
    images: str | tuple[str, ...] | None = None
    """Files, folders, patterns such as 'photos/*.jpg'; `eval` or `eval:N` or `eval:N-M` for images of the
    checkpoint's evaluation set. Null: scikit-learn's two photographs (faithfulness: `eval`)."""
    class_index: int | tuple[int, ...] | None = None
    class_name: str | int | tuple[str | int, ...] | None = None
    top_k: int | None = _number(None, low=1)
    """A column for each of the k most probable classes. Without any class: the most probable one."""
    method: Literal["lrp", "generic", "attnlrp"] = "lrp"
    methods: tuple[MethodName, ...] = ("rollout", "generic", "lrp", "attnlrp")
    """For `compare` and for faithfulness."""
    head_fusion: Literal["mean", "max", "min"] = "mean"
    discard_ratio: float = _number(0.0, low=0, high=0.999)
    start_layer: int = _number(0, low=0)
    labels: tuple[str | int, ...] | None = None
    """What to call each checkpoint in the figure."""
    compare: bool = False
    """One figure side by side: all methods for one checkpoint, or one method for several checkpoints."""
    num_images: int = _number(100, low=2)
    """Images that faithfulness is measured on, spread evenly over the data."""
    target: Literal["predicted", "label"] = "predicted"
    """Whose class faithfulness asks about."""
    synthetic: bool = False
    """Faithfulness on scenes with two objects, by a small model trained on the spot; takes no checkpoint."""
    synthetic_steps: int = _number(500, low=1)
    batch: int = _number(8, low=1)
    """Images at a time, fewer where an image has many patches; a matter of memory, never of results."""
    output: str | None = None
    """Folder for the figures; null: output_dir/explain."""

    @property
    def reads_evaluation_images(self) -> bool:
        """Whether images of the checkpoint's evaluation set are asked for."""
        if self.images is None:
            return self.kind == "faithfulness" and not self.synthetic
        names = (self.images,) if isinstance(self.images, str) else self.images
        return self.kind != "position" and any(OF_EVALUATION.fullmatch(name) for name in names)

    @property
    def chosen_classes(self) -> tuple[int | str, ...]:
        """The classes asked for, whole numbers for indices and text for names; () where none was."""
        if self.class_index is not None:
            return (self.class_index,) if isinstance(self.class_index, int) else self.class_index
        if self.class_name is not None:
            names = self.class_name if isinstance(self.class_name, tuple) else (self.class_name,)
            return tuple(str(name) for name in names)
        return ()


def parse_options(options: Mapping[str, Any], num_checkpoints: int | None = None) -> ExplainConfig:
    """The checked options. Raises ConfigError naming the key, for contradictions as well.

    Labels are counted where `num_checkpoints` is known.
    """
    parsed: ExplainConfig = build(ExplainConfig, options, "explain")
    asked = [key for key in ("class_index", "class_name", "top_k") if getattr(parsed, key) is not None]
    if len(asked) > 1:
        raise ConfigError(
            f"explain.{asked[1]}", f"give one of class_index, class_name and top_k, not {' and '.join(asked)}"
        )
    if asked and parsed.kind != "relevance":
        why = (
            "Attention Rollout knows no class" if parsed.kind == "rollout" else f"explain={parsed.kind} takes no class"
        )
        raise ConfigError(f"explain.{asked[0]}", f"{why}; to ask for one: explain=relevance explain.{asked[0]}=…")
    if asked and parsed.compare and len(parsed.chosen_classes) > 1:
        raise ConfigError(
            f"explain.{asked[0]}", f"explain.compare=true shows one class, got {len(parsed.chosen_classes)}"
        )
    if parsed.compare and parsed.top_k is not None:
        raise ConfigError(
            "explain.top_k", "explain.compare=true shows one class, the most probable; give explain.top_k=null"
        )
    if any(isinstance(c, int) and c < 0 for c in parsed.chosen_classes):
        raise ConfigError("explain.class_index", f"got {parsed.class_index}, allowed: 0 and above")
    if parsed.start_layer and parsed.kind == "relevance" and parsed.method == "attnlrp" and not parsed.compare:
        raise ConfigError("explain.start_layer", "explain.method=attnlrp goes down to the pixels and takes none")
    if parsed.compare and parsed.kind not in ("relevance", "rollout"):
        raise ConfigError(
            "explain.compare", f"explain={parsed.kind} has nothing to put side by side; use explain=relevance"
        )
    if parsed.synthetic and parsed.kind != "faithfulness":
        raise ConfigError("explain.synthetic", "only explain=faithfulness has a synthetic test")
    if not parsed.methods or len(set(parsed.methods)) < len(parsed.methods):
        raise ConfigError("explain.methods", f"got {list(parsed.methods)}, expected one or more, each once")
    if any(getattr(parsed, key) == () for key in asked):
        raise ConfigError(f"explain.{asked[0]}", "the list is empty")
    _refuse_unused(parsed)
    if num_checkpoints is not None and parsed.labels is not None and len(parsed.labels) != num_checkpoints:
        raise ConfigError("explain.labels", f"{len(parsed.labels)} labels for {num_checkpoints} checkpoints")
    return parsed


def _refuse_unused(parsed: ExplainConfig) -> None:
    """Raises ConfigError for a key that was given and that the kind does not read."""
    kind = parsed.kind
    if parsed.synthetic or (parsed.compare and kind == "relevance"):
        kind += " explain.synthetic=true" if parsed.synthetic else " explain.compare=true"
    for field in dataclasses.fields(parsed):
        value = getattr(parsed, field.name)
        if value == field.default or field.name in ("kind", "batch", "output", *_USED[kind]):
            continue
        others = [f"explain={other}" for other, used in _USED.items() if field.name in used]
        raise ConfigError(
            f"explain.{field.name}", f"explain={kind} does not read it (got {value!r}); it is for {', '.join(others)}"
        )


def named_checkpoints(config: Config) -> list[tuple[str, str | None]]:
    """The checkpoints of `checkpoint=`, with labels; a study's file (`studies/NAME.json`) means its cells.

    Raises ConfigError where there is no such file, cell or study.
    """
    given = config.checkpoint
    names: list[tuple[str, str | None]] = []
    for name in [given] if isinstance(given, str) else list(given or ()):
        if not name.endswith(".json") or name.endswith(INDEX):
            names.append((name, None))
            continue
        study = read_mapping(Path(name), "give a study's file, DIR/studies/NAME.json, or checkpoints")
        if problem := "there is no such file" if study is None else misfit(study, _STUDY):
            raise ConfigError("checkpoint", f"{name!r} is no study's file ({problem})")
        assert study is not None, "as checked"
        names += [(cell["id"], cell.get("name")) for cell in study["cells"] if cell.get("part", "cell") == "cell"]
    if not names:
        raise ConfigError(
            "checkpoint",
            "task=explain reads one or several; give a file, a cell's folder or identity, or a study's file",
        )
    for name, _ in names:
        find_checkpoint(name, config.output_dir)
    return names
