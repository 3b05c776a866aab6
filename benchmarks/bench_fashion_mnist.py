"""Fashion-MNIST, a small ViT and RandAugment on a CPU, whole commands beside timm's train.py; one cell, then three.

python benchmarks/bench_fashion_mnist.py --timm PATH/train.py [--images 12000] [--epochs 2] [--rounds 2]

Same model, images, batch, epochs and RandAugment; start-up and the evaluation of every epoch included. The peer gets
one input channel (its own data set class is grey) and the best of its worker counts. It needs Pillow < 13: give a
folder that holds one with --peer-path. Rounds take turns, the fastest of each side counts.
"""

from __future__ import annotations

import argparse
import gzip
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from vitlab.config import ModelConfig, choice  # noqa: E402
from vitlab.data.memory import load_fashion_mnist  # noqa: E402

BATCH = 128


def write_subset(folder: Path, images: int) -> None:
    """The first `images` training and images/6 test pictures as the IDX files both sides read."""
    for split, name, count in (("train", "train", images), ("eval", "t10k", images // 6)):
        source = load_fashion_mnist(choice("dataset", "fashion_mnist"), split)
        arrays = {"images-idx3": source.images[:count, ..., 0], "labels-idx1": source.labels[:count].astype(np.uint8)}
        for kind, array in arrays.items():
            header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            for file, opener in ((f"{name}-{kind}-ubyte", open), (f"{name}-{kind}-ubyte.gz", gzip.open)):
                with opener(folder / file, "wb") as out:
                    out.write(header + np.ascontiguousarray(array).tobytes())


def timed(words: list[str], environment: dict[str, str]) -> float:
    """Seconds of a command by the clock; raises with its output when it fails."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=folder, env=os.environ | environment
        )
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-4000:])
    return time.perf_counter() - begun


def ours(root: Path, images: int, epochs: int, *words: str) -> Callable[[], float]:
    command = [
        str(ROOT / "run.py"), "-m", "dataset=fashion_mnist", f"dataset.root={root}", "model=vit_tiny_28",
        "augment=randaug",
        f"dataset.num_train={images}", f"dataset.num_eval={images // 6}", f"recipe.batch_size={BATCH}",
        f"recipe.epochs={epochs}", "recipe.warmup_epochs=0", "wandb.mode=disabled", *words,
    ]  # fmt: skip
    return lambda: timed(command, {})


def timms(train: Path, root: Path, epochs: int, workers: int, path: str, seeds: int = 1) -> Callable[[], float]:
    model: ModelConfig = choice("model", "vit_tiny_28")
    recipe = choice("recipe", "quick")
    size = ["img_size", "patch_size", "embed_dim", "depth", "num_heads"]
    values = [model.image_size, model.patch_size, model.embed_dim, model.depth, model.num_heads]
    command = [
        str(train), "--dataset", "torch/fashion_mnist", "--data-dir", str(root), "--model", str(model.name),
        "--num-classes", "10", "--in-chans", "1", "--input-size", "1", "28", "28", "--mean", "0.286", "--std", "0.353",
        "--model-kwargs", *[f"{k}={v}" for k, v in zip(size, values, strict=True)], "--device", "cpu",
        "-b", str(BATCH), "--epochs", str(epochs), "--warmup-epochs", "0", "--opt", recipe.optimizer,
        "--lr", str(recipe.lr), "--weight-decay", str(recipe.weight_decay), "--smoothing", "0", "--color-jitter", "0",
        "--aa", str(choice("augment", "randaug").auto_augment), "--scale", "0.5", "1.0", "--workers", str(workers),
        "--train-interpolation", "bicubic", "--val-split", "test", "--crop-pct", "1.0",
    ]  # fmt: skip
    environment = {"PYTHONPATH": path} if path else {}
    return lambda: sum(timed([*command, "--seed", str(seed)], environment) for seed in range(seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path, required=True)
    parser.add_argument("--peer-path", default="", help="PYTHONPATH of the peer: a folder with a Pillow before 13")
    for name, value in (("images", 12_000), ("epochs", 2), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    train, path, epochs = options.timm.resolve(), options.peer_path, options.epochs
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, timm "
        f"{timm.__version__}; {options.images} images, {epochs} epochs, batch {BATCH}, seconds by the clock",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        write_subset(raw, options.images)
        root, images = Path(scratch), options.images
        cores = os.cpu_count() or 1
        rows = {
            "one cell": {
                "vitlab, one process": ours(root, images, epochs, f"threads={cores}"),
                f"vitlab, devices={cores}": ours(root, images, epochs, f"devices={cores}"),
                "timm, 1 worker": timms(train, root, epochs, 1, path),
                "timm, 2 workers": timms(train, root, epochs, 2, path),
            },
            "a study of three cells": {
                "vitlab, cells side by side": ours(root, images, epochs, "seed=0,1,2", "study.cells_at_once=3"),
                "timm, one after another": timms(train, root, epochs, 1, path, seeds=3),
            },
        }
        for row, sides in rows.items():
            best = {side: float("inf") for side in sides}
            for _ in range(options.rounds):
                for side, run in sides.items():
                    best[side] = min(best[side], run())
                    print(f"  {row}: {side}: {best[side]:.1f} s", flush=True)
            mine = min(v for side, v in best.items() if side.startswith("vitlab"))
            theirs = min(v for side, v in best.items() if side.startswith("timm"))
            print(f"{row}: vitlab {mine:.1f} s, timm {theirs:.1f} s, ratio {theirs / mine:.2f}", flush=True)


if __name__ == "__main__":
    main()
