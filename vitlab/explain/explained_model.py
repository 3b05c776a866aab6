"""A checkpoint to be explained: its model, its class names, its name for errors."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitlab.config import Config, ConfigError
from vitlab.core.device import pick_device
from vitlab.core.integrity import DamagedError, misfit, read_mapping
from vitlab.explain.attention import patch_grid, rollout_map
from vitlab.explain.methods import relevance
from vitlab.explain.options import ExplainConfig, MethodName
from vitlab.explain.pictures import Picture, normalise
from vitlab.explain.recording import UnfitError
from vitlab.models.restore import Restored, restore, short_name

MOST_PAIRS = 8 * 256**2
"""Pairs of patches, over the images of a batch: relevance takes about 2 kB for each in a ViT-S (measured)."""


@dataclass(frozen=True)
class Subject:
    """One checkpoint: what to call it, its network on the device, its class names."""

    label: str
    stem: str
    """What to call it in the name of a file."""
    restored: Restored
    classes: ClassNames
    device: torch.device

    def inputs(self, pictures: Sequence[Picture]) -> Tensor:
        """Normalised images (B, 3, S, S) on the device."""
        return normalise(pictures, self.restored.dataset).to(self.device)

    def batch(self, images: Tensor, options: ExplainConfig) -> int:
        """How many of `images` at a time: `explain.batch`, or fewer where maps of attention would take gigabytes."""
        try:
            rows, columns = patch_grid(self.restored.network, images)
        except UnfitError:
            return options.batch
        return max(1, min(options.batch, MOST_PAIRS // (rows * columns) ** 2))

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int) -> Tensor:
        """(B, C) on the CPU."""
        parts = [self.restored.network(part).softmax(-1) for part in images.split(batch)]
        return torch.cat(parts).float().cpu()

    def targets(self, options: ExplainConfig, probabilities: Tensor) -> Tensor:
        """The classes that the options ask for, (B, K): by index, by name, the k most probable, or the first."""
        if options.chosen_classes:
            found = [self.classes.find(c) for c in options.chosen_classes]
            return torch.tensor(found).expand(len(probabilities), -1)
        count = options.top_k or 1
        if count > self.classes.count:
            raise ConfigError("explain.top_k", f"got {count}, the model has {self.classes.count} classes")
        return probabilities.topk(count).indices

    def maps(self, method: MethodName, images: Tensor, targets: Tensor, options: ExplainConfig) -> Tensor:
        """Maps (B, K, gh, gw) on the CPU of images (B, 3, S, S) for classes (B, K); rollout's are alike for all."""
        network = self.restored.network

        def of_part(part: Tensor, classes: Tensor) -> Tensor:
            if method == "rollout":
                joint = rollout_map(
                    network, part, head_fusion=options.head_fusion, discard_ratio=options.discard_ratio,
                    start_layer=options.start_layer,
                )  # fmt: skip
                return joint.unsqueeze(1).expand(-1, classes.shape[1], -1, -1)
            start = 0 if method == "attnlrp" else options.start_layer
            return relevance(network, part, classes, method=method, start_layer=start)

        batch = self.batch(images, options)
        pairs = zip(images.split(batch), targets.split(batch), strict=True)
        return self.explained(lambda: torch.cat([of_part(part, classes).cpu() for part, classes in pairs]))

    def explained(self, compute: Callable[[], Tensor]) -> Tensor:
        """Call `compute()`, and turn the library's errors into UserErrors that name the checkpoint."""
        try:
            return compute()
        except UnfitError as error:
            model = self.restored.model.name
            raise ConfigError("checkpoint", f"{self.restored.weights.path} ({model}): {error}") from error
        except ConfigError as error:
            raise error.under("explain") from error


def load_subjects(config: Config, options: ExplainConfig, names: Sequence[tuple[str, str | None]]) -> list[Subject]:
    """Read the checkpoints (name, label of its study or None). Raises ConfigError for one that cannot be read."""
    device = pick_device(config.device)
    subjects = []
    for place, (name, label) in enumerate(names):
        restored = restore(config, name)
        restored.network.to(device)
        stem = short_name(restored.weights.path)
        same = sum(other.restored.weights.path != restored.weights.path and other.stem == stem for other in subjects)
        stem = f"{stem}-{place + 1}" if same else stem  # two folders' last.pt must not share their figures
        own = str(options.labels[place]) if options.labels else label or _name_of(restored.weights.path)
        classes = class_names(restored.weights.classes, restored.num_classes, restored.dataset.name)
        subjects.append(Subject(own, stem, restored, classes, device))
    return subjects


def _name_of(file: Path) -> str:
    """`none/s0 (cb05aeae9b27)` for a cell's checkpoint, by its record; for any other the file, `scratch/last`."""
    record = file.with_name("config.yaml")
    with contextlib.suppress(DamagedError):  # reported with the checkpoint's description
        content = read_mapping(record, "")
        if not misfit(content, {"name": str, "id": str}):
            assert content is not None, "else it would not fit"
            return f"{content['name']} ({content['id']})"
    return f"{file.parent.name}/{file.stem}" if file.stem in ("last", "best", "checkpoint") else short_name(file)


_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassNames:
    """The classes of a classifier; `names` is None where they are unknown."""

    count: int
    names: tuple[str, ...] | None

    def short(self, index: int) -> str:
        """A title's worth of name: the first synonym, or the number."""
        return f"class {index}" if self.names is None else self.names[index].split(",")[0]

    def find(self, wanted: int | str) -> int:
        """The index that a number or a name means. Raises ConfigError naming near classes."""
        if isinstance(wanted, int):
            if not 0 <= wanted < self.count:
                raise ConfigError(
                    "explain.class_index", f"got {wanted}, the model has {self.count} classes (0 to {self.count - 1})"
                )
            return wanted
        if self.names is None:
            raise ConfigError(
                "explain.class_name",
                f"the checkpoint does not name its {self.count} classes; give explain.class_index=NUMBER",
            )
        sought = wanted.strip().lower()
        synonyms = [[word.strip().lower() for word in name.split(",")] for name in self.names]
        exact = [i for i, words in enumerate(synonyms) if sought in words or sought == self.names[i].lower()]
        found = exact or [i for i, words in enumerate(synonyms) if any(sought in word for word in words)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{i} ({self.names[i]})" for i in found[:5])
            raise ConfigError("explain.class_name", f"{wanted!r} may be {listed}; give explain.class_index")
        near = difflib.get_close_matches(sought, [word for words in synonyms for word in words], n=3)
        hint = (
            f"did you mean {' or '.join(repr(n) for n in near)}?"
            if near
            else f"the first are {', '.join(self.names[:5])}"
        )
        raise ConfigError("explain.class_name", f"no class {wanted!r} among the model's {self.count}; {hint}")


def class_names(recorded: Sequence[str] | None, count: int, dataset: str) -> ClassNames:
    """The checkpoint's own names; for ImageNet's 1,000 classes WordNet's words, which timm brings."""
    if recorded is not None and not all(_WORDNET.fullmatch(name) for name in recorded):
        return ClassNames(count, tuple(recorded))
    if recorded is None and (count != 1000 or "imagenet" not in dataset.lower()):
        return ClassNames(count, None)
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    if recorded is None:
        return ClassNames(count, tuple(info.index_to_description(i) for i in range(count)))
    known = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
    return ClassNames(count, tuple(known.get(name, name) for name in recorded))
