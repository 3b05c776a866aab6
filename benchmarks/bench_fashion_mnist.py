"""Fashion-MNIST, a small ViT and RandAugment on a CPU, whole commands against timm's train.py; one cell, then three.

python -m benchmarks.bench_fashion_mnist --timm PATH/train.py [--images 12000] [--epochs 2] [--rounds 2] [--threads 2]

Same model, images, batch, epochs and RandAugment; start-up and the evaluation of every epoch included. The peer gets
one input channel (its own data set class is grey) and, where there are threads for it, the better of two worker counts.
It needs Pillow < 13: give a folder that holds one with --peer-path (`pip install --target FOLDER --no-deps
"pillow<13"`). timm's train.py is not in its wheel: take it from timm's repository. Rounds take turns, the fastest of
each side counts; a ratio is given by the clock, and of processor seconds, descendants included, which neighbours on
the machine disturb less.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import HEADING, ROOT, Row, Seconds, about, run_command
from vitlab.config import ModelConfig, choice
from vitlab.data.sources.arrays import load_fashion_mnist

BATCH = 128


def write_idx(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Grey images (n, 28, 28) and labels (n,), both uint8, as the IDX files of a split, plain and packed."""
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
        for file, opener in ((f"{name}-{kind}-ubyte", open), (f"{name}-{kind}-ubyte.gz", gzip.open)):
            with opener(folder / file, "wb") as out:
                out.write(header + np.ascontiguousarray(array).tobytes())


def write_subset(folder: Path, images: int) -> None:
    """The first `images` training and images/6 test pictures as the IDX files both sides read."""
    for split, name, count in (("train", "train", images), ("eval", "t10k", images // 6)):
        source = load_fashion_mnist(choice("dataset", "fashion_mnist"), split)
        write_idx(folder, name, source.images[:count, ..., 0], source.labels[:count].astype(np.uint8))


def ours(root: Path, images: int, epochs: int, *words: str) -> Seconds:
    command = [
        str(ROOT / "run.py"), "-m", "dataset=fashion_mnist", f"dataset.root={root}", "model=vit_tiny_28",
        "augment=randaug", f"dataset.num_train={images}", f"dataset.num_eval={images // 6}",
        f"recipe.batch_size={BATCH}", f"recipe.epochs={epochs}", "recipe.warmup_epochs=0", "wandb.mode=disabled",
        *words,
    ]  # fmt: skip
    return run_command(command)[0]


def timms(train: Path, root: Path, epochs: int, workers: int, threads: int, path: str, seed: int) -> Seconds:
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
        "--train-interpolation", "bicubic", "--val-split", "test", "--crop-pct", "1.0", "--seed", str(seed),
    ]  # fmt: skip
    environment = {"OMP_NUM_THREADS": str(threads)} | ({"PYTHONPATH": path} if path else {})
    return run_command(command, environment=environment)[0]


def rows(train: Path, path: str, images: int, epochs: int, rounds: int, threads: int) -> Iterator[Row]:
    """One cell, then a study of three seeds: each by the clock and in processor seconds, the best of the rounds.

    The peer's study is its three commands one after another, and its cell the fastest of them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        raw = root / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        write_subset(raw, images)
        single = [f"threads={threads}"]
        sides: dict[str, Callable[[], list[Seconds]]] = {
            "vitlab, one process": lambda: [ours(root, images, epochs, *single)],
            "timm, three commands": lambda: [timms(train, root, epochs, 1, threads, path, s) for s in range(3)],
            "vitlab, three cells side by side": lambda: [
                ours(root, images, epochs, "seed=0,1,2", "study.cells_at_once=3")
            ],
        }
        if threads > 1:
            sides["vitlab, two processes"] = lambda: [ours(root, images, epochs, "devices=2")]
            sides["timm, two workers"] = lambda: [timms(train, root, epochs, 2, threads, path, 0)]
        spent: dict[str, list[list[Seconds]]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, run in sides.items():
                spent[side].append(run())
                print(f"  {side}: {'; '.join(map(str, spent[side][-1]))}", flush=True)
    for unit in ("clock", "processor"):

        def least(*names: str, total: bool = False, unit: str = unit) -> float:
            runs = [[getattr(s, unit) for s in run] for name in names for run in spent.get(name, [])]
            return min(sum(run) if total else min(run) for run in runs)

        mine = least("vitlab, one process", "vitlab, two processes")
        theirs = least("timm, three commands", "timm, two workers")
        yield Row("Fashion-MNIST, one cell", mine, theirs, f"s, {unit}", theirs / mine, 1.2)
        mine, theirs = least("vitlab, three cells side by side"), least("timm, three commands", total=True)
        yield Row("Fashion-MNIST, a study of three cells", mine, theirs, f"s, {unit}", theirs / mine, 1.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path, required=True)
    parser.add_argument("--peer-path", default="", help="PYTHONPATH of the peer: a folder with a Pillow before 13")
    for name, value in (("images", 12_000), ("epochs", 2), ("rounds", 2), ("threads", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    sizes = options.images, options.epochs, options.rounds, options.threads
    print(f"{about()}; {sizes[0]} images, {sizes[1]} epochs, batch {BATCH}, {sizes[3]} threads", flush=True)
    table = list(rows(options.timm.resolve(), options.peer_path, *sizes))
    print("\n".join([HEADING, *map(str, table)]))


if __name__ == "__main__":
    main()
