"""ViT-Ti/16 at 224 pixels on one GPU: the step alone, cells that share the GPU and a loader, and end to end from JPEGs
and from a pack, against timm's train.py.

python -m benchmarks.bench_gpu --all [--timm PATH/train.py] [--tree FOLDER] [--images 16000] [--epochs 3] [--workers 16]

timm's train.py is not in its wheel: take it from timm's repository. Every row is measured in this one run and printed
at once; figures are images per second over whole epochs, the first left out (compilation, warming caches). `--all
--device cpu --batch 8 --images 64 --epochs 2 --workers 1` shows that all of it runs, on any machine; its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.images import make_tree
from benchmarks.measure import HEADING, ROOT, Row, about, run_command

MODEL = "vit_tiny_patch16_224"
FLOPS_PER_IMAGE = 3 * 2 * 1.258e9  # forward 1.26 GMACs (DeiT's Table 1: 1.3 B), backward twice that
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, NVIDIA's data sheets


@dataclass(frozen=True)
class Size:
    """How much is measured, on what."""

    all: bool = False
    timm: Path | None = None
    tree: Path = Path(tempfile.gettempdir()) / "vitlab_bench_tree"
    images: int = 16_000
    epochs: int = 3
    workers: int = os.cpu_count() or 1
    batch: int = 1024
    device: str = "cuda"


def ours(augment: str, size: Size, *extra: str) -> float:
    """Images per second of run.py, training only."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            str(ROOT / "run.py"), f"augment={augment}", "dataset=folder", f"dataset.root={size.tree}",
            "model=vit_tiny_16_224", "recipe=deit", f"recipe.epochs={size.epochs}", "recipe.warmup_epochs=1",
            f"recipe.batch_size={size.batch}", "recipe.repeated_augmentation=1", "recipe.ema_decay=0",
            f"recipe.eval_every={size.epochs}", f"workers={size.workers}", f"device={size.device}",
            "wandb.mode=disabled", f"output_dir={folder}", *extra,
        ]  # fmt: skip
        _, output = run_command(words, Path(folder))
        files = list(Path(folder).glob("c*/metrics.jsonl"))
        if not files:
            logs = "".join(log.read_text(encoding="utf-8")[-2000:] for log in Path(folder).glob("c*/log.txt"))
            raise RuntimeError(output[-3000:] + logs)
        rates = [json.loads(line)["images_per_second"] for line in files[0].read_text(encoding="utf-8").splitlines()]
        return float(np.median(rates[1:]))


def cells_together(words: list[str], cells: int, size: Size) -> float:
    """Images per second of a study of so many cells, all at once on the device: the sum of their rates."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(ROOT / "run.py"), "-m", *words, f"recipe.epochs={size.epochs}", "recipe.warmup_epochs=0",
            f"recipe.eval_every={size.epochs}", f"workers={size.workers}", f"device={size.device}",
            f"study.cells_per_device={cells}", "wandb.mode=disabled", f"output_dir={folder}",
        ]  # fmt: skip
        _, output = run_command(command, Path(folder))
        rates = []
        for file in Path(folder).glob("c*/metrics.jsonl"):
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            rates.append(float(np.median([line["images_per_second"] for line in lines[1:]])))
        if len(rates) != cells:
            raise RuntimeError(output[-3000:])
        return sum(rates)


def sharing(size: Size) -> Iterator[Row]:
    """Cells that share the device, against one at a time."""
    unit = f"images/s of the study, {torch.cuda.get_device_name() if size.device == 'cuda' else 'CPU'}"
    make_tree(size.tree, train=size.images, val=max(size.images // 20, 4), classes=min(100, size.images // 4))
    words = [
        "dataset=folder", f"dataset.root={size.tree}", "model=vit_tiny_16_224", "recipe=deit", "recipe.ema_decay=0",
        f"recipe.batch_size={size.batch}", "recipe.repeated_augmentation=1",
    ]  # fmt: skip
    together = cells_together(["augment=none,randaug,erase,jitter", *words], 4, size)
    alone = cells_together(["augment=none", *words], 1, size)
    yield Row(
        "ViT-Ti/16 from JPEG, 4 cells of one seed beside one at a time", together, alone, unit, together / alone, 3
    )
    small = ["dataset=fashion_mnist", "model=vit_tiny_28", "recipe=quick"]
    small += [] if size.device == "cuda" else ["dataset.train_per_class=64"]
    together = cells_together(["augment=none", "seed=0,1,2,3,4,5,6,7", *small], 8, size)
    alone = cells_together(["augment=none", "seed=0", *small], 1, size)
    yield Row("vit_tiny_28 on Fashion-MNIST, 8 cells beside one at a time", together, alone, unit, together / alone, 3)


def pack(size: Size, folder: Path) -> None:
    """The tree as a pack, by the command that a user types."""
    words = ["task=pack", "dataset=folder", f"dataset.root={size.tree}", f"pack.path={folder}"]
    run_command([str(ROOT / "run.py"), *words, f"workers={size.workers}", f"output_dir={folder}/runs"])


def timms(augment: str, size: Size, *extra: str) -> float:
    """Images per second of timm's train.py with bf16 and torch.compile, on the same tree, model and global batch."""
    flags = {"none": [], "randaug": ["--aa", "rand-m9-mstd0.5-inc1"]}[augment]
    speed = ["--amp", "--amp-dtype", "bfloat16", "--torchcompile", "inductor"] if size.device == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        words = [
            str(size.timm), "--data-dir", str(size.tree), "--model", MODEL, "--num-classes", "100", "-b",
            str(size.batch), "--device", size.device, *speed, "--opt", "adamw", "--lr", "1e-3",
            "--weight-decay", "0.05", "--drop-path", "0.1", "--smoothing", "0", "--color-jitter", "0",
            "--train-interpolation", "bicubic", "--workers", str(size.workers), "--epochs", str(size.epochs),
            "--warmup-epochs", "0", "--log-interval", "1", "--output", folder, "--val-split", "", *flags, *extra,
        ]  # fmt: skip
        _, text = run_command(words)
        # "Train: 2 [  18/19 …  Time: 0.35s, 2899.3/s  (0.36s, 2811.25/s)": the last bracket of an epoch is its mean
        means = {int(e): float(rate) for e, rate in re.findall(r"Train: (\d+) .*?\([\d.]+s,\s*([\d.]+)/s\)", text)}
        if not means:
            raise RuntimeError(text[-4000:])
        return float(np.median([rate for epoch, rate in means.items() if epoch > 0]))


def step_alone(batch: int = 1024, steps: int = 30) -> dict[str, float]:
    """Images per second of our step, on images that are on the GPU already, under several conditions."""
    from vitlab.config import CellConfig, choice
    from vitlab.data.augment import Augment
    from vitlab.data.loader import Batch
    from vitlab.models.build import build_model, shorten_last_block
    from vitlab.models.drop_path import install_drop_path
    from vitlab.train.distributed import World
    from vitlab.train.optim import build_optimizer
    from vitlab.train.step import compile_and_replicate, train_step

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
        network, engine = compile_and_replicate(model, "default", World(), device), Augment(cell.augment, cell.dataset)
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


def rows(size: Size) -> Iterator[Row]:
    """The GPU's rows of the table of targets, those that compare with timm's train.py where it is given."""
    unit = f"images/s, {torch.cuda.get_device_name()}" if size.device == "cuda" else "images/s, CPU"
    synthetic: dict[str, float] = {}
    if size.device == "cuda":
        synthetic, peer = step_alone(), timm_step_alone()
        peak = next((v for k, v in PEAK.items() if k in unit), None)
        mfu = f", MFU {100 * synthetic['none'] * FLOPS_PER_IMAGE / peak:.0f} %" if peak else ""
        yield Row(f"step alone, none{mfu}", synthetic["none"], peer, unit, synthetic["none"] / peer, 1.1)
        for name, before, target in (("none", 16_998, 20_000), ("deit", 13_926, 19_000)):
            rate = synthetic[name]
            yield Row(
                f"step alone, {name}, beside ours of 2026-11-24", rate, before, unit, rate / before, target / before
            )
    if size.all:
        yield from sharing(size)
        with tempfile.TemporaryDirectory() as folder:
            pack(size, Path(folder) / "pack")
            mine = ours("none", size, f"dataset.pack={folder}/pack")
            step = synthetic.get("none") or ours("none", size)
            beside = "our step alone" if synthetic else "the same from JPEG"
            yield Row(f"pack, none, beside {beside}", mine, step, unit, mine / step, 0.9)
    if size.timm is None:
        return
    make_tree(size.tree, train=size.images, val=max(size.images // 20, 4), classes=min(100, size.images // 4))
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "pack"
        pack(size, packed)
        for augment in ("none", "randaug"):
            theirs = timms(augment, size)
            mine = ours(augment, size)
            yield Row(f"JPEG tree, {augment}", mine, theirs, unit, mine / theirs, 2)
            mine = ours(augment, size, f"dataset.pack={packed}")
            yield Row(f"pack, {augment}", mine, theirs, unit, mine / theirs, 3)
            if augment in synthetic:
                step = synthetic[augment]
                yield Row(f"pack beside our step alone, {augment}", mine, step, unit, mine / step, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Size):
        kind = {"timm": Path, "tree": Path, "device": str}.get(field.name, int)
        how = {"action": "store_true"} if field.name == "all" else {"type": kind, "default": field.default}
        parser.add_argument(f"--{field.name}", **how)
    size = Size(**vars(parser.parse_args()))
    if size.timm:
        size = dataclasses.replace(size, timm=size.timm.resolve())
    print(f"{about()}\n\n{HEADING}", flush=True)
    for row in rows(size):
        print(row, flush=True)


if __name__ == "__main__":
    main()
