"""How it scales: images per second against workers and devices, memory against batch; two tables and docs/scaling.png.

python -m benchmarks.bench_scaling [--images 256] [--workers 0,1,2] [--batches 1,2,4,8] [--devices 1,2,4] [--plot FILE]

Workers: JPEG → uint8 crops through the whole loader, and timm's, by the clock and per second of processors; only
idle cores show the former. Memory of a ViT-Ti/16 training pass: on a GPU its peak, else the bytes that autograd keeps
for the backward pass, which are exact but not a peak. Devices: whole runs of `run.py devices=N` on CUDA devices.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.bench_loader import our_epochs, timms_epochs
from benchmarks.images import make_tree
from benchmarks.measure import ROOT, about, processor_seconds, run_command
from vitlab.config import choice
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.models.build import build_model, shorten_last_block
from vitlab.train.evaluate import autocast

Rates = dict[int, tuple[float, float]]
"""Workers → images per second by the clock, and per second of processors."""


def epoch_rates(build: Callable[[], Callable[[int], int]]) -> tuple[float, float]:
    """Images per second of the function that `build` returns, which reads an epoch: by the clock, the first epoch left
    out, and per second of all processes, their start included (a worker's seconds are known once it has ended)."""
    used = processor_seconds()
    read = build()
    first, began = read(0), time.perf_counter()
    count = read(1) + read(2)
    clock = time.perf_counter() - began
    del read
    gc.collect()  # ends the workers
    return count / clock, (first + count) / (processor_seconds() - used)


def against_workers(folder: Path, images: int, workers: list[int]) -> dict[str, Rates]:
    make_tree(folder / "tree", train=images, val=4, classes=4)
    files = dataclasses.replace(choice("dataset", "folder"), root=str(folder / "tree"))
    files = resolve_class_list(files, str(folder))
    found: dict[str, Rates] = {"vitlab": {}, "timm": {}}
    for number in workers:
        found["vitlab"][number] = epoch_rates(lambda n=number: our_epochs(files, "randaug", augmented=False, workers=n))
        found["timm"][number] = epoch_rates(
            lambda n=number: timms_epochs(folder / "tree", "randaug", augmented=False, workers=n)
        )
    return found


def kept_bytes(model: nn.Module, batch: int, precision: str) -> int:
    """Bytes of the tensors that a forward pass over `batch` images keeps for the backward pass, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    images = torch.zeros(batch, 3, 224, 224)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), autocast(torch.device("cpu"), precision):
        loss = F.cross_entropy(model(images).float(), torch.zeros(batch, dtype=torch.int64))
    del loss
    return sum(kept.values())


def peak_bytes(model: nn.Module, batch: int, precision: str) -> int:
    """Peak bytes on the GPU of a forward and backward pass."""
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats(device)
    with autocast(device, precision):
        logits = model(torch.zeros(batch, 3, 224, 224, device=device))
    F.cross_entropy(logits.float(), torch.zeros(batch, dtype=torch.int64, device=device)).backward()
    model.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(device)


def against_batch(batches: list[int]) -> dict[str, dict[int, float]]:
    """GB of a ViT-Ti/16 training pass: precision and checkpointing → batch → GB."""
    found: dict[str, dict[int, float]] = {}
    for precision in ("fp32", "bf16"):
        for frugal in (False, True):
            config = dataclasses.replace(choice("model", "vit_tiny_16_224"), grad_checkpointing=frugal)
            model = build_model(config, 1000).train()
            shorten_last_block(model)
            measure = kept_bytes
            if torch.cuda.is_available():
                model, measure = model.cuda(), peak_bytes
            name = precision + ", grad_checkpointing" * frugal
            found[name] = {batch: measure(model, batch, precision) / 1e9 for batch in batches}
    return found


def against_devices(tree: Path, devices: list[int]) -> dict[int, float]:
    """Images per second of run.py on 1, 2, … GPUs, the first epoch left out."""
    found = {}
    for number in devices:
        with tempfile.TemporaryDirectory() as folder:
            words = [
                str(ROOT / "run.py"), "augment=randaug", "dataset=folder", f"dataset.root={tree}", "device=cuda",
                "model=vit_tiny_16_224", "recipe=deit", "recipe.epochs=3", "recipe.warmup_epochs=1",
                "recipe.repeated_augmentation=1", "recipe.eval_every=3", f"devices={number}", "wandb.mode=disabled",
                f"output_dir={folder}",
            ]  # fmt: skip
            run_command(words)
            rows = next(Path(folder).glob("c*/metrics.jsonl")).read_text(encoding="utf-8").splitlines()
            found[number] = json.loads(rows[-1])["images_per_second"]
    return found


def plot(rates: dict[str, Rates], memory: dict[str, dict[int, float]], devices: dict[int, float], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2 + bool(devices), figsize=(9 + 4 * bool(devices), 3.4), layout="constrained")
    for colour, (side, found) in zip(("C0", "C1"), rates.items(), strict=True):
        workers = list(found)
        axes[0].plot(workers, [found[w][0] for w in workers], f"{colour}o-", label=f"{side}, by the clock")
        axes[0].plot(workers, [found[w][1] for w in workers], f"{colour}x--", label=f"{side}, per core-second")
    axes[0].set(xlabel="workers (0: none)", ylabel="images/s, JPEG → uint8 crops", xticks=workers)
    for name, found in memory.items():
        axes[1].plot(list(found), list(found.values()), "o-", label=name)
    what = "peak on the GPU" if torch.cuda.is_available() else "kept for the backward pass"
    axes[1].set(xlabel="images per device", ylabel=f"GB {what}")
    if devices:
        axes[2].plot(list(devices), list(devices.values()), "o-", label="vitlab, JPEG tree")
        axes[2].set(xlabel="devices", ylabel="images/s", xticks=list(devices))
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    for name, value in (("workers", "0,1,2"), ("batches", "1,2,4,8"), ("devices", "1,2,4")):
        parser.add_argument(f"--{name}", default=value)
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "scaling.png")
    options = parser.parse_args()
    workers, batches, devices = (
        [int(v) for v in text.split(",")] for text in (options.workers, options.batches, options.devices)
    )
    torch.set_num_threads(1)
    print(about())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rates = against_workers(folder, options.images, workers)
        print("\n| workers | vitlab, images/s | timm | vitlab, images per core-second | timm |\n|" + " ---: |" * 5)
        for w in workers:
            figures = [rates[side][w][kind] for kind in (0, 1) for side in ("vitlab", "timm")]
            print(f"| {w} | {' | '.join(f'{figure:,.0f}' for figure in figures)} |", flush=True)
        available = [n for n in devices if n <= torch.cuda.device_count()]
        on_devices = against_devices(folder / "tree", available)
    memory = against_batch(batches)
    print(f"\n| images per device | {' | '.join(memory)} |\n|" + " ---: |" * (1 + len(memory)))
    for batch in batches:
        print(f"| {batch} | {' | '.join(f'{found[batch]:.3f} GB' for found in memory.values())} |")
    for number, rate in on_devices.items():
        print(f"devices={number}: {rate:,.0f} images/s")
    plot(rates, memory, on_devices, options.plot)


if __name__ == "__main__":
    main()
