"""A tree of JPEGs like ImageNet's in size and weight (500 x 375, about 82 KB), made of noise at all scales.

python benchmarks/images.py FOLDER [--train 20000] [--val 2000] [--classes 100]
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

SIZE = (375, 500)
QUALITY = 95


def picture(seed: int) -> np.ndarray:
    """A photograph-like image (375, 500, 3) uint8: colour noise whose amplitude grows with its scale, as nature's."""
    rng = np.random.default_rng(seed)
    image = np.full((*SIZE, 3), rng.uniform(60, 190, 3), dtype=np.float32)
    for octave in range(1, 9):
        small = rng.normal(0, 1, (max(2, SIZE[0] >> (8 - octave)), max(2, SIZE[1] >> (8 - octave)), 3)).astype(
            np.float32
        )
        image += cv2.resize(small, SIZE[::-1], interpolation=cv2.INTER_CUBIC) * (46 / octave**1.1)
    return np.clip(image, 0, 255).astype(np.uint8)


def write(job: tuple[Path, int]) -> int:
    """Write one image; returns its size in bytes."""
    file, seed = job
    done, content = cv2.imencode(".jpg", picture(seed), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done, file
    file.write_bytes(content.tobytes())
    return len(content)


def make_tree(root: Path, *, train: int, val: int, classes: int, distinct: int | None = None) -> float:
    """Write the tree unless it is there; returns the mean size of an image in bytes.

    Of the images to train on, those from the number `distinct` on are further names of the ones before.
    """
    jobs, further = [], []
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            (root / split / f"c{label:03}").mkdir(parents=True, exist_ok=True)
        names = [root / split / f"c{i % classes:03}" / f"{i:06}.jpg" for i in range(count)]
        for i, name in enumerate(names):
            if name.exists():
                continue
            if split == "train" and distinct is not None and i >= distinct:
                further.append((names[i % distinct], name))
            else:
                jobs.append((name, i + (split == "val") * 10**6))
    with ProcessPoolExecutor() as pool:
        sizes = list(pool.map(write, jobs, chunksize=64))
    for again, name in further:
        name.hardlink_to(again)
    return float(np.mean(sizes)) if sizes else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("train", 20_000), ("val", 2_000), ("classes", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    size = make_tree(options.folder, train=options.train, val=options.val, classes=options.classes)
    print(f"{options.folder}: {options.train} + {options.val} images of {size / 1000:.0f} KB")
