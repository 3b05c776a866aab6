"""Does a model care which engine augments? RandAugment by Pillow and timm, and by vitlab, on Fashion-MNIST.

python -m benchmarks.parity_fashion_mnist [--seeds 3] [--epochs 10] [--per-class 1000] [--batch-size 32]
       [--model vit_tiny_28] [--image-size 28] [--device cuda] [--root FOLDER] [--at-once 1]

Everything else is equal: data, order, crops (Pillow's to the bit), flips' probability, model, initial weights,
schedule. The two engines draw different random numbers of the same distribution, so equality is to seed noise: the
table gives every seed's top-1 and a 95 % interval of the difference of the means (Welch).
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment as timm_aa
from torch import Tensor

from vitlab.config import AugmentConfig, CellConfig, Config, DatasetConfig, PretrainConfig, choice
from vitlab.core.random import Draws
from vitlab.data.augment import Augment
from vitlab.train import loop


class PillowAugment:
    """The reference: flip and timm's RandAugment on one Pillow image after another, with Python's random numbers."""

    def __init__(self, augment: AugmentConfig, dataset: DatasetConfig) -> None:
        self.normalise = Augment(augment, dataset).normalise
        self.hflip = dataset.hflip
        resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[augment.interpolation]
        fill = tuple(min(255, round(255 * m)) for m in dataset.mean)
        assert augment.auto_augment and augment.auto_augment.startswith("rand")
        self.transform = timm_aa.rand_augment_transform(
            augment.auto_augment, {"img_mean": fill, "interpolation": resample}
        )

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """uint8 (B, 3, S, S) → normalised float32; `draws` are not used."""
        return self.normalise(torch.stack([self.one(image) for image in images.cpu()]).to(images.device))

    def one(self, image: Tensor) -> Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        if random.random() < self.hflip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(self.transform(picture))).permute(2, 0, 1)


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's, with the black image that 0 bits gave before Pillow 13 made them an error."""
    return image.point([0] * 768) if bits == 0 else plain_posterize(image, bits)


plain_posterize = timm_aa.posterize
timm_aa.NAME_TO_OP["PosterizeIncreasing"] = posterize


ENGINES = {"Pillow and timm": PillowAugment, "vitlab": Augment}


def top1(cell: CellConfig, name: str, device: str) -> float:
    """Train `cell` with the engine of that name in the augmentation's place; the last epoch's top-1 in percent."""
    random.seed(cell.seed)
    np.random.seed(cell.seed)
    loop.Augment = ENGINES[name]
    config = Config(task="train", cell=cell, device=device, device_batch=cell.recipe.batch_size)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        steps = loop.fit(config, cell, Path(folder))
        try:
            while True:
                next(steps)
        except StopIteration as end:
            figure = end.value["last"]["top1"]
    print(f"seed {cell.seed}, {name}: {figure:.2f} in {time.process_time() - began:.0f} s of the processor", flush=True)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"seeds": 3, "epochs": 10, "per-class": 1000, "batch-size": 32, "image-size": 28, "at-once": 1}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--model", default="vit_tiny_28")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--root")
    options = parser.parse_args()
    recipe = dataclasses.replace(
        choice("recipe", "quick"), epochs=options.epochs, eval_every=options.epochs, batch_size=options.batch_size
    )
    dataset = dataclasses.replace(
        choice("dataset", "fashion_mnist"), train_per_class=options.per_class, root=options.root
    )
    model = dataclasses.replace(choice("model", options.model), image_size=options.image_size)
    randaug = choice("augment", "randaug")
    cells = [CellConfig(model, dataset, randaug, PretrainConfig(), recipe, seed) for seed in range(options.seeds)]
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, Pillow {PIL.__version__}, {options.device}; "
        f"{options.model} at {options.image_size} pixels, {options.per_class} images per class, "
        f"{options.epochs} epochs, batch {options.batch_size}, {randaug.auto_augment}",
        flush=True,
    )
    with ProcessPoolExecutor(options.at_once, mp_context=get_context("spawn")) as pool:
        waiting = [{name: pool.submit(top1, cell, name, options.device) for name in ENGINES} for cell in cells]
        found = {name: [futures[name].result() for futures in waiting] for name in ENGINES}
    print("\n| engine | top-1 of every seed | mean | sd |\n|---|---|---|---|")
    for name, values in found.items():
        every = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {every} | {np.mean(values):.2f} | {np.std(values, ddof=1):.2f} |")
    theirs, ours = found.values()
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    print(
        f"\ndifference {np.mean(ours) - np.mean(theirs):+.2f} points, 95 % [{interval.low:+.2f}, {interval.high:+.2f}]"
    )


if __name__ == "__main__":
    main()
