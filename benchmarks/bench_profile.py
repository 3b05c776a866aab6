"""Where the time goes: one batch of the loader, and one step, part by part, in processor time on one core.

python -m benchmarks.bench_profile [--images 64] [--model vit_tiny_16_224] [--batch 8] [--condition deit]

Python's profiler counts, on the processor's clock; a part's time is that of the function named with it, with all that
it calls. On a GPU use torch's profiler instead: there the host only queues work.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.images import make_tree
from benchmarks.measure import about
from vitlab.config import CellConfig, RecipeConfig, choice
from vitlab.data.augment import Augment
from vitlab.data.loader import Batch, TrainLoader
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.registry import build_source
from vitlab.models.build import build_model, shorten_last_block
from vitlab.models.drop_path import install_drop_path
from vitlab.train.optim import build_optimizer
from vitlab.train.step import train_step

LOADER = {
    "read and decode the file": ("decode.py", "decode"),
    "crop boxes, from counters": ("crop.py", "boxes"),
    "copy the crop": ("", "ascontiguousarray"),
    "resize (torch, antialiased)": ("functional.py", "interpolate"),
    "put together": ("", "stack"),
}
STEP = {
    "plan the augmentation": ("engine.py", "plan"),
    "carry it out": ("engine.py", "carry_out"),
    "normalise": ("engine.py", "normalise"),
    "erase": ("erasing.py", "fill_with_noise"),
    "mix": ("mixing.py", "mix"),
    "forward": ("vision_transformer.py", "forward"),
    "backward": ("_tensor.py", "backward"),
    "optimizer": ("adam.py", "step"),
}


def profiled(work: Callable[[], object]) -> pstats.Stats:
    """`work`, once for warmth and once under the profiler."""
    work()
    profile = cProfile.Profile(time.process_time)
    profile.runcall(work)
    return pstats.Stats(profile)


def print_parts(title: str, stats: pstats.Stats, parts: dict[str, tuple[str, str]], images: int) -> None:
    """A part's milliseconds per image, its share of the whole, and what is left over."""
    print(f"\n## {title}\n\n| part | ms per image | share, % |\n| --- | ---: | ---: |")
    entries = stats.stats  # pyright: ignore[reportAttributeAccessIssue]
    whole = max(entry[3] for entry in entries.values())
    left = whole
    for part, (file, function) in parts.items():
        found = [e[3] for (f, _, name), e in entries.items() if f.endswith(file) and function in _words(name)]
        seconds = max(found, default=0.0)
        left -= seconds
        print(f"| {part} | {1000 * seconds / images:.3f} | {100 * seconds / whole:.0f} |")
    print(f"| everything else | {1000 * left / images:.3f} | {100 * left / whole:.0f} |")
    print(f"| **whole** | **{1000 * whole / images:.3f}** | 100 |", flush=True)


def _words(name: str) -> list[str]:
    """A profiled function's name in words: "<built-in method torch.stack>" has the word "stack"."""
    return name.strip("<>").replace(".", " ").split()


def profile_loader(folder: Path, images: int) -> None:
    make_tree(folder / "tree", train=images, val=4, classes=4)
    files = dataclasses.replace(choice("dataset", "folder"), root=str(folder / "tree"))
    files = resolve_class_list(files, str(folder))
    loader = TrainLoader(
        build_source(files, "train"), files, choice("augment", "randaug"),
        RecipeConfig(epochs=1, batch_size=images, lr=1e-3), image_size=224, seed=0, rank=0, world=1, workers=0,
        micro_batch=images, device=torch.device("cpu"),
    )  # fmt: skip
    print_parts("A batch of the loader, JPEG → uint8", profiled(lambda: list(loader.epoch(0))), LOADER, images)


def profile_step(model_name: str, condition: str, size: int) -> None:
    recipe = dataclasses.replace(choice("recipe", "deit"), batch_size=size, precision="fp32")
    cell = CellConfig(
        choice("model", model_name), choice("dataset", "imagenet1k"), choice("augment", condition),
        choice("pretrain", "scratch"), recipe,
    )  # fmt: skip
    cell = dataclasses.replace(cell, augment=dataclasses.replace(cell.augment, mix_group=size))
    model = build_model(cell.model, 1000).train()
    shorten_last_block(model)
    masks = install_drop_path(model, recipe.drop_path)
    optimizer, augment, index = build_optimizer(model, recipe), Augment(cell.augment, cell.dataset), np.arange(size)
    side = cell.model.image_size
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8)
    one = [Batch(images, torch.arange(size), index, np.zeros_like(index), index)]
    stats = profiled(lambda: train_step(model, optimizer, one, augment, masks, cell, 0, size))
    print_parts(f"One step, {model_name}, augment={condition}, batch {size}, fp32, CPU", stats, STEP, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 64), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="vit_tiny_16_224")
    parser.add_argument("--condition", default="deit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(about())
    with tempfile.TemporaryDirectory() as scratch:
        profile_loader(Path(scratch), options.images)
    profile_step(options.model, options.condition, options.batch)


if __name__ == "__main__":
    main()
