"""Which decoder, which format for a pack, and what a pack changes: processor time per image on one core.

python -m benchmarks.bench_decode [--images 64] [--rounds 3]

Every library that is installed decodes the same JPEGs (500 x 375) to RGB; next to its time is its largest deviation
from Pillow. pyvips is measured where it is installed. Sides take turns, the best round of each counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.images import make_tree
from benchmarks.measure import about, seconds_in_turns
from vitlab.cli.pack_task import shrink
from vitlab.core.random import Draws
from vitlab.data.crop import random_resized_boxes, resize_crops

SIZE = 224
Decoder = Callable[[bytes], np.ndarray]


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def by_torchvision(content: bytes) -> np.ndarray:
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_jpeg(data, ImageReadMode.RGB).permute(1, 2, 0).numpy()


def by_opencv(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def by_vips(content: bytes) -> np.ndarray:
    import pyvips  # pyright: ignore[reportMissingImports]

    return np.asarray(pyvips.Image.new_from_buffer(content, "", access="sequential"))


DECODERS: dict[str, Decoder] = {
    "simplejpeg, exact": lambda c: simplejpeg.decode_jpeg(c, "RGB", fastdct=False, fastupsample=False),
    "simplejpeg, fast DCT and upsampling": lambda c: simplejpeg.decode_jpeg(c, "RGB", fastdct=True, fastupsample=True),
    "Pillow": by_pillow,
    "torchvision": by_torchvision,
    "OpenCV": by_opencv,
}
if importlib.util.find_spec("pyvips"):
    DECODERS["pyvips"] = by_vips


def table(title: str, *columns: str) -> None:
    print(f"\n## {title}\n\n| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}", flush=True)


def decoders(contents: list[bytes], rounds: int) -> None:
    table("JPEG → RGB", "library", "images/s", "largest deviation from Pillow, levels")
    truth = [by_pillow(c).astype(int) for c in contents]
    spent = seconds_in_turns({n: lambda d=d: [d(c) for c in contents] for n, d in DECODERS.items()}, rounds)
    for name, seconds in spent.items():
        off = max(int(np.abs(DECODERS[name](c) - t).max()) for c, t in zip(contents, truth, strict=True))
        print(f"| {name} | {len(contents) / seconds:,.0f} | {off} |", flush=True)


def resizers(images: list[np.ndarray], boxes: np.ndarray, rounds: int) -> None:
    table("Random crop → 224 pixels", "way", "images/s", "mean deviation from Pillow, levels")

    def crop(i: int) -> np.ndarray:
        top, left, height, width = boxes[i]
        return images[i][top : top + height, left : left + width]

    def opencv(i: int, interpolation: int) -> np.ndarray:
        return cv2.resize(crop(i), (SIZE, SIZE), interpolation=interpolation)

    def pillow(i: int) -> np.ndarray:
        return np.asarray(Image.fromarray(crop(i)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    def uncopied(i: int) -> np.ndarray:
        pixels = torch.from_numpy(crop(i)).permute(2, 0, 1)[None]
        return _array(torch.nn.functional.interpolate(pixels, (SIZE, SIZE), mode="bicubic", antialias=True)[0])

    ways: dict[str, Callable[[int], np.ndarray]] = {
        "torch, antialiased bicubic, crop copied first (ours)": lambda i: _array(
            resize_crops([images[i]], boxes[i : i + 1], SIZE, "bicubic")[0]
        ),
        "the same, crop not copied": uncopied,
        "Pillow, antialiased bicubic": pillow,
        "OpenCV, bicubic, not antialiased": lambda i: opencv(i, cv2.INTER_CUBIC),
        "OpenCV, area": lambda i: opencv(i, cv2.INTER_AREA),
    }
    spent = seconds_in_turns({n: lambda w=w: [w(i) for i in range(len(images))] for n, w in ways.items()}, rounds)
    truth = [pillow(i).astype(int) for i in range(len(images))]
    for name, seconds in spent.items():
        off = np.mean([np.abs(ways[name](i) - truth[i]).mean() for i in range(len(images))])
        print(f"| {name} | {len(images) / seconds:,.0f} | {off:.2f} |", flush=True)


def _array(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


def pack_formats(images: list[np.ndarray], folder: Path, rounds: int) -> None:
    """A crop of 224 pixels from images of 256 in each format; raw ones come from a memory map."""
    table("Packed image of 256 pixels → crop of 224", "format", "images/s", "KB per image")
    small = [shrink(image, 256) for image in images]
    sizes = np.array([s.shape[:2] for s in small])
    boxes = random_resized_boxes(sizes, (0.08, 1.0), (3 / 4, 4 / 3), Draws(0, 1, np.arange(len(small))))
    raw = folder / "raw.bin"
    raw.write_bytes(b"".join(s.tobytes() for s in small))
    starts = np.concatenate([[0], np.cumsum(sizes.prod(1) * 3)])
    mapped = np.memmap(raw, np.uint8, mode="r")
    encoded: dict[str, list[bytes]] = {}
    kinds: dict[str, tuple[str, dict[str, int | bool]]] = {
        "JPEG, quality 95": ("JPEG", {"quality": 95}),
        "PNG, level 1": ("PNG", {"compress_level": 1}),
        "WebP, lossless": ("WebP", {"lossless": True, "method": 0}),
    }
    for name, (kind, options) in kinds.items():
        encoded[name] = []
        for image in small:
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, kind, **options)
            encoded[name].append(stream.getvalue())
    readers: dict[str, Callable[[int], np.ndarray]] = {
        "raw (ours)": lambda i: mapped[starts[i] : starts[i + 1]].reshape(*sizes[i], 3)
    }
    for name, contents in encoded.items():
        decode = DECODERS["simplejpeg, exact"] if "JPEG" in name else by_pillow
        readers[name] = lambda i, contents=contents, decode=decode: decode(contents[i])
    sides = {
        name: lambda read=read: [resize_crops([read(i)], boxes[i : i + 1], SIZE, "bicubic") for i in range(len(small))]
        for name, read in readers.items()
    }
    spent = seconds_in_turns(sides, rounds)
    bytes_of = {"raw (ours)": float(starts[-1])} | {n: float(sum(map(len, c))) for n, c in encoded.items()}
    for name, seconds in spent.items():
        print(f"| {name} | {len(small) / seconds:,.0f} | {bytes_of[name] / len(small) / 1000:,.0f} |", flush=True)


def what_a_pack_changes(crops: int = 300) -> None:
    """The same crops from two photographs at ImageNet's usual size and from their packed copies."""
    from sklearn.datasets import load_sample_images

    photographs = [
        np.asarray(Image.fromarray(image).resize((500, 375), Image.Resampling.LANCZOS))
        for image in load_sample_images().images
    ]
    table("Crops from a pack instead of the file (two photographs, 500 x 375)", "shorter side", "enlarged crops, %",
          "mean deviation, levels", "PSNR, dB", "gradient energy kept, %")  # fmt: skip
    whole = np.array([photographs[0].shape[:2]] * crops)
    draws = Draws(0, 0, np.arange(crops))
    boxes = random_resized_boxes(whole, (0.08, 1.0), (3 / 4, 4 / 3), draws)
    for side in (375, 320, 256, 224):
        difference, squared, kept, enlarged = [], [], [], []
        for n, box in enumerate(boxes):
            image = photographs[n % 2]
            packed = shrink(image, side)
            scale = packed.shape[0] / image.shape[0]
            enlarged.append(min(box[2:]) * scale < SIZE)
            smaller = np.rint(box * scale).astype(np.int64)
            a, b = (
                resize_crops([i], x[None], SIZE, "bicubic")[0].numpy().astype(np.float64)
                for i, x in ((image, box), (packed, smaller))
            )
            difference.append(np.abs(a - b).mean())
            squared.append(((a - b) ** 2).mean())
            kept.append((np.diff(b, axis=-1) ** 2).mean() / (np.diff(a, axis=-1) ** 2).mean())
        noise = f"{10 * np.log10(255**2 / np.mean(squared)):.1f}" if np.mean(squared) else "–"
        print(
            f"| {side} | {100 * np.mean(enlarged):.0f} | {np.mean(difference):.2f} | {noise} | "
            f"{100 * np.mean(kept):.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(f"{about()}, OpenCV {cv2.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_tree(folder / "tree", train=options.images, val=0, classes=1)
        contents = [file.read_bytes() for file in sorted((folder / "tree").rglob("*.jpg"))]
        images = [by_pillow(c).copy() for c in contents]  # writable, as torch wants them
        sizes = np.array([i.shape[:2] for i in images])
        boxes = random_resized_boxes(sizes, (0.08, 1.0), (3 / 4, 4 / 3), Draws(0, 0, np.arange(len(images))))
        decoders(contents, options.rounds)
        resizers(images, boxes, options.rounds)
        pack_formats(images, folder, options.rounds)
    what_a_pack_changes()


if __name__ == "__main__":
    main()
