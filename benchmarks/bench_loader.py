"""The input pipeline compared with timm's: CPU seconds per image from a JPEG tree and from a pack, one core.

python -m benchmarks.bench_loader [--images 256] [--rounds 5] [--data FOLDER]

Both load in the measured process itself (no workers, one thread), so that a second of processor time is a core's.
Ours and theirs take turns in the same run; the best round of each counts, in processor time, which neighbours on the
machine disturb less than the clock. The peer is `timm.data.create_loader` with the condition's own options and JPEGs,
twice: whole, to normalised and erased floats; and only up to the uint8 crops that its GPU prefetcher would take over,
which is what its workers do on a machine with a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from timm.data import auto_augment as timm_aa
from timm.data import create_dataset, create_loader

from benchmarks.images import make_tree
from benchmarks.measure import Row, about, seconds_in_turns
from vitlab.cli.pack_task import PackConfig, write_pack
from vitlab.config import DatasetConfig, RecipeConfig, choice
from vitlab.core.random import Draws
from vitlab.data.augment import Augment
from vitlab.data.loader import TrainLoader
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.data.sources.files_pack import write_files
from vitlab.data.sources.folder import load_folder
from vitlab.data.sources.pack import SHARD
from vitlab.data.sources.registry import build_source, load_split

SIZE, BATCH, CLASSES = 224, 32, 4
CPU = torch.device("cpu")
CONDITIONS = ("none", "erase", "autoaug", "randaug", "jitter")


def our_epochs(dataset: DatasetConfig, condition: str, *, augmented: bool, workers: int = 0) -> Callable[[int], int]:
    """A function that reads one epoch of ours and returns its images; `augmented`: through the engine, on the CPU."""
    augment = choice("augment", condition)
    recipe = RecipeConfig(epochs=1, batch_size=BATCH, lr=1e-3)
    loader = TrainLoader(
        build_source(dataset, "train"), dataset, augment, recipe, image_size=SIZE, seed=0, rank=0, world=1,
        workers=workers, micro_batch=BATCH, device=CPU,
    )  # fmt: skip
    engine = Augment(augment, dataset)

    def read(epoch: int) -> int:
        count = 0
        for step in loader.epoch(epoch):
            for batch in step:
                if augmented:
                    engine(batch.images, Draws(0, epoch, batch.index, batch.repetition))
                count += len(batch.images)
        return count

    return read


def timms_epochs(root: Path, condition: str, *, augmented: bool, workers: int = 0) -> Callable[[int], int]:
    """The same through timm; `augmented`: to normalised float tensors, erasing included."""
    augment = choice("augment", condition)
    posterize = timm_aa.posterize  # timm 1.0.31 asks Pillow 13 for 0 bits, which is an error there
    timm_aa.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: posterize(image, max(1, bits))
    loader = create_loader(
        create_dataset("", root=str(root), split="train"), (3, SIZE, SIZE), BATCH, is_training=True,
        use_prefetcher=False, auto_augment=augment.auto_augment, color_jitter=augment.color_jitter or None,
        re_prob=augment.erase, re_mode="pixel", interpolation="bicubic", num_workers=workers, pin_memory=False,
        persistent_workers=False,
    )  # fmt: skip
    if not augmented:
        loader.dataset.transform.transforms = _to_uint8(loader.dataset.transform.transforms)

    def read(epoch: int) -> int:
        return sum(len(images) for images, _ in loader)

    return read


def _to_uint8(transforms: list[Callable]) -> list[Callable]:
    """timm's chain as its prefetcher wants it: Pillow's operations, then a uint8 array."""
    from timm.data.transforms import MaybePILToTensor, MaybeToTensor

    pillow = [t for t in transforms if type(t).__module__ != "timm.data.random_erasing"]
    kept = [t for t in pillow if not isinstance(t, MaybeToTensor) and type(t).__name__ != "Normalize"]
    return [*kept, MaybePILToTensor()]


def _epoch_after_epoch(read: Callable[[int], int]) -> Callable[[], int]:
    """A function that reads another epoch, with other crops, each time."""
    numbers = count(1)
    return lambda: read(next(numbers))


WORK = (
    *(("JPEG → uint8 crops", *pair) for pair in zip(CONDITIONS, (2.2, 2.2, 3, 3, 3), strict=True)),
    ("JPEG → float, engine on the CPU", "randaug", 1.5),
    ("pack → uint8 crops", "none", 5),
    ("pack → uint8 crops", "randaug", 7),
)
"""What is done, under which condition, and how many times timm's rate it should have."""


def measured(images: int, rounds: int, data: Path | None = None) -> Iterator[tuple[Row, float]]:
    """A row of each work against timm's floats, and timm's rate to uint8; rates are images per core-second."""
    with tempfile.TemporaryDirectory() as scratch:
        root = data or Path(scratch) / "data"
        if not data:
            make_tree(root, train=images, val=BATCH, classes=CLASSES)
        files = dataclasses.replace(choice("dataset", "folder"), root=str(root))
        files = resolve_class_list(files, scratch)
        pack = Path(scratch) / "pack"
        splits = {split: load_split(files, split) for split in ("train", "eval")}
        write_pack(splits, files, pack, PackConfig(str(pack)), workers=0)
        packed = dataclasses.replace(files, pack=str(pack))
        for what, condition, target in WORK:
            augmented = "engine" in what
            reads = {"ours": our_epochs(packed if "pack" in what else files, condition, augmented=augmented)}
            reads |= {kind: timms_epochs(root, condition, augmented=kind == "floats") for kind in ("uint8", "floats")}
            images_of_epoch = reads["ours"](0)
            spent = seconds_in_turns({side: _epoch_after_epoch(read) for side, read in reads.items()}, rounds)
            ours, to_bytes, to_floats = (images_of_epoch / spent[side] for side in ("ours", "uint8", "floats"))
            ratio = ours / to_floats
            yield Row(f"{what}, {condition}", ours, to_floats, "images/core-s", ratio, target), to_bytes


def reading_costs(images: int, rounds: int) -> Iterator[tuple[str, float]]:
    """Container → microseconds of processor time for the bytes of one image, in random order, the page cache warm."""
    with tempfile.TemporaryDirectory() as scratch:
        root, tars, pack = (Path(scratch) / name for name in ("data", "tars", "files"))
        make_tree(root, train=images, val=BATCH, classes=CLASSES)
        tars.mkdir()
        for split in ("train", "val"):
            with tarfile.open(tars / f"{split}.tar", "w") as archive:
                archive.add(root / split, ".")
        folder = dataclasses.replace(choice("dataset", "folder"), root=str(root))
        both = {split: load_folder(folder, of) for split, of in (("train", "train"), ("val", "eval"))}
        write_files(both, folder, pack, workers=0)
        order = np.random.default_rng(0).permutation(len(both["train"]))
        places = {"folder": root, "tars by offset": tars, "pack of files": pack}
        sources = {n: load_folder(dataclasses.replace(folder, root=str(p)), "train") for n, p in places.items()}
        best = dict.fromkeys(places, float("inf"))
        for _ in range(rounds):
            for name, source in sources.items():
                begin = time.process_time()
                for i in order:
                    source.content.read(int(i))
                best[name] = min(best[name], (time.process_time() - begin) / len(order) * 1e6)
        yield from best.items()


def rows(images: int, rounds: int) -> Iterator[Row]:
    """The rows of the table of targets."""
    return (row for row, _ in measured(images, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="an existing tree with train/ and val/ in place of a synthetic one")
    parser.add_argument("--containers", action="store_true", help="only what reading from each container costs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.containers:
        print(f"{about()}; {options.images} images")
        print("| container | processor time per image read, µs |\n| --- | ---: |")
        for name, cost in reading_costs(options.images, options.rounds):
            print(f"| {name} | {cost:.1f} |")
        return
    print(f"{about()}; {options.images} images, batch {BATCH}, shards of {SHARD}")
    print("| what | vitlab, images/s | timm to uint8 | timm to floats | ratio to uint8 | ratio to floats | target |")
    print("| --- |" + " ---: |" * 6)
    for row, to_bytes in measured(options.images, options.rounds, options.data):
        before = "–" if "engine" in row.what else f"{row.ours / to_bytes:.2f}"
        print(
            f"| {row.what} | {row.ours:,.0f} | {to_bytes:,.0f} | {row.peer:,.0f} | {before} | **{row.ratio:.2f}** | "
            f"{row.target:g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
