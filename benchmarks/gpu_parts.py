"""The parts of bench_gpu, each measured by a process of its own: python -m benchmarks.gpu_parts PART SIZE KNOWN

What a part measures goes to the standard output, a line of JSON each, when it is known (`bench_gpu.apart`).
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.optim
import torch

from benchmarks.bench_fashion_mnist import write_idx
from benchmarks.bench_gpu import Rows, Size
from benchmarks.images import make_tree
from benchmarks.measure import ROOT, Row, run_command
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
A_WAY = 80.0
"""Seconds that a way to run the step may take, with compiling and trying kernels: none is begun with less left."""


class Run:
    """A run of the benchmark: what its parts know of one another."""

    def __init__(self, size: Size, known: Mapping[str, Any]) -> None:
        self.size, self.end = size, time.perf_counter() + size.budget
        self.speed = Speed(**known.get("speed", {"compile": "default" if size.device == "cuda" else None}))
        """The fastest way to run the step that was found."""
        self.rates: dict[str, float] = dict(known.get("rates", {}))
        """Images per second that several parts compare with: of our step as commands run it, and of timm's."""

    @property
    def known(self) -> dict[str, Any]:
        return {"speed": dataclasses.asdict(self.speed), "rates": self.rates}

    @property
    def unit(self) -> str:
        return f"images/s, {torch.cuda.get_device_name()}" if self.size.device == "cuda" else "images/s, CPU"

    @property
    def overrides(self) -> list[str]:
        """Of a command that trains on the tree of JPEGs, which is made where it is not there."""
        size = self.size
        counts = {"train": size.images, "val": max(size.images // 40, 4), "classes": min(1000, size.images // 4)}
        make_tree(size.tree, distinct=size.distinct, **counts)
        return [
            "dataset=folder", f"dataset.root={size.tree}", f"model={self.model}", "recipe=deit",
            f"recipe.batch_size={size.batch}", "recipe.ema_decay=0", "recipe.repeated_augmentation=1",
        ]  # fmt: skip

    @property
    def model(self) -> str:
        return "vit_micro" if self.size.small else "vit_tiny_16_224"

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()

    def step(self) -> Rows:
        """Our step without augmentation, in every way that the trial knows, against timm's."""
        rig = self.rig("none")
        for row in self.ways("none", rig, rig.choose_rounding()):
            self.speed = rig.best
            if isinstance(rate := rig.tried.get("compile=default"), float):
                self.rates["step_default"] = rate
            yield row
        yield self.against_before("none", rig)

    def augment(self) -> Rows:
        """The same with all of DeiT's augmentation: as written, compiled, and on a stream."""
        yield from self.augmented("deit")

    def randaug(self) -> Rows:
        """The same with RandAugment."""
        yield from self.augmented("randaug")

    def augmented(self, condition: str) -> Rows:
        rig = self.rig(condition)
        yield from self.ways(condition, rig, rig.choose_augmentation(self.speed))
        if best_of(rig):
            yield self.against_before(condition, rig)

    def rig(self, condition: str) -> Rig:
        """The trial of `tune=true` for a ViT-Ti under DeiT's recipe; without the moving average, which timm's step has
        not."""
        size, pretrain = self.size, choice("pretrain", "scratch")
        recipe = dataclasses.replace(choice("recipe", "deit"), batch_size=size.batch, ema_decay=0.0)
        augment = dataclasses.replace(choice("augment", condition), mix_group=min(32, size.batch))
        cell = CellConfig(choice("model", self.model), choice("dataset", "imagenet1k"), augment, pretrain, recipe)
        torch.manual_seed(0)
        model = build_model(cell.model, 1000)
        shorten_last_block(model)
        masks, device = install_drop_path(model, recipe.drop_path), torch.device(size.device)
        return Rig(
            model.to(device), masks, cell, micro_batch=size.batch, parts=1, num_classes=1000, device=device,
            world=World(),
        )  # fmt: skip

    def ways(self, condition: str, rig: Rig, trial: Choosing) -> Rows:
        """A row of each way as soon as it is measured."""
        self.rates["timm"] = peer = self.rates.get("timm") or timm_step(self)
        rig.limit = self.left - (0 if self.size.small else A_WAY)
        shown, over = 0, False
        while not over:
            over = next(trial, None) is None
            for way, rate in list(rig.tried.items())[shown:]:
                shown += 1
                what = f"step alone, {condition}, {way}"
                yield f"{what}: {rate}" if isinstance(rate, str) else self.row(what, rate, peer, 1.1)
        rig.clear()

    def against_before(self, condition: str, rig: Rig) -> Row:
        """The fastest way against our step of before."""
        rate, (before, target) = best_of(rig), BEFORE[condition]
        peak = next((v for k, v in PEAK.items() if k in self.unit), None)
        mfu = f", MFU {100 * rate * FLOPS_PER_IMAGE / peak:.0f} %" if peak else ""
        how = [rig.best.rounding, *["compiled augmentation"] * rig.best.augment, *["stream"] * rig.best.stream]
        what = f"step alone, {condition}, {', '.join(how)}{mfu}, against ours of 2026-11-24"
        return self.row(what, rate, before, target / before)

    def jpeg(self) -> Rows:
        """Cells of one seed that share the device and a loader, against one at a time."""
        alone = self.trained(["augment=none", *self.overrides], epochs=4)
        together = self.trained(["augment=none,randaug,erase,jitter", *self.overrides], cells=4, epochs=4)
        yield self.row("JPEG tree, 4 cells of one seed against one at a time", together, alone, 3)

    def cells(self) -> Rows:
        """Eight small cells on the device, against one at a time."""
        size = self.size
        with tempfile.TemporaryDirectory() as folder:
            overrides, images = ["dataset=fashion_mnist", "model=vit_tiny_28", "recipe=quick"], "Fashion-MNIST"
            if size.small or not fashion_is_here():  # their number and size count here, not the pictures
                images, counts = "random pictures like Fashion-MNIST", (320, 32) if size.small else (16_000, 1_000)
                overrides += [
                    f"dataset.root={folder}",
                    f"dataset.num_train={counts[0]}",
                    f"dataset.num_eval={counts[1]}",
                ]
                random = np.random.default_rng(0)
                for name, count in zip(("train", "t10k"), counts, strict=True):
                    pictures = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
                    write_idx(Path(folder), name, pictures, (np.arange(count) % 10).astype(np.uint8))
            else:
                overrides += ["dataset.train_per_class=1600"]  # short epochs: what counts is a step
            alone = self.trained(["augment=none", "seed=0", *overrides], epochs=10)
            together = self.trained(["augment=none", "seed=0,1,2,3,4,5,6,7", *overrides], cells=8, epochs=10)
            yield self.row(f"vit_tiny_28 on {images}, 8 cells against one at a time", together, alone, 3)

    def pack(self) -> Rows:
        """From a pack, against our step alone."""
        with tempfile.TemporaryDirectory() as folder:
            self.make_pack(Path(folder) / "pack")
            mine = self.trained(["augment=none", *self.overrides, f"dataset.pack={folder}/pack"], epochs=6)
            step = self.rates.get("step_default") or self.default_step()
            yield self.row("pack, none, against our step alone", mine, step, 0.9)

    def timm(self) -> Rows:
        """From JPEG and from a pack against timm's train.py."""
        with tempfile.TemporaryDirectory() as folder:
            self.make_pack(Path(folder) / "pack")
            for condition in ("none", "randaug"):
                theirs = timms(condition, self.size)
                overrides = [f"augment={condition}", *self.overrides]
                mine = self.trained(overrides, epochs=4)
                yield self.row(f"JPEG tree, {condition}, against timm's train.py", mine, theirs, 2)
                mine = self.trained([*overrides, f"dataset.pack={folder}/pack"], epochs=6)
                yield self.row(f"pack, {condition}, against timm's train.py", mine, theirs, 3)

    def row(self, what: str, ours: float, peer: float, target: float) -> Row:
        return Row(what, ours, peer, self.unit, ours / peer, target)

    def default_step(self) -> float:
        """Our step in the way that a command runs it in which nothing is tuned."""
        rig = self.rig("none")
        rate = rig.images_per_second(Speed("default" if self.size.device == "cuda" else None))
        rig.clear()
        return rate

    def trained(self, overrides: list[str], *, cells: int = 1, epochs: int) -> float:
        """Images per second of a study of so many cells, all at once on the device, while all of them train."""
        size, epochs = self.size, max(epochs, 8) if self.size.small else epochs
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, str(ROOT / "run.py"), "-m", *overrides, f"recipe.epochs={epochs}",
                "recipe.warmup_epochs=0", f"recipe.eval_every={epochs}", f"workers={size.workers}",
                f"device={size.device}", f"study.cells_per_device={cells}", "wandb.mode=disabled",
                f"output_dir={folder}/runs",
            ]  # fmt: skip
            with (Path(folder) / "output").open("w+", encoding="utf-8") as stream:
                process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=subprocess.STDOUT)
                seen = watched(process, Path(folder) / "runs")
                stream.seek(0)
                output = stream.read()
            if process.returncode or len(seen) != cells:
                logs = "".join(log.read_text(encoding="utf-8")[-2000:] for log in Path(folder).glob("runs/c*/log.txt"))
                raise RuntimeError(output[-3000:] + logs)
            return rate_together(list(seen.values()), size.batch if "recipe=deit" in overrides else 32)

    def make_pack(self, folder: Path) -> None:
        """The tree as a pack, by the command that a user types."""
        overrides = ["task=pack", *self.overrides[:2], f"pack.path={folder}"]
        run_command([str(ROOT / "run.py"), *overrides, f"workers={self.size.workers}", f"output_dir={folder}/runs"])


def watched(process: subprocess.Popen, folder: Path) -> dict[str, list[tuple[float, int]]]:
    """Cell → when each of its epochs ended, in seconds of the clock, and after how many steps; once `process` ended."""
    seen: dict[str, list[tuple[float, int]]] = {}
    over = False
    while not over:
        over = process.poll() is not None
        now = time.perf_counter()
        for file in folder.glob("c*/metrics.jsonl"):
            ends = seen.setdefault(file.parent.name, [])
            lines = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]
            ends += [(now, json.loads(line)["step"]) for line in lines[len(ends) :]]
        time.sleep(0.02)
    return seen


def rate_together(cells: Sequence[Sequence[tuple[float, int]]], batch: int) -> float:
    """Images per second of all cells while all of them train: from the last one's first end of an epoch to the first
    one's last but one (the last epoch's evaluates). `cells` are ends of epochs: seconds, and steps by then.

    Cells that compile, or start, at different times would each seem fast while the others do not yet train.
    """
    ends = [cell[:-1] for cell in cells]
    begin, end = max(cell[0][0] for cell in ends), min(cell[-1][0] for cell in ends)
    if begin >= end:
        raise RuntimeError("the cells did not train at the same time for long enough; train them for more epochs")
    steps = 0.0
    for cell in ends:
        seconds, counts = np.array(cell).T
        steps += float(np.diff(np.interp([begin, end], seconds, counts))[0])
    return batch * steps / (end - begin)


def fashion_is_here() -> bool:
    try:
        return bool(fashion_folder(choice("dataset", "fashion_mnist")))
    except ConfigError:
        return False


def best_of(rig: Rig) -> float:
    return max((rate for rate in rig.tried.values() if isinstance(rate, float)), default=0.0)


def timms(augment: str, size: Size) -> float:
    """Images per second of timm's train.py with bf16 and torch.compile, on the same tree, model and global batch."""
    flags = {"none": [], "randaug": ["--aa", "rand-m9-mstd0.5-inc1"]}[augment]
    speed = ["--amp", "--amp-dtype", "bfloat16", "--torchcompile", "inductor"] if size.device == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            str(size.timm), "--data-dir", str(size.tree), "--model", "vit_tiny_patch16_224",
            "--num-classes", str(min(1000, size.images // 4)), "-b", str(size.batch), "--device", size.device, *speed,
            "--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.05",
            "--drop-path", "0.1", "--smoothing", "0", "--color-jitter", "0",
            "--train-interpolation", "bicubic", "--workers", str(size.workers), "--epochs", "4",
            "--warmup-epochs", "0", "--log-interval", "1", "--output", folder, "--val-split", "", *flags,
        ]  # fmt: skip
        _, text = run_command(overrides)
        # "Train: 2 [  18/19 …  Time: 0.35s, 2899.3/s  (0.36s, 2811.25/s)": the last bracket of an epoch is its mean
        means = {int(e): float(rate) for e, rate in re.findall(r"Train: (\d+) .*?\([\d.]+s,\s*([\d.]+)/s\)", text)}
        if not means:
            raise RuntimeError(text[-4000:])
        return float(np.median([rate for epoch, rate in means.items() if epoch > 0]))


def timm_step(run: Run, steps: int = 30) -> float:
    """Images per second of what timm's train.py runs per step without augmentation: autocast, compiled model, AdamW."""
    size = run.size
    device, ours = torch.device(size.device), choice("model", run.model)
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


def main(part: str, size: str, known: str) -> None:
    """Measure a part: each row, line and find goes out when it is known, as [kind, content]."""
    run = Run(Size.of(size), json.loads(known))
    try:
        for found in getattr(run, part)():
            kind = ("text", found) if isinstance(found, str) else ("row", dataclasses.asdict(found))
            print(json.dumps(kind), json.dumps(["known", run.known]), sep="\n", flush=True)
    except Exception as error:
        print(json.dumps(["text", f"failed, {type(error).__name__}: {str(error)[-1500:]}"]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
