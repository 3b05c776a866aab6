"""ViT-Ti/16 at 224 pixels on one GPU, beside timm's train.py: end to end from JPEGs, and the step alone.

python benchmarks/bench_gpu.py --timm PATH/train.py [--tree FOLDER] [--images 20000] [--epochs 4] [--workers 16]

timm's train.py is not in its wheel: take it from timm's repository. Every row is measured in this one run; figures
are images per second over whole epochs, the first left out (compilation, warming caches).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

MODEL = "vit_tiny_patch16_224"
FLOPS_PER_IMAGE = 3 * 2 * 1.258e9  # forward 1.26 GMACs (DeiT's Table 1: 1.3 B), backward twice that
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, NVIDIA's data sheets


def ours(tree: Path, augment: str, options: argparse.Namespace, *extra: str) -> float:
    """Images per second of run.py, training only."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"augment={augment}", "dataset=folder", "dataset.name=bench", f"dataset.root={tree}",
            "model=vit_tiny_16_224", "recipe=deit", f"recipe.epochs={options.epochs}", "recipe.warmup_epochs=1",
            "recipe.repeated_augmentation=1", "recipe.ema_decay=0", f"recipe.eval_every={options.epochs}",
            f"workers={options.workers}", "device=cuda",
            "wandb.mode=disabled", f"output_dir={folder}", *extra,
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words], capture_output=True, text=True, cwd=folder
        )
        files = list(Path(folder).glob("c*/metrics.jsonl"))
        if done.returncode or not files:
            logs = "".join(log.read_text()[-2000:] for log in Path(folder).glob("c*/log.txt"))
            raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:] + logs)
        rows = [json.loads(line) for line in files[0].read_text().splitlines()]
        return float(np.median([row["images_per_second"] for row in rows[1:]]))


def timms(tree: Path, augment: str, options: argparse.Namespace, *extra: str) -> float:
    """Images per second of timm's train.py with bf16 and torch.compile, on the same tree, model and global batch."""
    flags = {"none": [], "randaug": ["--aa", "rand-m9-mstd0.5-inc1"]}[augment]
    with tempfile.TemporaryDirectory() as folder:
        words = [
            str(options.timm), "--data-dir", str(tree), "--model", MODEL, "--num-classes", "100", "-b", "1024",
            "--amp", "--amp-dtype", "bfloat16", "--torchcompile", "inductor", "--opt", "adamw", "--lr", "1e-3",
            "--weight-decay", "0.05", "--drop-path", "0.1", "--smoothing", "0", "--color-jitter", "0",
            "--train-interpolation", "bicubic", "--workers", str(options.workers), "--epochs", str(options.epochs),
            "--warmup-epochs", "0", "--log-interval", "1", "--output", folder, "--val-split", "", *flags, *extra,
        ]  # fmt: skip
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder)
        text = done.stdout + done.stderr
        # "Train: 2 [  18/19 …  Time: 0.35s, 2899.3/s  (0.36s, 2811.25/s)": the last bracket of an epoch is its mean
        means = {int(e): float(rate) for e, rate in re.findall(r"Train: (\d+) .*?\([\d.]+s,\s*([\d.]+)/s\)", text)}
        if done.returncode or not means:
            raise RuntimeError(text[-4000:])
        return float(np.median([rate for epoch, rate in means.items() if epoch > 0]))


def step_alone(batch: int = 1024, steps: int = 30) -> dict[str, float]:
    """Images per second of our step, on images that are on the GPU already, under several conditions."""
    from vitlab.config import CellConfig, choice
    from vitlab.data.augment import Augment
    from vitlab.data.loader import Batch
    from vitlab.models.build import build_model
    from vitlab.models.drop_path import install_drop_path
    from vitlab.models.last_block import shorten_last_block
    from vitlab.train.distributed import World
    from vitlab.train.optim import build_optimizer
    from vitlab.train.step import train_step, wrap

    device, rates = torch.device("cuda"), {}
    for augment in ("none", "randaug", "deit"):
        cell = CellConfig(
            choice("model", "vit_tiny_16_224"), choice("dataset", "imagenet1k"), choice("augment", augment),
            choice("pretrain", "scratch"), choice("recipe", "deit"),
        )  # fmt: skip
        torch.manual_seed(0)
        model = build_model(cell.model, 1000)
        shorten_last_block(model)
        masks = install_drop_path(model, 0.1)
        model.to(device).train()
        optimizer = build_optimizer(model, cell.recipe)
        network, engine = wrap(model, True, World(), device), Augment(cell.augment, cell.dataset)
        index = np.arange(batch)
        images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
        one = [Batch(images, torch.randint(0, 1000, (batch,), device=device), index, np.zeros_like(index), index)]
        for step in range(steps + 8):
            if step == 8:
                torch.cuda.synchronize()
                begun = time.perf_counter()
            train_step(network, optimizer, one, engine, masks, cell, step, batch)
        torch.cuda.synchronize()
        rates[augment] = batch * steps / (time.perf_counter() - begun)
    return rates


def timm_step_alone(batch: int = 1024, steps: int = 30) -> float:
    """The same without augmentation, with what timm's train.py runs per step: autocast, compiled model, fused AdamW."""
    import timm.optim

    device = torch.device("cuda")
    torch.manual_seed(0)
    model = timm.create_model(MODEL, drop_path_rate=0.1, num_classes=1000).to(device).train()
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    compiled = torch.compile(model)
    images, labels = torch.randn(batch, 3, 224, 224, device=device), torch.randint(0, 1000, (batch,), device=device)
    loss_function = torch.nn.CrossEntropyLoss()
    for step in range(steps + 8):
        if step == 8:
            torch.cuda.synchronize()
            begun = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_function(compiled(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return batch * steps / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--tree", type=Path, default=Path(tempfile.gettempdir()) / "vitlab_bench_tree")
    for name, value in (("images", 20_000), ("epochs", 4), ("workers", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    name = torch.cuda.get_device_name()
    print(f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}", flush=True)
    rates = step_alone()
    peer = timm_step_alone()
    peak = next((v for k, v in PEAK.items() if k in name), None)
    mfu = f", MFU {100 * rates['none'] * FLOPS_PER_IMAGE / peak:.0f} %" if peak else ""
    print(f"step alone, none: {rates['none']:.0f} img/s{mfu}; timm {peer:.0f}; ratio {rates['none'] / peer:.2f}")
    print(
        f"step alone: randaug {rates['randaug']:.0f}, deit {rates['deit']:.0f} img/s (augmentation on the GPU)",
        flush=True,
    )
    if options.timm is None:
        return
    from images import make_tree

    begun = time.perf_counter()
    make_tree(options.tree, train=options.images, val=1000, classes=100)
    print(f"tree of {options.images} JPEGs made in {time.perf_counter() - begun:.0f} s", flush=True)
    for augment in ("none", "randaug"):
        mine, theirs = ours(options.tree, augment, options), timms(options.tree, augment, options)
        print(f"JPEG tree, {augment}: ours {mine:.0f} img/s, timm {theirs:.0f}; ratio {mine / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main()
