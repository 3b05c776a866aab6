"""What a backbone's features depend on, for weights without a classifier (DINO, DINOv2, MAE) and with one.

Three views, none of which needs a class: the class token's self-attention in the last layer, head by head (Caron et
al., ICCV 2021); Attention Rollout, and the relevance of patches for the features as a whole; the patches' own features
by their principal components (Oquab et al., 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitlab.config import ConfigError
from vitlab.core.archives import save_array
from vitlab.core.files import make_folder
from vitlab.explain.attention import patch_grid, read_tokens, rollout_map, to_grid
from vitlab.explain.explained_model import Subject
from vitlab.explain.figures import METHOD_SOURCES, METHOD_TITLES, Tile, draw_tiles, save
from vitlab.explain.methods import Method, relevance
from vitlab.explain.options import ExplainConfig
from vitlab.explain.pictures import Picture, load_pictures
from vitlab.explain.recording import UnfitError, prepared, record, unwrapped
from vitlab.explain.reports import ROWS, draw_sheets

HEADS_ABREAST = 6
"""Heads in a row of the figure of heads."""


def without_classifier(model: nn.Module) -> nn.Module:
    """A copy of a model of timm's whose output is what its classifier would read: features (B, D)."""
    backbone = copy.deepcopy(unwrapped(model))
    backbone.reset_classifier(0)  # pyright: ignore[reportCallIssue]
    return backbone


def own_similarity(features: Tensor) -> Tensor:
    """f(x) · f, (B, 1): the inner product of features (B, D) with their own values f, which count as constants.

    The target of label-free explanations (Crabbé & van der Schaar, ICML 2022), and what a classifier says whose one row
    of weights is f. The cosine would not do: it is greatest at f, so its gradient there is 0.
    """
    return (features * features.detach()).sum(-1, keepdim=True)


def feature_relevance(model: nn.Module, images: Tensor, *, method: Method = "lrp", start_layer: int = 0) -> Tensor:
    """The relevance (B, gh, gw) of each patch of images (B, 3, H, W) for the features: `relevance` of `own_similarity`.

    Needs no classifier, and leaves out one that is there. Raises as `relevance`.
    """
    return relevance(without_classifier(model), images, method=method, start_layer=start_layer, readout=own_similarity)


def class_attention(model: nn.Module, images: Tensor) -> Tensor:
    """Each head's self-attention in the last layer from the class token to the patches: (B, H, gh, gw), rows of a
    softmax over all tokens.

    Of a model without a class token it is the mean over the tokens that are pooled, of one that pools by attention
    that attention. Raises UnfitError where the last layer's attention is not global.
    """
    model = without_classifier(model)
    with prepared(model):
        recording = record(model, images, backward=False)
        last = recording.attention()[-1].detach()  # (B, H, Q, N)
        if last.shape[0] != len(images):
            raise UnfitError("its last layer attends within windows, so no token attends to all patches")
        queries = last.shape[2]
        read = read_tokens(recording, queries).to(last.dtype)
    weights = torch.einsum("bq,bhqn->bhn", read / read.sum(-1, keepdim=True), last)
    return to_grid(weights.flatten(0, 1), patch_grid(model, images)).unflatten(0, weights.shape[:2])


def reading_tokens(model: nn.Module) -> str:
    """What to call the tokens whose attention `class_attention` gives."""
    pooling = getattr(model, "global_pool", "token")
    if pooling == "token":
        return "the class token" if getattr(model, "dist_token", None) is None else "the class and distillation tokens"
    return "the query that pools the patches" if pooling == "map" else "the tokens that are pooled (mean)"


@torch.no_grad()
def patch_features(model: nn.Module, images: Tensor) -> Tensor:
    """The patches' features after the last layer and its norm, (B, gh, gw, D).

    Raises UnfitError for a model without patches.
    """
    model = unwrapped(model)
    with prepared(model):
        parameter = next(model.parameters())
        tokens = model.forward_features(images.to(parameter.device, parameter.dtype))  # pyright: ignore
    rows, columns = patch_grid(model, images)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[1] < rows * columns:
        raise UnfitError("its last layer keeps no row of features for each patch")
    return tokens[:, tokens.shape[1] - rows * columns :].unflatten(1, (rows, columns))


def principal_components(features: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """The first principal components of the patches (B, gh, gw, D) of all images together: their coordinates
    (B, gh, gw, count), and each one's share (count,) of the variance. Of two signs the one whose largest value is
    positive. Components that the data do not have are 0."""
    flat = features.flatten(0, -2).double()
    flat = flat - flat.mean(0)
    left, scale, _ = torch.linalg.svd(flat, full_matrices=False)
    found = min(count, len(scale))
    coordinates, share = flat.new_zeros(len(flat), count), flat.new_zeros(count)
    coordinates[:, :found] = left[:, :found] * scale[:found]
    share[:found] = scale[:found] ** 2 / (scale**2).sum().clamp_min(torch.finfo(scale.dtype).tiny)
    signs = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True)).sign()
    return (coordinates * signs).view(*features.shape[:-1], count).float(), share.float()


@dataclass(frozen=True)
class FeatureViews:
    """A checkpoint's pictures and what was found of each; a view that the model does not allow is None."""

    subject: Subject
    pictures: list[Picture]
    relevance: Tensor
    """(B, gh, gw)"""
    heads: Tensor | None
    """(B, H, gh, gw)"""
    rollout: Tensor | None
    """(B, gh, gw)"""
    components: Tensor | None
    """(B, gh, gw, 3)"""
    said: list[str] = field(default_factory=list)
    """Which views the model does not allow and why; what the components hold."""

    def row(self, picture: int, method: str, titles: bool) -> list[Tile]:
        """input | attention | rollout | relevance | components"""
        image = self.pictures[picture].pixels.permute(1, 2, 0).numpy()
        maps = {
            "last layer's attention": None if self.heads is None else self.heads.mean(1),
            "Attention Rollout": self.rollout,
            METHOD_TITLES[method]: self.relevance,
        }
        tiles = [Tile("input" if titles else "", image)]
        tiles += [
            Tile(title if titles else "", image, found[picture].numpy()) for title, found in maps.items()
            if found is not None
        ]  # fmt: skip
        if self.components is not None:
            tiles.append(Tile("patch features (PCA)" if titles else "", _colours(self.components)[picture]))
        return tiles

    def write(self, method: str, folder: Path) -> list[Path]:
        """The raw maps, a .npy for each view and picture."""
        views = {"attention": self.heads, "rollout": self.rollout, method: self.relevance, "pca": self.components}
        files = []
        for view, found in views.items():
            for values, picture in zip([] if found is None else found, self.pictures, strict=found is not None):
                files.append(folder / f"features_{self.subject.stem}_{picture.name}_{view}.npy")
                save_array(files[-1], values.numpy())
        return files


def _colours(components: Tensor) -> np.ndarray:
    """Coordinates (B, gh, gw, 3) as red, green and blue, each from its least to its greatest value."""
    low, high = components.amin((0, 1, 2)), components.amax((0, 1, 2))
    return ((components - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8).numpy()


def view_features(subject: Subject, options: ExplainConfig, output_dir: str) -> FeatureViews:
    """All views of the chosen pictures. Raises ConfigError, naming the checkpoint, where the relevance does not fit the
    model; other views that do not are left out, and it is said."""
    backbone = without_classifier(subject.restored.network)
    pictures = load_pictures(options.images, subject.restored.dataset, subject.restored.input_size, output_dir)
    images = subject.inputs(pictures)
    parts = images.split(subject.batch(images, options))
    start = 0 if options.method == "attnlrp" else options.start_layer
    said: list[str] = []

    def of_all(compute: Callable[[Tensor], Tensor]) -> Tensor:
        return subject.explained(lambda: torch.cat([compute(part).cpu() for part in parts]))

    def if_fit(name: str, compute: Callable[[Tensor], Tensor]) -> Tensor | None:
        try:
            return of_all(compute)
        except ConfigError as error:
            if not isinstance(error.__cause__, UnfitError):
                raise
            said.append(f"without {name}: {str(error.__cause__).partition(';')[0]}")
            return None

    found = of_all(lambda part: feature_relevance(backbone, part, method=options.method, start_layer=start))
    heads = if_fit("the last layer's attention", lambda part: class_attention(backbone, part))
    joint = if_fit(
        "Attention Rollout",
        lambda part: rollout_map(
            backbone, part, head_fusion=options.head_fusion, discard_ratio=options.discard_ratio,
            start_layer=options.start_layer,
        ),
    )  # fmt: skip
    features = if_fit("the patches' features", lambda part: patch_features(backbone, part))
    components = None
    if features is not None:
        components, share = principal_components(features)
        held = ", ".join(f"{100 * value:.0f}" for value in share.tolist())
        said.append(f"the patches' features: their first three principal components hold {held} % of the variance")
    return FeatureViews(subject, pictures, found, heads, joint, components, said)


def draw_features(
    subjects: Sequence[Subject], options: ExplainConfig, folder: Path, output_dir: str
) -> tuple[list[Path], list[str]]:
    """Write the figures and raw maps of explain=features; returns the files, and lines that say what was left out."""
    make_folder(folder)
    seen = [view_features(subject, options, output_dir) for subject in subjects]
    files = [file for one in seen for file in one.write(options.method, folder)]
    source = (
        "What the features depend on, without any class: the last layer's attention (mean over heads),\n"
        f"Attention Rollout, and {METHOD_SOURCES[options.method]} of the features' inner product with themselves"
    )
    if len(seen) == 1:
        names = [picture.name for picture in seen[0].pictures]
        rows = [seen[0].row(b, options.method, b % ROWS == 0) for b in range(len(names))]
        stem = folder / f"features_{seen[0].subject.stem}"
        files += draw_sheets(rows, names, f"{source}\n{seen[0].subject.label}", stem)
    else:
        for b, picture in enumerate(seen[0].pictures):
            rows = [one.row(b, options.method, True) for one in seen]
            figure = draw_tiles(rows, title=f"{source}\n{picture.name}", row_labels=[o.subject.label for o in seen])
            files += save(figure, folder / f"features_checkpoints_{picture.name}")
    for one in seen:
        files += _draw_heads(one, folder)
    several = len(seen) > 1
    return files, [f"{one.subject.label}: {line}" if several else line for one in seen for line in one.said]


def _draw_heads(seen: FeatureViews, folder: Path) -> list[Path]:
    """The last layer's attention, head by head: up to HEADS_ABREAST in a row next to the picture."""
    if seen.heads is None:
        return []
    rows, names = [], []
    for b, picture in enumerate(seen.pictures):
        image = picture.pixels.permute(1, 2, 0).numpy()
        count = seen.heads.shape[1]
        for first in range(0, count, HEADS_ABREAST):
            some = range(first, min(first + HEADS_ABREAST, count))
            tiles = [Tile(f"head {h + 1}", image, seen.heads[b, h].numpy()) for h in some]
            rows.append([Tile("input", image) if first == 0 else Tile(), *tiles])
            names.append(picture.name if first == 0 else "")
    asking = reading_tokens(seen.subject.restored.network)
    title = f"Self-attention of {asking} in the last layer, head by head (Caron et al. 2021)\n{seen.subject.label}"
    return draw_sheets(rows, names, title, folder / f"features_{seen.subject.stem}_heads")
