"""Cells that share a loader against cells with a loader each: whole studies, the loader alone, and one cell by itself.

python -m benchmarks.bench_sharing [--images 512] [--rounds 3] [--epochs 6]

From JPEGs of 500 x 375. The studies are real commands of three cells of one seed, by the clock of their epochs, and in
processor seconds: of the command less those of the same command with one epoch (both begin their page at once, which a
short study has not). The loaders read in processes of their own, in processor seconds of all of them, starts included,
which neighbours on the machine disturb less than the clock. Both sides take turns in one run; the medians of the rounds
count, of the ratios as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing as mp
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.images import make_tree
from benchmarks.measure import HEADING, ROOT, Row, about, run_command
from vitlab.config import CellConfig, DatasetConfig, RecipeConfig, choice
from vitlab.data import shared
from vitlab.data.loader import TrainLoader
from vitlab.data.order import crops_of_cell, epoch_samples, window_for
from vitlab.data.ring import Given, Ring
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.registry import build_source

BATCH, CLASSES, SIDE = 32, 4, 224
FORK = mp.get_context("fork")
SMALL = ("model=vit_micro", "model.image_size=64", "model.patch_size=32", "model.embed_dim=48", "model.depth=1")
"""A model whose step takes a fraction of what decoding takes."""


def study(tree: Path, epochs: int, *, sharing: bool) -> tuple[float, float]:
    """Images per second of a study of three cells, by the clock of its epochs; processor seconds of the command."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "studies" / "sharing.html"
        page.parent.mkdir()
        page.write_text('<meta http-equiv="refresh" content="15">', encoding="utf-8")
        words = [
            str(ROOT / "run.py"), "-m", "augment=none,mixup,erase", "dataset=folder", f"dataset.root={tree}", *SMALL,
            f"recipe.epochs={epochs}", "recipe.warmup_epochs=0", "recipe.batch_size=128", "workers=0",
            f"recipe.eval_every={epochs}", "study.cells_per_device=3", f"study.share_loader={str(sharing).lower()}",
            "wandb.mode=disabled", "device=cpu", f"output_dir={folder}", "study.name=sharing",
        ]  # fmt: skip
        seconds, _ = run_command(words, environment={"OMP_NUM_THREADS": "1"})
        rates = []
        for file in Path(folder).glob("c*/metrics.jsonl"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            rates.append(sum(row["images_per_second"] for row in rows[1:]) / max(1, len(rows) - 1))
    assert len(rates) == 3, "a cell failed"
    return sum(rates), seconds.processor


def epochs_of_study(tree: Path, epochs: int, *, sharing: bool) -> tuple[float, float]:
    """As `study`, with the processor seconds of all epochs but the first."""
    rate, whole = study(tree, epochs, sharing=sharing)
    return rate, whole - study(tree, 1, sharing=sharing)[1]


def _cell(dataset: DatasetConfig, epochs: int) -> CellConfig:
    recipe = RecipeConfig(epochs=epochs, batch_size=BATCH, lr=1e-3)
    model = dataclasses.replace(choice("model", "vit_micro"), image_size=SIDE)
    return CellConfig(model, dataset, choice("augment", "none"), choice("pretrain", "scratch"), recipe, 0)


def _consume(cell: CellConfig, ring: Ring | None, member: int, workers: int) -> None:
    """Read all epochs, as a training process does."""
    torch.set_num_threads(1)
    shared.take(Given(ring, member))
    dataset = cell.dataset
    loader = TrainLoader(
        build_source(dataset, "train"), dataset, cell.augment, cell.recipe, image_size=SIDE, seed=0, rank=0, world=1,
        workers=workers, micro_batch=BATCH, device=torch.device("cpu"),
    )  # fmt: skip
    for epoch in range(cell.recipe.epochs):
        for _ in loader.epoch(epoch):
            pass


def reading(cell: CellConfig, consumers: int, *, sharing: bool, workers: int = 0) -> float:
    """Processor seconds of so many trainings that only read, with one loader or each with its own."""
    before, ring, processes = _children(), None, []
    if sharing:
        length = epoch_samples(cell.dataset.train_images, cell.recipe)
        ring = Ring(crops_of_cell(cell), length, consumers, window_for(BATCH, length))
        processes.append(FORK.Process(target=shared.read_for_all, args=(ring, (), workers)))
    processes += [FORK.Process(target=_consume, args=(cell, ring, n, workers)) for n in range(consumers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a process failed"
    return _children() - before


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Of our figures, of the peer's, and of their ratios (ours to the peer's), of rounds in turns."""
    ours, peers = zip(*pairs, strict=True)
    return median(ours), median(peers), median(mine / theirs for mine, theirs in pairs)


def rows(images: int, rounds: int, epochs: int) -> Iterator[Row]:
    """The rows of the table of targets that need no GPU."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "data"
        make_tree(tree, train=images, val=BATCH, classes=CLASSES)
        files = resolve_class_list(dataclasses.replace(choice("dataset", "folder"), root=str(tree)), scratch)
        cell = _cell(files, epochs)
        for title, consumers, workers, target in (
            ("loader alone, 4 consumers: images per core-second", 4, 0, 3.5),
            ("loader of one cell (a worker): images per core-second", 1, 1, 0.97),
        ):
            read = consumers * epochs * (images // BATCH) * BATCH
            mine, theirs, ratio = _medians([
                (read / reading(cell, consumers, sharing=True, workers=workers),
                 read / reading(cell, consumers, sharing=False, workers=workers))
                for _ in range(rounds)
            ])  # fmt: skip
            yield Row(title, mine, theirs, "images", ratio, target)
        sides = [[epochs_of_study(tree, epochs, sharing=s) for s in (True, False)] for _ in range(rounds)]
        mine, theirs, ratio = _medians([(ours[0], peers[0]) for ours, peers in sides])
        yield Row("three cells, by the clock of their epochs", mine, theirs, "images/s", ratio, 1.8)
        mine, theirs, ratio = _medians([(ours[1], peers[1]) for ours, peers in sides])
        yield Row("three cells, epochs after the first", mine, theirs, "processor s", 1 / ratio, 1.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 512), ("rounds", 3), ("epochs", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"{about()}\n\n{HEADING}", flush=True)
    for row in rows(options.images, options.rounds, options.epochs):
        print(row, flush=True)


if __name__ == "__main__":
    main()
