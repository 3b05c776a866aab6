"""The input pipeline beside timm's: CPU seconds per image from a JPEG tree and from a pack, one core.

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
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL
import timm
import torch
from timm.data import auto_augment as timm_aa
from timm.data import create_dataset, create_loader

from benchmarks.images import make_tree
from vitlab.config import DatasetConfig, RecipeConfig, choice
from vitlab.data.augment import Augment
from vitlab.data.class_list import resolve_class_list
from vitlab.data.loader import TrainLoader
from vitlab.data.pack import SHARD
from vitlab.data.pack_task import PackConfig, write_pack
from vitlab.data.sources import build_source, load_split
from vitlab.draws import Draws

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


def side_by_side(sides: list[Callable[[int], int]], rounds: int) -> list[float]:
    """Images per second of processor time of each, the best of `rounds` in turns, after one that does not count."""
    best = [0.0] * len(sides)
    for number in range(rounds + 1):
        for side, read in enumerate(sides):
            began = time.process_time()
            count = read(number)
            if number:
                best[side] = max(best[side], count / (time.process_time() - began))
    return best


def rows(root: Path, files: DatasetConfig, packed: DatasetConfig, rounds: int) -> Iterator[str]:
    """The table, a line at a time."""
    targets = {"none": 2.2, "erase": 2.2, "autoaug": 3, "randaug": 3, "jitter": 3}
    work = [("JPEG → uint8 crops", files, condition, False, target) for condition, target in targets.items()]
    work.append(("JPEG → float, engine on the CPU", files, "randaug", True, 1.5))
    work += [
        ("pack → uint8 crops", packed, condition, False, target) for condition, target in (("none", 5), ("randaug", 7))
    ]
    for what, dataset, condition, augmented, target in work:
        sides = [our_epochs(dataset, condition, augmented=augmented)]
        sides += [timms_epochs(root, condition, augmented=floats) for floats in (False, True)]
        ours, to_bytes, to_floats = side_by_side(sides, rounds)
        ratios = f"{'–' if augmented else f'{ours / to_bytes:.2f}'} | **{ours / to_floats:.2f}** | {target:g}"
        yield f"| {what}, {condition} | {ours:,.0f} | {to_bytes:,.0f} | {to_floats:,.0f} | {ratios} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="an existing tree with train/ and val/ in place of a synthetic one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = options.data or Path(scratch) / "data"
        if not options.data:
            make_tree(root, train=options.images, val=BATCH, classes=CLASSES)
        files = dataclasses.replace(choice("dataset", "folder"), root=str(root))
        files = resolve_class_list(files, scratch)
        pack = Path(scratch) / "pack"
        splits = {split: load_split(files, split) for split in ("train", "eval")}
        write_pack(splits, files, pack, PackConfig(str(pack)), workers=0)
        packed = dataclasses.replace(files, pack=str(pack))
        print(
            f"torch {torch.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}, Python "
            f"{platform.python_version()}; {files.num_train} images, batch {BATCH}, shards of {SHARD}"
        )
        print(
            "| what | vitlab, images/s | timm to uint8 | timm to floats | ratio to uint8 | ratio to floats | target |"
        )
        print("| --- |" + " ---: |" * 6)
        for row in rows(root, files, packed, options.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
