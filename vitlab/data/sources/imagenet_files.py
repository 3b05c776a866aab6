"""ImageNet-1k (ILSVRC 2012) as image-net.org and as Kaggle hand it out."""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import reason
from vitlab.data.sources.class_folders import TRAINED, ClassFolders, choose_eval_split, subfolders
from vitlab.data.sources.containers import LooseFiles, Names, SplitFiles, state_of
from vitlab.data.sources.index import Found, Index, Indexed, index_of
from vitlab.data.sources.listing import is_image
from vitlab.data.sources.tar_files import Tar, regular_members, scan_tars

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12"
_TRUTH, _META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
_VAL_FOLDER = "val"
_SOLUTION, _MAPPING = "LOC_val_solution.csv", "LOC_synset_mapping.txt"


def recognise_archives(dataset: DatasetConfig, root: Path) -> Indexed | None:
    """image-net.org's archives in `root`; None where there are none. Raises ConfigError for one that is missing."""
    train, val = root / TRAIN, root / VAL
    if not train.is_file() and not val.is_file():
        return None
    evaluated = dataset.num_eval != 0 and dataset.val_fraction == 0
    files = [file for file in (train, val) if file.is_file() and (file == train or evaluated)]
    devkit = next((f for name in (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar", DEVKIT) if (f := root / name).exists()), None)
    if evaluated and not val.is_file():
        raise ConfigError("dataset.root", f"no {VAL} in {str(root)!r}; add it, or set images aside with "
                          "dataset.val_fraction=0.1")  # fmt: skip
    if evaluated and devkit is None:
        raise ConfigError(
            "dataset.root",
            f"no {DEVKIT}.tar.gz in {str(root)!r}, which says of what classes the images in {VAL} are; add it, or set "
            "images aside with dataset.val_fraction=0.1",
        )
    known = [*files, *([devkit] if devkit and evaluated else [])]
    return Indexed(dataset, root, known, lambda: _build(root, files, devkit))


def _build(root: Path, files: list[Path], devkit: Path | None) -> Index:
    splits: dict[str, Found] = {}
    for number, file in enumerate(files):
        if file.name == TRAIN:
            found = splits[TRAINED] = Found()
            inside = _class_tars(file)
            inner = [tar for tar in inside if tar.name.endswith(".tar")]
            found.left_out.update(Path(tar.name).suffix.lower() for tar in inside if tar not in inner)
            scanned = scan_tars(inner, f"indexing the {len(inner):,} classes of {file}")
            for tar, members in zip(inner, scanned, strict=True):
                synset = Path(tar.name).stem
                found.paths += [f"{synset}/{name}" for name in members.names]
                found.labels += [synset] * len(members.names)
                found.places += [(number, *place) for place in zip(members.offsets, members.sizes, strict=True)]
                found.left_out.update(members.left_out)
        else:
            assert devkit is not None, "asked for above"
            (members,) = scan_tars([Tar(str(file))], f"indexing {file}")
            labels = _labels_of(members.names, devkit)
            paths = [f"{label}/{name}" for label, name in zip(labels, members.names, strict=True)]
            places = [(number, *place) for place in zip(members.offsets, members.sizes, strict=True)]
            splits[_VAL_FOLDER] = Found(paths, labels, places, members.left_out)
    return index_of(splits, [state_of(file) for file in files], root, "image-net.org's archives")


def _class_tars(file: Path) -> list[Tar]:
    """The tars in the training archive, one for each class."""
    with file.open("rb") as stream:
        return [Tar(str(file), m.offset_data, m.name) for m in regular_members(Tar(str(file)), stream)]


def _labels_of(names: list[str], devkit: Path) -> list[str]:
    """The synset of each validation image, by the number in its name. Raises ConfigError for one without."""
    from scipy.io import loadmat

    synsets = np.atleast_1d(loadmat(io.BytesIO(_read(devkit, _META)), squeeze_me=True)["synsets"])
    by_id = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    truth = [int(line) for line in _read(devkit, _TRUTH).split()]
    labels = []
    for name in names:
        number = re.search(r"(\d{8})\.\w+$", name)
        row = int(number[1]) - 1 if number else -1
        if not 0 <= row < len(truth) or truth[row] not in by_id:
            raise ConfigError("dataset.root", f"{VAL}: {name} has no label in {devkit}")
        labels.append(by_id[truth[row]])
    return labels


def _read(devkit: Path, name: str) -> bytes:
    """A file of the devkit, an archive or a folder. Raises ConfigError."""
    try:
        if devkit.is_dir():
            return (devkit / name).read_bytes()
        with tarfile.open(devkit) as archive:
            member = next((m for m in archive if m.name.endswith(name)), None)
            stream = archive.extractfile(member) if member else None
            if stream is None:
                raise ConfigError("dataset.root", f"{devkit} has no {name}; get it again")
            return stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError("dataset.root", f"{devkit} is damaged ({error}); get it again") from error
    except OSError as error:
        raise ConfigError("dataset.root", f"{devkit} cannot be read ({reason(error)}); get it again") from error


class KaggleFolders(ClassFolders):
    """Kaggle's folders: train/ holds a folder per class; val/ is flat, and a CSV file labels it."""

    def __init__(self, root: Path, solution: Path | None) -> None:
        super().__init__(root, root / TRAINED, root / _VAL_FOLDER if solution else None, _without_folder(root))
        self.form, self.solution = "Kaggle's folders", solution

    def files(self, split: str, *, again: bool = False) -> SplitFiles:
        if split == "train" or self.solution is None:
            return super().files(split, again=again)
        folder, classes, labels = self._folder(split), self.classes(), _solution(self.solution)
        places = {name: i for i, name in enumerate(classes)}
        found, left_out = [], Counter[str]()
        for entry in list(os.scandir(folder)):
            if not is_image(entry.name):
                left_out[Path(entry.name).suffix.lower()] += 1
                continue
            label = labels.get(entry.name.rpartition(".")[0])
            if label not in places:
                why = "has no row" if label is None else f"is of class {label!r}, which train/ lacks,"
                raise ConfigError("dataset.root", f"{entry.path} {why} in {self.solution}")
            found.append((places[label], entry.name, entry.stat().st_size))
        found.sort()
        names = Names(f"{classes[label]}/{name}" for label, name, _ in found)
        content = LooseFiles(folder, Names(name for _, name, _ in found))
        numbers = np.array([(label, size) for label, _, size in found], dtype=np.int64).reshape(-1, 2)
        return SplitFiles(names, numbers[:, 0].copy(), numbers[:, 1].copy(), content, dict(left_out))

    def glance(self, split: str) -> tuple[SplitFiles, int, int]:
        if split == "train" or self.solution is None:
            return super().glance(split)
        return self.files(split), len(self.classes()), len(self.classes())


def recognise_kaggle(dataset: DatasetConfig, root: Path) -> ClassFolders | None:
    """Kaggle's folders at `root` or above CLS-LOC; None where there are none. Raises ConfigError without their CSV."""
    places = (root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC", root)
    base = next((p for p in places if p.name == "CLS-LOC" and (p / TRAINED).is_dir()), None)
    if base is None:
        return None
    if dataset.num_eval == 0 or dataset.val_fraction or not (base / _VAL_FOLDER).is_dir():
        return KaggleFolders(base, None)
    if subfolders(base / _VAL_FOLDER):  # sorted into classes by its owner
        return ClassFolders(base, base / TRAINED, base / _VAL_FOLDER, _without_folder(base))
    choose_eval_split(dataset, [_VAL_FOLDER], str(base))  # the images in test/ have no labels
    solution = _beside(base, _SOLUTION)
    if solution is None:
        raise ConfigError(
            "dataset.root", f"no {_SOLUTION} in {str(base)!r} or above, which labels the images in val/; add it, or "
            "set images aside with dataset.val_fraction=0.1"
        )  # fmt: skip
    return KaggleFolders(base, solution)


def _beside(base: Path, name: str) -> Path | None:
    """Kaggle's file of that name in CLS-LOC, or up to three folders above; None where there is none."""
    return next((file for folder in (base, *base.parents[:3]) if (file := folder / name).is_file()), None)


def _without_folder(base: Path) -> str:
    """What to say of classes that Kaggle's list names and train/ lacks: of an archive that is not wholly unpacked, or
    of a part that was chosen. The classes themselves are called by their synsets, as everywhere else."""
    if (file := _beside(base, _MAPPING)) is None:
        return ""
    try:
        lines = [line.partition(" ") for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        return f"{_MAPPING} cannot be read ({error})"
    there = set(subfolders(base / TRAINED))
    lacking = [synset + f" ({name.split(',')[0]})" * bool(name) for synset, _, name in lines if synset not in there]
    if not lacking:
        return ""
    more = ", …" if len(lacking) > 3 else ""
    return f"train/ lacks {len(lacking):,} of the {len(lines):,} classes in {_MAPPING}: {', '.join(lacking[:3])}{more}"


def _solution(file: Path) -> dict[str, str]:
    """Image → synset. Raises ConfigError for another kind of file."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(stream)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConfigError(
            "dataset.root", f"{file} is not Kaggle's (columns ImageId, PredictionString): {error}"
        ) from error
