"""One small data set in every form that `dataset.root` takes, each made with the tools that make it outside."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("n01440764", "n02102040", "n03417042")


def draw_tree(root: Path, per_class: int = 5, size: int = 12, classes=CLASSES) -> Path:
    """train/ and val/ of noise with a tint for each class, in the formats of cameras and screens."""
    generator = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", 2)):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (size, size + i, 3), np.uint8)
                pixels[..., c % 3] += 100
                ending = ".JPEG" if i % 3 else ".png"
                file = (
                    f"{name}_{10 * i + c}{ending}" if split == "train" else f"ILSVRC2012_val_{len(classes) * i + c:08}"
                )
                file = file if split == "train" else file + ending
                Image.fromarray(pixels).save(root / split / name / file, quality=95)
    return root


def samples(tree: Path, split: str) -> list[tuple[str, int, bytes]]:
    """(CLASS/NAME, label, bytes) of the images of a split, in no special order."""
    files = sorted((tree / split).glob("*/*"), key=lambda file: file.name[::-1])
    classes = sorted(folder.name for folder in (tree / "train").iterdir())
    return [(f"{f.parent.name}/{f.name}", classes.index(f.parent.name), f.read_bytes()) for f in files]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def webdataset(tree: Path, target: Path, *, shards: int = 2, keys: str = "folder") -> Path:
    """Shards as webdataset's ShardWriter leaves them. `keys`: CLASS/STEM with .cls (folder), or timm's: STEM with .cls
    and a .json that has the file's name, and _info.json beside the shards."""
    target.mkdir()
    info = {"splits": {}}
    for split, name in (("train", "train"), ("val", "validation")):
        found = samples(tree, split)
        parts = [found[i::shards] for i in range(shards)]
        files = [f"birds-{name}-{i:04}.tar" for i in range(shards)]
        info["splits"][name] = {"name": name, "filenames": files, "shard_lengths": [len(part) for part in parts]}
        for file, part in zip(files, parts, strict=True):
            with tarfile.open(target / file, "w") as archive:
                for path, label, content in part:
                    stem, _, ending = (path if keys == "folder" else path.rpartition("/")[2]).rpartition(".")
                    add(archive, f"{stem}.cls", str(label).encode())
                    add(archive, f"{stem}.{ending if keys == 'folder' else 'jpg'}", content)
                    if keys != "folder":
                        about = {"filename": path.rpartition("/")[2], "label": label, "width": 12}
                        add(archive, f"{stem}.json", json.dumps(about).encode())
    if keys != "folder":
        (target / "_info.json").write_text(json.dumps(info), encoding="utf-8")
    return target


def one_tar(tree: Path, target: Path) -> Path:
    """The whole tree in one tar, as `tar cf birds.tar birds` makes it."""
    with tarfile.open(target, "w") as archive:
        archive.add(tree, tree.name)
    return target


def tar_of_each_split(tree: Path, target: Path) -> Path:
    target.mkdir()
    for split in ("train", "val"):
        with tarfile.open(target / f"{split}.tar", "w") as archive:
            archive.add(tree / split, ".")
    return target
