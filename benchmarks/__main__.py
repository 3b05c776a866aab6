"""The table of targets, in one command: every comparison that this machine allows, the others named as not measured.

python -m benchmarks [--timm PATH/train.py] [--peer-path FOLDER] [--reference FOLDER/fractal_renderer] [--quick]

`--timm` is timm's train.py (from its repository; it is not in the wheel), `--peer-path` a folder with a Pillow before
13, which it needs, `--reference` the published FractalDB renderer. `--quick` takes less of everything.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import bench_fashion_mnist, bench_fractal, bench_gpu, bench_loader
from benchmarks.measure import HEADING, Row, about


def rows(options: argparse.Namespace) -> Iterator[Row | str]:
    """A row of each target, or the words that say why there is none."""
    images, rounds = (64, 1) if options.quick else (256, 5)
    torch.set_num_threads(1)
    yield from bench_loader.rows(images, rounds)
    if options.timm:
        size = (4_000, 1, 1) if options.quick else (12_000, 2, 2)
        yield from bench_fashion_mnist.rows(options.timm.resolve(), options.peer_path, *size, os.cpu_count() or 1)
    else:
        yield "Fashion-MNIST, one cell and three: not measured (no --timm)"
    if torch.cuda.is_available():
        yield from bench_gpu.rows(bench_gpu.Size(timm=options.timm))
    else:
        yield "GPU, end to end from JPEG and from a pack, and the step alone: not measured (no GPU)"
    if options.reference:
        yield bench_fractal.against_the_reference(options.reference, categories=2 if options.quick else 4)
    else:
        yield "FractalDB against its published renderer: not measured (no --reference)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--peer-path", default="")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print(f"{about()}\n\n{HEADING}", flush=True)
    left_out = []
    for row in rows(options):
        if isinstance(row, Row):
            print(row, flush=True)
        else:
            left_out.append(row)
    print("\n" + "\n".join(left_out))


if __name__ == "__main__":
    main()
