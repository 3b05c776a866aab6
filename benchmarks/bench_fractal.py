"""FractalDB against its definition and, where its folder is given, the published renderer; all on one core, in one run.

python -m benchmarks.bench_fractal [--reference FOLDER/fractal_renderer] [--categories 4] [--all]

Figures are seconds of processor time, so that a busy machine does not change what they mean; `--all`, which uses
several threads, gives the clock's too.

`--reference` is a checkout of github.com/hirokatsukataoka16/FractalDB-Pretrained-ResNet-PyTorch, whose own class is run
unchanged but for its saving of files. Its pictures must equal ours when both use its masks, else the benchmark fails.
`--all` also makes the whole FractalDB-1k again, in a temporary folder of 1.7 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import fractal_by_definition as definition
from benchmarks.measure import Row
from vitlab.config import FractalConfig
from vitlab.core.random import Draws
from vitlab.data.crop import random_resized_boxes
from vitlab.data.formula import cache as geometry_cache
from vitlab.data.formula import geometry, render
from vitlab.data.formula.search import Search
from vitlab.data.formula.source import FractalSource

PUBLISHED_DIGEST = "2d65f2678a859836c9a3d7f2c49fa3ece55f642dfb6d704e46451c8d0b70bf9a"
"""SHA-256 of the published 1,000 categories, as tests/unit/test_formula.py has it."""
SIZE, POINTS = 362, 200_000
COUNTS = render.PUBLISHED_COUNTS
DISTINCT = geometry.NUM_VARIANTS * COUNTS
"""Pictures of a category that are no flips of one another."""


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """The least processor time of `repeats` runs, all threads together."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def row(name: str, figure: float | np.floating, unit: str, ratio: float | None = None) -> None:
    print(f"| {name} | {figure:,.4g} {unit} | {'' if ratio is None else f'{ratio:,.0f}×'} |", flush=True)


def our_category(number: int, category: np.ndarray) -> int:
    """All 1,000 pictures of a category in memory, geometry included: 250 renderings, flips as views."""
    packed = render.pack(geometry.build_geometry(category))
    made = 0
    for variant in range(geometry.NUM_VARIANTS):
        keys = render.mask_keys(0, np.array([[number, variant, count] for count in range(COUNTS)]))
        for key in keys:
            picture = render.render(packed[variant], int(key))
            made += len((picture, picture[::-1], picture[:, ::-1], picture[::-1, ::-1]))
    return made


def stamped(category: np.ndarray, variant: int, masks: np.ndarray) -> np.ndarray:
    """Our picture of a variant with another renderer's masks, one per point."""
    one = geometry.WEIGHTS[[variant]]
    when = geometry.last_visits(category, weights=one)[0, 3:, 3:]
    return definition.stamp(geometry.build_geometry(category, weights=one)[0], np.append(0, masks)[when])


def by_definition(category: np.ndarray, variant: int) -> float:
    """Seconds for one picture that follows the definition, checked against ours."""
    masks = np.random.default_rng(variant).integers(1, 512, POINTS)
    pictures: list[np.ndarray] = []
    weights, numbers = geometry.WEIGHTS[variant].tolist(), masks.tolist()
    spent = seconds(lambda: pictures.append(definition.draw(category, weights, numbers, SIZE)))
    assert (pictures[0] == stamped(category, variant, masks)).all(), "our picture differs from its definition"
    return spent


def by_reference(folder: Path, category: np.ndarray, variant: int) -> float:
    """Seconds for one picture of the published renderer, from its parameters to the image, checked against ours."""
    spec = importlib.util.spec_from_file_location("ifs_function", folder / "ifs_function.py")
    assert spec and spec.loader, f"no ifs_function.py in {folder}"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pictures: list[np.ndarray] = []

    def keep(image: Image.Image, _name: str) -> None:
        pictures.append(np.asarray(image))

    def work() -> None:
        random.seed(variant)
        renderer = module.ifs_function(0.0, 0.0, "", "", "")
        for maps in category:
            scales = {f"weight_{name}": w for name, w in zip("abcdef", geometry.WEIGHTS[variant].tolist(), strict=True)}
            renderer.set_param(*maps.tolist(), **scales)
        renderer.calculate(POINTS)
        renderer.draw_patch(SIZE, SIZE, 6, 6, "gray", 0)

    with mock.patch.object(Image.Image, "save", keep), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spent = seconds(work)
    random.seed(variant)
    masks = np.array([random.randrange(1, 512) for _ in range(POINTS)])
    ours = stamped(category, variant, masks)
    for theirs, flipped in zip(pictures, (ours, ours[::-1], ours[:, ::-1], ours[::-1, ::-1]), strict=True):
        assert (theirs == flipped[..., None]).all(), f"our picture of variant {variant} differs from the reference's"
    return spent


def loading(source: FractalSource, images: int = 2000) -> float:
    """Images per second of render, random crop and resize to (3, 224, 224) uint8, as a worker of the loader does."""
    index = np.random.default_rng(0).integers(0, len(source), images)
    sizes = np.full((images, 2), source.image_size)
    boxes = random_resized_boxes(sizes, (0.08, 1.0), (3 / 4, 4 / 3), Draws(0, 0, index))

    def work() -> None:
        for i, box in zip(index, boxes, strict=True):
            grey = torch.from_numpy(source.crop(int(i), box))[None, None]
            F.interpolate(grey, (224, 224), mode="bicubic", antialias=True).expand(1, 3, -1, -1).contiguous()

    return images / seconds(work, repeats=3)


def make_everything(threads: int) -> None:
    """All of FractalDB-1k again: its search, whose digest is the published one's or this fails, and its geometry."""
    with tempfile.TemporaryDirectory() as folder:
        spec, place = FractalConfig(), Path(folder)
        (place / "fractal").mkdir()
        found: list[np.ndarray] = []
        whole_row("search of all 1,000 categories", threads, lambda: found.extend(
            geometry_cache.find_categories(spec, place / "fractal", threads)
        ))  # fmt: skip
        digest = hashlib.sha256(np.concatenate(found).astype("<f8").tobytes()).hexdigest()
        assert digest == PUBLISHED_DIGEST, f"these categories are not the published ones: {digest}"
        print(f"digest of the 1,000 categories: {digest}", file=sys.stderr)
        cache = geometry_cache.GeometryCache(spec, place)
        whole_row("geometry of all 1,000 categories", threads, lambda: cache.prepare(threads))


def whole_row(name: str, threads: int, work: Callable[[], object]) -> None:
    start = time.perf_counter()
    spent = seconds(work)
    clock = time.perf_counter() - start
    row(f"{name}: {threads} threads, {clock:.1f} s by the clock; processor time over {threads}", spent / threads, "s")


def against_the_reference(folder: Path, categories: int) -> Row:
    """A picture of a category, geometry included, against the published renderer's: the row of the table of targets."""
    found = definition.search_categories(categories)
    our_category(0, found[0])  # compiles
    theirs = float(np.mean([by_reference(folder, c, (2, 7, 20, 11)[n % 4]) for n, c in enumerate(found)]))
    ours = float(np.mean([seconds(lambda n=n, c=c: our_category(n, c), repeats=3) for n, c in enumerate(found)]))
    ours /= DISTINCT
    return Row("fractal loader, a picture", 1e3 * ours, 1e3 * theirs, "ms", theirs / ours, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--categories", type=int, default=4)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    categories = definition.search_categories(options.categories)
    our_category(0, categories[0])  # compiles
    print("| what | measured | ratio |\n| --- | --- | --- |")
    variants = [2, 7, 20, 11]
    reference = options.reference
    slow = [by_definition(c, variants[n % 4]) for n, c in enumerate(categories)]
    theirs = [by_reference(reference, c, variants[n % 4]) for n, c in enumerate(categories)] if reference else []
    ours = [seconds(lambda n=n, c=c: our_category(n, c), repeats=3) for n, c in enumerate(categories)]
    times = [seconds(lambda c=c: geometry.build_geometry(c), repeats=3) for c in categories]
    per_picture = float(np.mean(ours)) / DISTINCT
    row("whole category, ours: a picture, its share of the geometry included", per_picture * 1e3, "ms")
    row("the definition, plain Python: a picture", np.mean(slow) * 1e3, "ms", float(np.mean(slow)) / per_picture)
    if theirs:
        row("the published renderer: a picture", np.mean(theirs) * 1e3, "ms", float(np.mean(theirs)) / per_picture)
    row("geometry of a category (25 variants)", np.mean(times) * 1e3, "ms")
    with tempfile.TemporaryDirectory() as folder:
        source = FractalSource(FractalConfig(categories=options.categories), Path(folder))
        row("render, random crop, resize to 224", loading(source), "images/s per core")
    few = Search(1, 0.2)
    spent = seconds(lambda: few.extend(3))
    slow_search = seconds(lambda: definition.search(3))
    row("search, per candidate", spent / few.candidates * 1e3, "ms")
    row("the definition's search, per candidate", slow_search / few.candidates * 1e3, "ms", slow_search / spent)
    if options.all:
        make_everything(options.threads)


if __name__ == "__main__":
    main()
