"""ViT-Ti/16 at 224 pixels on one GPU, against timm: ways to run the step, cells that share it, from JPEGs and a pack.

python -m benchmarks.bench_gpu --all [--budget 540] [--parts step,augment,jpeg,pack,cells] [--timm PATH/train.py]

Rows are printed as they are measured; a part that the budget of seconds has no room for is named with the command that
measures it, and one that fails with its error. Without --all the parts are the step and its augmentation, and, with
--timm, timm's train.py on the same tree (from timm's repository: it is not in its wheel).

The step takes random images that are on the GPU already, by the trial of `tune=true`; timm's augments none. Figures of
commands are images per second over whole epochs but the first. `--small` shows on any machine that all of it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import timm.optim
import torch

from benchmarks.bench_fashion_mnist import write_idx
from benchmarks.images import make_tree
from benchmarks.measure import HEADING, ROOT, Row, about, run_command
from vitlab.config import CellConfig, ConfigError, choice
from vitlab.data.sources.arrays import fashion_folder
from vitlab.models.build import build_model, shorten_last_block
from vitlab.models.drop_path import install_drop_path
from vitlab.train.distributed import World
from vitlab.train.step import Speed
from vitlab.train.tuning import Choosing, Rig

FLOPS_PER_IMAGE = 3 * 2 * 1.258e9  # forward 1.26 GMACs (DeiT's Table 1: 1.3 B), backward twice that
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, NVIDIA's data sheets
BEFORE = {"none": (16_998, 20_000), "deit": (13_926, 19_000), "randaug": (14_608, 14_608)}
"""Condition → images per second of our step on 2026-11-24 on an H100, and what they shall be."""
Rows = Iterator[Row | str]
"""Rows, and lines that say why there is none."""


@dataclass(frozen=True)
class Size:
    """How much is measured, on what."""

    all: bool = False
    small: bool = False
    budget: int = 540
    parts: str = ""
    timm: Path | None = None
    tree: Path = Path(tempfile.gettempdir()) / "vitlab_bench_tree"
    images: int = 8_000
    epochs: int = 3
    workers: int = os.cpu_count() or 1
    batch: int = 1024
    device: str = "cuda"

    @property
    def unit(self) -> str:
        return f"images/s, {torch.cuda.get_device_name()}" if self.device == "cuda" else "images/s, CPU"

    @property
    def overrides(self) -> list[str]:
        """Of a command that trains on the tree of JPEGs, which is made where it is not there."""
        make_tree(self.tree, train=self.images, val=max(self.images // 20, 4), classes=min(100, self.images // 4))
        return [
            "dataset=folder", f"dataset.root={self.tree}", f"model={self.model}", "recipe=deit",
            f"recipe.batch_size={self.batch}", "recipe.ema_decay=0", "recipe.repeated_augmentation=1",
        ]  # fmt: skip

    @property
    def model(self) -> str:
        return "vit_micro" if self.small else "vit_tiny_16_224"


class Run:
    """A run of the benchmark: what its parts know of one another."""

    def __init__(self, size: Size) -> None:
        self.size, self.end = size, time.perf_counter() + size.budget
        self.speed = Speed("default" if size.device == "cuda" else None)
        """The fastest way to run the step that was found."""
        self.rates: dict[str, float] = {}
        """Images per second that several parts compare with: of our `step`, and of `timm`'s."""

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()

    def step(self) -> Rows:
        """Our step without augmentation, in every way that the trial knows, against timm's."""
        rig = self.rig("none")
        chosen = yield from self.ways("none", rig, rig.choose_rounding())
        self.speed, self.rates["step"] = chosen, best_of(rig)
        yield self.against_before("none", rig, chosen)

    def augment(self) -> Rows:
        """The same with all of DeiT's augmentation and with RandAugment: as written, compiled, and on a stream."""
        for condition in ("deit", "randaug"):
            rig = self.rig(condition)
            chosen = yield from self.ways(condition, rig, rig.choose_augmentation(self.speed))
            if best_of(rig):
                yield self.against_before(condition, rig, chosen)

    def rig(self, condition: str) -> Rig:
        """The trial of `tune=true` for a ViT-Ti under DeiT's recipe; without the moving average, which timm's step has
        not."""
        size, pretrain = self.size, choice("pretrain", "scratch")
        recipe = dataclasses.replace(choice("recipe", "deit"), batch_size=size.batch, ema_decay=0.0)
        augment = dataclasses.replace(choice("augment", condition), mix_group=min(32, size.batch))
        cell = CellConfig(choice("model", size.model), choice("dataset", "imagenet1k"), augment, pretrain, recipe)
        torch.manual_seed(0)
        model = build_model(cell.model, 1000)
        shorten_last_block(model)
        masks, device = install_drop_path(model, recipe.drop_path), torch.device(size.device)
        return Rig(
            model.to(device), masks, cell, micro_batch=size.batch, parts=1, num_classes=1000, device=device,
            world=World(), limit=min(200.0, self.left - 60),
        )  # fmt: skip

    def ways(self, condition: str, rig: Rig, trial: Choosing) -> Generator[Row | str, None, Speed]:
        """A row of each way as soon as it is measured; returns the fastest."""
        self.rates["timm"] = peer = self.rates.get("timm") or timm_step(self.size)
        shown = 0
        while True:
            try:
                next(trial)
                chosen = None
            except StopIteration as end:
                chosen = end.value[0]
            for way, rate in list(rig.tried.items())[shown:]:
                shown += 1
                what = f"step alone, {condition}, {way}"
                yield f"{what}: {rate}" if isinstance(rate, str) else self.row(what, rate, peer, 1.1)
            if chosen is not None:
                rig.clear()
                return chosen

    def against_before(self, condition: str, rig: Rig, chosen: Speed) -> Row:
        """The fastest way against our step of before."""
        rate, (before, target) = best_of(rig), BEFORE[condition]
        peak = next((v for k, v in PEAK.items() if k in self.size.unit), None)
        mfu = f", MFU {100 * rate * FLOPS_PER_IMAGE / peak:.0f} %" if peak else ""
        how = [chosen.rounding, *["compiled augmentation"] * chosen.augment, *["stream"] * chosen.stream]
        what = f"step alone, {condition}, {', '.join(how)}{mfu}, against ours of 2026-11-24"
        return self.row(what, rate, before, target / before)

    def jpeg(self) -> Rows:
        """Cells of one seed that share the device and a loader, against one at a time."""
        overrides = self.size.overrides
        alone = trained(["augment=none", *overrides], self.size)
        together = trained(["augment=none,randaug,erase,jitter", *overrides], self.size, cells=4)
        yield self.row("JPEG tree, 4 cells of one seed against one at a time", together, alone, 3)

    def pack(self) -> Rows:
        """From a pack, against our step alone."""
        size = self.size
        with tempfile.TemporaryDirectory() as folder:
            make_pack(size, Path(folder) / "pack")
            mine = trained(["augment=none", *size.overrides, f"dataset.pack={folder}/pack"], size)
            step = self.rates.get("step") or best_of_default(self)
            yield self.row("pack, none, against our step alone", mine, step, 0.9)

    def cells(self) -> Rows:
        """Eight small cells on the device, against one at a time."""
        size = self.size
        with tempfile.TemporaryDirectory() as folder:
            overrides, images = ["dataset=fashion_mnist", "model=vit_tiny_28", "recipe=quick"], "Fashion-MNIST"
            if size.small or not fashion_is_here():  # their number and size count here, not the pictures
                images, counts = "random pictures like Fashion-MNIST", (320, 32) if size.small else (60_000, 10_000)
                overrides += [
                    f"dataset.root={folder}",
                    f"dataset.num_train={counts[0]}",
                    f"dataset.num_eval={counts[1]}",
                ]
                random = np.random.default_rng(0)
                for name, count in zip(("train", "t10k"), counts, strict=True):
                    pictures = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
                    write_idx(Path(folder), name, pictures, (np.arange(count) % 10).astype(np.uint8))
            alone = trained(["augment=none", "seed=0", *overrides], size)
            together = trained(["augment=none", "seed=0,1,2,3,4,5,6,7", *overrides], size, cells=8)
            yield self.row(f"vit_tiny_28 on {images}, 8 cells against one at a time", together, alone, 3)

    def timm(self) -> Rows:
        """From JPEG and from a pack against timm's train.py."""
        size = self.size
        with tempfile.TemporaryDirectory() as folder:
            make_pack(size, Path(folder) / "pack")
            for condition in ("none", "randaug"):
                theirs = timms(condition, size)
                overrides = [f"augment={condition}", *size.overrides]
                yield self.row(f"JPEG tree, {condition}, against timm's train.py", trained(overrides, size), theirs, 2)
                mine = trained([*overrides, f"dataset.pack={folder}/pack"], size)
                yield self.row(f"pack, {condition}, against timm's train.py", mine, theirs, 3)

    def row(self, what: str, ours: float, peer: float, target: float) -> Row:
        return Row(what, ours, peer, self.size.unit, ours / peer, target)


PARTS = {"step": 230, "augment": 90, "jpeg": 110, "pack": 50, "cells": 60, "timm": 300}
"""Part of a run → seconds that it may take on an H100 with 16 cores, as far as was estimated; 540 hold all of --all."""


def fashion_is_here() -> bool:
    try:
        return bool(fashion_folder(choice("dataset", "fashion_mnist")))
    except ConfigError:
        return False


def best_of(rig: Rig) -> float:
    return max((rate for rate in rig.tried.values() if isinstance(rate, float)), default=0.0)


def best_of_default(run: Run) -> float:
    """Our step in the way that a command runs it in which nothing is tuned, where the step is not measured."""
    rig = run.rig("none")
    rate = rig.images_per_second(run.speed)
    rig.clear()
    return rate


def trained(overrides: list[str], size: Size, cells: int = 1) -> float:
    """Images per second of a study of so many cells, all at once on the device: the sum of their rates."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(ROOT / "run.py"), "-m", *overrides, f"recipe.epochs={size.epochs}", "recipe.warmup_epochs=0",
            f"recipe.eval_every={size.epochs}", f"workers={size.workers}", f"device={size.device}",
            f"study.cells_per_device={cells}", "wandb.mode=disabled", f"output_dir={folder}",
        ]  # fmt: skip
        _, output = run_command(command, Path(folder))
        rates = []
        for file in Path(folder).glob("c*/metrics.jsonl"):
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            rates.append(float(np.median([line["images_per_second"] for line in lines[1:]])))
        if len(rates) != cells:
            logs = "".join(log.read_text(encoding="utf-8")[-2000:] for log in Path(folder).glob("c*/log.txt"))
            raise RuntimeError(output[-3000:] + logs)
        return sum(rates)


def make_pack(size: Size, folder: Path) -> None:
    """The tree as a pack, by the command that a user types."""
    overrides = ["task=pack", *size.overrides[:2], f"pack.path={folder}"]
    run_command([str(ROOT / "run.py"), *overrides, f"workers={size.workers}", f"output_dir={folder}/runs"])


def timms(augment: str, size: Size) -> float:
    """Images per second of timm's train.py with bf16 and torch.compile, on the same tree, model and global batch."""
    flags = {"none": [], "randaug": ["--aa", "rand-m9-mstd0.5-inc1"]}[augment]
    speed = ["--amp", "--amp-dtype", "bfloat16", "--torchcompile", "inductor"] if size.device == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            str(size.timm), "--data-dir", str(size.tree), "--model", "vit_tiny_patch16_224", "--num-classes", "100",
            "-b", str(size.batch), "--device", size.device, *speed, "--opt", "adamw", "--lr", "1e-3",
            "--weight-decay", "0.05", "--drop-path", "0.1", "--smoothing", "0", "--color-jitter", "0",
            "--train-interpolation", "bicubic", "--workers", str(size.workers), "--epochs", str(size.epochs),
            "--warmup-epochs", "0", "--log-interval", "1", "--output", folder, "--val-split", "", *flags,
        ]  # fmt: skip
        _, text = run_command(overrides)
        # "Train: 2 [  18/19 …  Time: 0.35s, 2899.3/s  (0.36s, 2811.25/s)": the last bracket of an epoch is its mean
        means = {int(e): float(rate) for e, rate in re.findall(r"Train: (\d+) .*?\([\d.]+s,\s*([\d.]+)/s\)", text)}
        if not means:
            raise RuntimeError(text[-4000:])
        return float(np.median([rate for epoch, rate in means.items() if epoch > 0]))


def timm_step(size: Size, steps: int = 30) -> float:
    """Images per second of what timm's train.py runs per step without augmentation: autocast, compiled model, AdamW."""
    device, ours = torch.device(size.device), choice("model", size.model)
    torch.manual_seed(0)
    sizes = {k: v for k in ("patch_size", "embed_dim", "depth", "num_heads") if (v := getattr(ours, k)) is not None}
    model = timm.create_model(ours.name, drop_path_rate=0.1, num_classes=1000, img_size=ours.image_size, **sizes)
    model = model.to(device).train()
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    compiled = torch.compile(model)
    images = torch.randn(size.batch, 3, ours.image_size, ours.image_size, device=device)
    labels = torch.randint(0, 1000, (size.batch,), device=device)
    loss_function, begun = torch.nn.CrossEntropyLoss(), 0.0
    for step in range(steps + 8):
        if step == 8:
            synchronise(device)
            begun = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_function(compiled(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    synchronise(device)
    torch._dynamo.reset()
    return size.batch * steps / (time.perf_counter() - begun)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rows(size: Size) -> Rows:
    """The rows of the parts that were asked for, each begun only where the budget has room for it."""
    asked = ["step", "augment", *["jpeg", "pack", "cells"] * size.all, *["timm"] * (size.timm is not None)]
    asked = size.parts.split(",") if size.parts else asked
    if wrong := [part for part in asked if part not in PARTS or (part == "timm" and not size.timm)]:
        raise SystemExit(f"--parts: got {', '.join(wrong)}, allowed: {', '.join(PARTS)} (timm with --timm)")
    run, factor = Run(size), 0.2 if size.small else 1.0
    for part in asked:
        needed, again = factor * PARTS[part], f"python -m benchmarks.bench_gpu --parts {part}"
        if run.left < needed:
            yield f"{part}: not measured, {run.left:.0f} s of {size.budget} are left; type {again}"
            continue
        try:
            yield from getattr(run, part)()
        except Exception as error:  # one part's failure leaves the others their time
            yield f"{part}: failed, {type(error).__name__}: {str(error)[-1500:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Size):
        kind = {"timm": Path, "tree": Path, "device": str, "parts": str}.get(field.name, int)
        if field.type == "bool":
            parser.add_argument(f"--{field.name}", action="store_true")
        else:
            parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    size = Size(**vars(parser.parse_args()))
    if size.small:
        size = dataclasses.replace(size, device="cpu", batch=16, images=64, epochs=2, workers=1)
        size = dataclasses.replace(size, tree=size.tree.with_name(f"{size.tree.name}_small"))
    if size.timm:
        size = dataclasses.replace(size, timm=size.timm.resolve())
    plan = ", ".join(f"{part} {seconds} s" for part, seconds in PARTS.items())
    print(f"{about()}\nbudget {size.budget} s; parts, at most: {plan}\n\n{HEADING}", flush=True)
    failed, began = False, time.perf_counter()
    for row in rows(size):
        failed |= isinstance(row, str) and ": failed" in row
        print(row if isinstance(row, Row) else f"| {' '.join(row.split())} | – | – | – | – | – | – |", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
