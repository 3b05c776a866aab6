"""The augmentation engine compared with timm's and Pillow's: every operation, every condition, and from JPEG to tensor.

python -m benchmarks.bench_augment [--device cuda] [--images 64] [--batch 32] [--rounds 5]

One core on either side; ours and theirs take turns in the same run, and the best of the rounds counts. With a GPU the
conditions are timed there too, as images per second.
"""

from __future__ import annotations

import argparse
import io
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment as timm_aa
from timm.data import create_transform

from benchmarks.images import make_tree
from benchmarks.measure import seconds_in_turns
from vitlab.config import AugmentConfig, choice
from vitlab.core.random import Draws
from vitlab.data.augment import Augment, mix
from vitlab.data.augment.operations import build_operations
from vitlab.data.crop import random_resized_boxes, resize_crops
from vitlab.data.decode import decode

SIZE = 224
FILL = (124, 116, 104)
CONDITIONS = ("none", "autoaug", "randaug", "jitter", "erase")
MOVE = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
OPERATIONS: dict[str, tuple[float, Callable]] = {
    "autocontrast": (0, lambda i, _: ImageOps.autocontrast(i)),
    "equalize": (0, lambda i, _: ImageOps.equalize(i)),
    "invert": (0, lambda i, _: ImageOps.invert(i)),
    "posterize": (3, lambda i, v: ImageOps.posterize(i, int(v))),
    "solarize": (100, lambda i, v: ImageOps.solarize(i, int(v))),
    "solarize_add": (50, lambda i, v: timm_aa.solarize_add(i, int(v))),
    "color": (1.5, lambda i, v: ImageEnhance.Color(i).enhance(v)),
    "contrast": (1.5, lambda i, v: ImageEnhance.Contrast(i).enhance(v)),
    "brightness": (1.5, lambda i, v: ImageEnhance.Brightness(i).enhance(v)),
    "sharpness": (1.5, lambda i, v: ImageEnhance.Sharpness(i).enhance(v)),
    "rotate": (20, lambda i, v: timm_aa.rotate(i, v, **MOVE)),
    "shear_x": (0.2, lambda i, v: timm_aa.shear_x(i, v, **MOVE)),
    "shear_y": (0.2, lambda i, v: timm_aa.shear_y(i, v, **MOVE)),
    "translate_x": (0.3, lambda i, v: timm_aa.translate_x_rel(i, v, **MOVE)),
    "translate_y": (0.3, lambda i, v: timm_aa.translate_y_rel(i, v, **MOVE)),
}


def timms_transform(augment: AugmentConfig) -> Callable[[Image.Image], torch.Tensor]:
    """timm's training transform of the same condition, Pillow throughout."""
    if (policy := augment.auto_augment) and "inc" in policy:
        posterize = timm_aa.posterize  # timm 1.0.31 asks Pillow 13 for 0 bits, which is an error there
        timm_aa.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: posterize(image, max(1, bits))
    transform = create_transform(
        SIZE, is_training=True, auto_augment=policy, color_jitter=augment.color_jitter or None,
        interpolation="bicubic", re_prob=augment.erase, re_mode="pixel",
    )  # fmt: skip
    assert callable(transform)
    return transform


def engine(augment: AugmentConfig) -> Augment:
    return Augment(augment, choice("dataset", "imagenet1k"))


def operations(batch: torch.Tensor, rounds: int) -> None:
    heading(f"Operations, {SIZE} pixels, ms per image on one core", "operation", "Pillow", "ours", "ratio")
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in batch]
    table = build_operations(FILL, "bicubic")
    sums = np.zeros(2)
    for name, (value, reference) in OPERATIONS.items():
        one = torch.tensor([float(value)])
        sides = {
            "ours": lambda name=name, one=one: [table[name](x[None], one) for x in batch],
            "Pillow": lambda reference=reference, value=value: [reference(i, value) for i in images],
        }
        mine, pillows = seconds_in_turns(sides, rounds).values()
        sums += mine, pillows
        row(name, pillows / len(batch) * 1e3, mine / len(batch) * 1e3)
    row("mean", *(sums[::-1] / len(OPERATIONS) / len(batch) * 1e3))


def from_jpeg(files: list[Path], batch_size: int, rounds: int) -> None:
    heading("JPEG file → normalised tensor, ms per image on one core", "condition", "timm", "ours", "ratio")
    for name in CONDITIONS:
        augment = choice("augment", name)
        theirs, augmenting = timms_transform(augment), engine(augment)

        def ours(augment=augment, augmenting=augmenting) -> None:
            for at in range(0, len(files), batch_size):
                draws = Draws(0, 0, np.arange(at, min(at + batch_size, len(files))))
                pixels = [decode(file) for file in files[at : at + batch_size]]
                sizes = np.array([p.shape[:2] for p in pixels])
                boxes = random_resized_boxes(sizes, (0.08, 1.0), (3 / 4, 4 / 3), draws)
                augmenting(resize_crops(pixels, boxes, SIZE, augment.interpolation), draws)

        def timms(theirs=theirs) -> None:
            for file in files:
                theirs(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))

        mine, others = seconds_in_turns({"ours": ours, "timm": timms}, rounds).values()
        row(name, others / len(files) * 1e3, mine / len(files) * 1e3)


def engine_alone(batch: torch.Tensor, rounds: int) -> None:
    heading("Engine alone on the CPU (uint8 crops → normalised tensors), ms per image", "condition", "ours")
    draws = Draws(0, 0, np.arange(len(batch)))
    for name in (*CONDITIONS, "deit"):
        augmenting = engine(choice("augment", name))
        (mine,) = seconds_in_turns({"ours": lambda augmenting=augmenting: augmenting(batch, draws)}, rounds).values()
        print(f"| {name} | {mine / len(batch) * 1e3:.2f} |")


def on_gpu(batch: torch.Tensor, device: torch.device, size: int = 1024) -> None:
    """Images per second of engine and mixing, and the CPU's; an error if either waits for the GPU."""
    name = torch.cuda.get_device_name(device)
    heading(f"Engine and mixing on {name}, batch {size}", "condition", "images per second", "pixels unlike the CPU's")
    images = batch.repeat(-(-size // len(batch)), 1, 1, 1)[:size].to(device)
    labels = torch.arange(size, device=device) % 1000

    def step(augment: AugmentConfig, engine: Augment, epoch: int, pixels: torch.Tensor) -> torch.Tensor:
        groups = Draws(0, epoch, np.arange(len(pixels) // augment.mix_group))
        output = engine(pixels, Draws(0, epoch, np.arange(len(pixels))))
        return mix(augment, output, labels[: len(pixels)].to(pixels.device), num_classes=1000, draws_of_groups=groups)[
            0
        ]

    for condition in (*CONDITIONS, "deit"):
        augment = choice("augment", condition)
        augmenting = engine(augment)
        for epoch in range(3):
            step(augment, augmenting, epoch, images)
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        began = time.perf_counter()
        for epoch in range(20):
            step(augment, augmenting, epoch, images)
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize(device)
        rate = 20 * size / (time.perf_counter() - began)
        there = step(augment, augmenting, 0, images[:64]).cpu()
        here = step(augment, engine(augment), 0, images[:64].cpu())
        print(f"| {condition} | {rate:,.0f} | {((there - here).abs() > 1e-3).float().mean():.1e} |", flush=True)


def heading(title: str, *columns: str) -> None:
    print(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(name: str, theirs: float, ours: float) -> None:
    print(f"| {name} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f}× |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    for name, value in (("images", 64), ("batch", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        make_tree(Path(folder), train=options.images, val=0, classes=1)
        files = sorted(Path(folder).rglob("*.jpg"))
        whole = resize_crops([decode(f) for f in files], np.array([[0, 0, 375, 500]] * len(files)), SIZE, "bicubic")
        batch = whole[: options.batch]
        if options.device != "cpu":
            on_gpu(batch, torch.device(options.device))
        operations(batch, options.rounds)
        engine_alone(batch, options.rounds)
        from_jpeg(files, options.batch, options.rounds)


if __name__ == "__main__":
    main()
