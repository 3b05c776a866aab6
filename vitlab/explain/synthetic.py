"""The two-object test: a method must point at the object of the class in question. It takes minutes on a laptop.

Images of 48 x 48 pixels show coloured textures of 16 x 16 on noise: one or two of 8 class textures and two
distractors. A small ViT learns to name the class textures; then a map for one of two visible classes should lie on
that class's texture, and move when the other class is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

IMAGE, PATCH, OBJECT, CLASSES, DISTRACTORS = 48, 8, 16, 8, 16
GRID = IMAGE // PATCH
CELLS = IMAGE // OBJECT


@dataclass(frozen=True)
class Scenes:
    """N images (N, 3, 48, 48), the two class indices (N, 2) and their patches (N, 2, 6, 6) bool.

    With one object, the second class is absent and its patches are all False.
    """

    images: Tensor
    classes: Tensor
    patches: Tensor

    def to(self, device: torch.device) -> Scenes:
        return Scenes(self.images.to(device), self.classes.to(device), self.patches.to(device))


def _textures(count: int, seed: int) -> Tensor:
    """Smooth random colour textures (count, 3, 16, 16)."""
    noise = torch.randn(count, 3, OBJECT, OBJECT, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="reflect"), 3, 1) * 2.2


def draw_scenes(count: int, objects: int, generator: torch.Generator) -> Scenes:
    """Random scenes with one or two class objects and two distractors, no two overlapping."""
    prototypes, distractors = _textures(CLASSES, 1), _textures(DISTRACTORS, 2)
    images = 0.7 * torch.randn(count, 3, IMAGE, IMAGE, generator=generator)
    cells = torch.rand(count, CELLS * CELLS, generator=generator).argsort(1)
    classes = torch.rand(count, CLASSES, generator=generator).argsort(1)[:, :2]
    others = torch.randint(DISTRACTORS, (count, 2), generator=generator)
    tiles = torch.zeros(count, CELLS * CELLS, 3, OBJECT, OBJECT)
    rows = torch.arange(count)
    patches = torch.zeros(count, 2, CELLS * CELLS, dtype=torch.bool)
    for k in range(objects):
        tiles[rows, cells[:, k]] = prototypes[classes[:, k]]
        patches[rows, k, cells[:, k]] = True
    for k in range(2):
        tiles[rows, cells[:, 2 + k]] = distractors[others[:, k]]
    layout = tiles.view(count, CELLS, CELLS, 3, OBJECT, OBJECT).permute(0, 3, 1, 4, 2, 5)
    grid = patches.view(count, 2, CELLS, CELLS).repeat_interleave(GRID // CELLS, 2).repeat_interleave(GRID // CELLS, 3)
    return Scenes(images + layout.reshape(count, 3, IMAGE, IMAGE), classes, grid)


def build_scene_model(seed: int) -> nn.Module:
    """A ViT of 0.3 M parameters for the scenes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VisionTransformer(
            img_size=IMAGE, patch_size=PATCH, embed_dim=64, depth=6, num_heads=4, num_classes=CLASSES
        )


def train_scene_model(
    seed: int = 0, steps: int = 500, batch: int = 96, device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> nn.Module:  # fmt: skip
    """Train on scenes of one and of two objects in turn; targets share the probability among the objects."""
    model = build_scene_model(seed).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(1000 + seed)
    for step in range(steps):
        objects = 1 + step % 2
        scenes = draw_scenes(batch, objects, generator)
        targets = torch.zeros(batch, CLASSES).scatter_(1, scenes.classes[:, :objects], 1 / objects)
        loss = F.cross_entropy(model(scenes.images.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            report(f"step {step + 1} of {steps}: loss {loss.item():.3f}")
    return model.eval()


def mass_on(maps: Tensor, patches: Tensor) -> Tensor:
    """Share (N,) of the positive part of maps (N, gh, gw) that lies on `patches` (N, gh, gw)."""
    positive = maps.clamp_min(0)
    return (positive * patches).sum((1, 2)) / positive.sum((1, 2)).clamp_min(1e-12)


@dataclass(frozen=True)
class Pointing:
    """A method's scores over scenes of two objects; chance is 4 patches of 36 = 0.11 for `mass`, 0 for `swap`."""

    mass: float
    """Share of the positive relevance that lies on the object of the asked-for class."""
    swap: float
    """Share on the first object when asked for its class, less the share there when asked for the other."""


@torch.no_grad()
def scene_accuracy(model: nn.Module, scenes: Scenes, objects: int) -> float:
    """Share of scenes whose `objects` most probable classes are those shown."""
    best = model(scenes.images).topk(objects).indices.sort(1).values
    return float((best == scenes.classes[:, :objects].sort(1).values).all(1).float().mean())


def pointing(explain: Callable[[Tensor, Tensor], Tensor], scenes: Scenes) -> Pointing:
    """Measure `explain(images, classes) -> (N, gh, gw)` on scenes of two objects."""
    first = explain(scenes.images, scenes.classes[:, 0])
    other = explain(scenes.images, scenes.classes[:, 1])
    on_first = mass_on(first, scenes.patches[:, 0])
    return Pointing(float(on_first.mean()), float((on_first - mass_on(other, scenes.patches[:, 0])).mean()))
