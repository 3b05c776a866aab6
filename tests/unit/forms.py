"""One small data set in every form that `dataset.root` takes, each made with the tools that make it outside."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from vitlab.config import DatasetConfig, choice
from vitlab.data.sources.catalogue import resolve_class_list

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


def draw_photographs(root: Path, counts: dict[str, int], sides: tuple[int, int], classes=("a", "b")) -> Path:
    """`counts[split]` JPEG images of noise a class, each as wide and as high as `sides` allow."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                size = (*(int(generator.integers(*sides)) for _ in "hw"), 3)
                pixels = generator.integers(0, 256, size, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.jpg", quality=90)
    return root


def dataset_of(tree: Path, **changes) -> DatasetConfig:
    """`dataset=folder` of this tree with the changes, its classes listed."""
    dataset = dataclasses.replace(choice("dataset", "folder"), root=str(tree), **changes)
    return resolve_class_list(dataset, str(tree.parent / "runs"))


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
    and a .json that has the file's name, and _info.json next to the shards."""
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


def devkit(tree: Path, target: Path) -> None:
    """The ground truth and the synsets of the validation images, in ids of another order than the synsets', with an
    inner node of WordNet among them."""
    classes = sorted(folder.name for folder in (tree / "train").iterdir())
    ids = {name: len(classes) - i for i, name in enumerate(classes)}
    kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(i, name, "words", "gloss", 0) for name, i in ids.items()] + [(len(ids) + 1, "n00001740", "entity", "", 2)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    files = sorted((tree / "val").glob("*/*"), key=lambda file: file.name)
    truth = "".join(f"{ids[file.parent.name]}\n" for file in files).encode()
    with tarfile.open(target, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/readme.txt", b"x")
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


def numbered(tree: Path) -> Path:
    """The validation images under numbers from 1 on, as ImageNet's are."""
    for i, file in enumerate(sorted((tree / "val").glob("*/*"), key=lambda file: file.name), 1):
        file.rename(file.with_name(f"ILSVRC2012_val_{i:08}{file.suffix}"))
    return tree


def image_net_org(tree: Path, target: Path) -> Path:
    """A tar of a tar for each class, a flat tar, and the devkit."""
    target.mkdir()
    with tarfile.open(target / "ILSVRC2012_img_train.tar", "w") as outer:
        for folder in sorted((tree / "train").iterdir(), reverse=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for file in sorted(folder.iterdir(), reverse=True):
                    add(archive, file.name, file.read_bytes())
            add(outer, f"{folder.name}.tar", inner.getvalue())
    with tarfile.open(target / "ILSVRC2012_img_val.tar", "w") as archive:
        for file in sorted((tree / "val").glob("*/*"), key=lambda file: file.name):
            add(archive, file.name, file.read_bytes())
    devkit(tree, target / "ILSVRC2012_devkit_t12.tar.gz")
    return target


def kaggle(tree: Path, target: Path) -> Path:
    base = target / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(tree / "train", base / "train")
    (base / "val").mkdir()
    (base / "test").mkdir()
    rows = ["ImageId,PredictionString"]
    for file in (tree / "val").glob("*/*"):
        shutil.copy(file, base / "val" / file.name)
        rows.append(f"{file.stem},{file.parent.name} 85 1 499 272 {file.parent.name} 131 0 499 254 ")
    (target / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (target / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n", encoding="utf-8")
    return target


def parquet(tree: Path, target: Path, *, groups: int = 4, compression: str = "snappy", **changes) -> Path:
    """Two files of each split as the hub's are: an image struct, a label, ClassLabel's names in the schema. `changes`
    are columns of the table, or `names=None` for no names."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    (target / "data").mkdir(parents=True)
    classes = sorted(folder.name for folder in (tree / "train").iterdir())
    features = {"image": {"_type": "Image"}, "label": {"names": changes.pop("names", classes), "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for split, name in (("train", "train"), ("val", "validation")):
        found = samples(tree, split)
        for i in range(2):
            part = found[i::2]
            images = [{"bytes": content, "path": path.rpartition("/")[2]} for path, _, content in part]
            table = pa.table({"image": images, "label": [label for _, label, _ in part]})
            for column, value in changes.items():
                table = table.drop_columns(column) if value is None else table.append_column(column, [value(part)])
            table = table.replace_schema_metadata(about)
            file = target / "data" / f"{name}-{i:05}-of-00002-0a1b2c.parquet"
            write_table(table, file, row_group_size=groups, compression=compression)
    return target


def table(tree: Path, target: Path) -> Path:
    """All files in one folder, and a CSV that names them without extension, with their classes and splits."""
    target.mkdir()
    rows = ["image_id,age,label,split"]
    for split, name in (("train", "Train"), ("val", "valid")):
        for path, _, content in samples(tree, split):
            folder, _, file = path.rpartition("/")
            (target / file).write_bytes(content)
            rows.append(f"{file.rpartition('.')[0]},7,{folder},{name}")
    (target / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return target
