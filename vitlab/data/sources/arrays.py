"""Small data sets, held in memory as uint8 without being asked."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import UserError
from vitlab.core.plugins import register_dataset

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw", "data/fashion_mnist")
_CIFAR = {"cifar10": ("CIFAR10", "cifar-10-batches-py"), "cifar100": ("CIFAR100", "cifar-100-python")}
"""torchvision's name, and that of the folder in the archive."""
_TORCHVISION = {"stl10": ("STL10", "stl10_binary"), "svhn": ("SVHN", "train_32x32.mat")}
"""torchvision's name, and what its download leaves in the folder."""
_DIGITS_HELD_OUT = 5
"""Of the digits' images of each class, taken in the wheel's order, every fifth is for evaluation (360 of 1,797)."""


class ArraySource:
    """Labelled images of one size in memory: `images` (N, H, W, 3) uint8, `labels` (N,) int64."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> None:
        self.images, self.labels, self.classes = images, labels.astype(np.int64), classes

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def select(self, rows: np.ndarray) -> ArraySource:
        return ArraySource(self.images[rows], self.labels[rows], self.classes)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]


@register_dataset("digits")
def load_digits(dataset: DatasetConfig, split: str) -> ArraySource:
    """scikit-learn's digits: 1,797 grey images of 8 x 8 in 17 levels (a copy of UCI's test set, in the wheel)."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    labels = np.asarray(bunch.target)  # pyright: ignore[reportAttributeAccessIssue]
    grey = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)  # pyright: ignore[reportAttributeAccessIssue]
    chosen = every_nth_of_class(labels, _DIGITS_HELD_OUT)
    if split == "train":
        chosen = ~chosen
    return ArraySource(_three_channels(grey[chosen]), labels[chosen], tuple("0123456789"))


@register_dataset("fashion_mnist")
def load_fashion_mnist(dataset: DatasetConfig, split: str) -> ArraySource:
    """Fashion-MNIST from its four IDX files (Debian's dataset-fashion-mnist, torchvision's folder, dataset.root)."""
    name = "train" if split == "train" else "t10k"
    folder = fashion_folder(dataset)
    images = _read_idx(folder, f"{name}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{name}-labels-idx1-ubyte")
    if len(images) != len(labels):
        raise UserError(f"{folder}: {len(images)} images and {len(labels)} labels in {name}-*; get the files again")
    return ArraySource(_three_channels(images), labels, FASHION_CLASSES)


def fashion_counts(dataset: DatasetConfig) -> dict[str, int]:
    """What the headers of Fashion-MNIST's files say, without reading images; empty where there are no such files."""
    counts: dict[str, int] = {}
    try:
        folder = fashion_folder(dataset)
        for key, name in (("num_train", "train"), ("num_eval", "t10k")):
            file = folder / f"{name}-images-idx3-ubyte"
            with file.open("rb") if file.exists() else gzip.open(folder / f"{file.name}.gz") as stream:
                header = stream.read(16)
            counts[key], counts["image_size"], _ = (int(v) for v in np.frombuffer(header, ">u4", count=3, offset=4))
    except (ConfigError, OSError, EOFError, ValueError):
        return {}  # who reads the images says what is wrong
    return counts | {"num_classes": len(FASHION_CLASSES)}


def fashion_folder(dataset: DatasetConfig) -> Path:
    """The folder that holds Fashion-MNIST's files. Raises ConfigError with how to get them."""
    wanted = "train-images-idx3-ubyte"
    roots = [dataset.root] if dataset.root else list(_FASHION_FOLDERS)
    for root in roots:
        for folder in (Path(root), Path(root) / "FashionMNIST" / "raw", Path(root) / "raw"):
            if any((folder / (wanted + end)).exists() for end in ("", ".gz")):
                return folder
    raise ConfigError(
        "dataset.root",
        f"no Fashion-MNIST in {', '.join(roots)} (looked for {wanted}[.gz]). Get it with "
        "`apt install dataset-fashion-mnist`, or where there is a network with "
        "`python -c \"import torchvision; torchvision.datasets.FashionMNIST('data', download=True)\"`",
    )


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of unsigned bytes in LeCun's IDX format, gzipped or not."""
    file = folder / name if (folder / name).exists() else folder / f"{name}.gz"
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: cannot be read ({error}); get the data set again") from error
    ndim = content[3] if len(content) > 4 and content[:3] == b"\x00\x00\x08" else 0
    shape = tuple(np.frombuffer(content, ">u4", count=ndim, offset=4)) if 0 < ndim < 5 else ()
    if not shape or len(content) != 4 + 4 * ndim + int(np.prod(shape)):
        raise UserError(f"{file}: not a whole IDX file of bytes; get the data set again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


@register_dataset("cifar10")
@register_dataset("cifar100")
def load_cifar(dataset: DatasetConfig, split: str) -> ArraySource:
    """CIFAR-10 or CIFAR-100 (Krizhevsky, 2009) from the python version's folder, read by torchvision."""
    from torchvision import datasets

    root, (name, folder) = cifar_root(dataset), _CIFAR[dataset.kind]
    try:
        data = getattr(datasets, name)(str(root), train=split == "train", download=False)
    except RuntimeError as error:
        raise UserError(f"{root / folder}: {error} Get the archive again") from error
    return ArraySource(np.asarray(data.data), np.asarray(data.targets), tuple(data.classes))


def cifar_root(dataset: DatasetConfig) -> Path:
    """The folder that holds CIFAR's own. Raises ConfigError with how to get it."""
    (name, folder), base = _CIFAR[dataset.kind], Path(dataset.root or "data")
    for root in (base, base / name, base.parent):
        if (root / folder).is_dir():
            return root
    raise ConfigError(
        "dataset.root",
        f"no folder {folder} in {str(base)!r}. Give its parent folder; where there is a network, "
        f'`python -c "import torchvision; torchvision.datasets.{name}({str(base)!r}, download=True)"` gets it',
    )


@register_dataset("stl10")
@register_dataset("svhn")
def load_torchvision(dataset: DatasetConfig, split: str) -> ArraySource:
    """STL-10 (Coates et al., 2011) or SVHN (Netzer et al., 2011) from torchvision's folder, read by torchvision."""
    from torchvision import datasets

    root, name = torchvision_root(dataset), _TORCHVISION[dataset.kind][0]
    try:
        data = getattr(datasets, name)(root, split="train" if split == "train" else "test", download=False)
    except RuntimeError as error:
        raise _not_whole(name, root, str(error).splitlines()[0]) from error
    classes = getattr(data, "classes", None) or [str(digit) for digit in range(10)]
    images = np.ascontiguousarray(np.asarray(data.data).transpose(0, 2, 3, 1))  # (N, 3, H, W) → (N, H, W, 3)
    return ArraySource(images, np.asarray(data.labels), tuple(classes))


def torchvision_root(dataset: DatasetConfig) -> str:
    """The folder that holds STL-10's or SVHN's own. Raises ConfigError with how to get it."""
    (name, inside), root = _TORCHVISION[dataset.kind], dataset.root or "data"
    if not (Path(root) / inside).exists():
        raise _not_whole(name, root, f"there is no {inside} in it")
    return root


def _not_whole(name: str, root: str, why: str) -> ConfigError:
    get = "; ".join(f"torchvision.datasets.{name}({root!r}, {split!r}, download=True)" for split in ("train", "test"))
    return ConfigError(
        "dataset.root",
        f'no whole {name} in {root!r} ({why}); where there is a network, `python -c "import torchvision; {get}"` '
        "gets it",
    )


def _three_channels(grey: np.ndarray) -> np.ndarray:
    """(N, H, W) → (N, H, W, 3)."""
    return np.repeat(grey[..., None], 3, axis=-1)


def every_nth_of_class(labels: np.ndarray, n: int) -> np.ndarray:
    """A mask (N,) of every n-th image of each class, in order: a fixed stratified split of as equal parts as can be.

    The counting goes on from class to class, so that the parts' sizes differ from N / n by less than one image.
    """
    by_class = np.argsort(labels, kind="stable")
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class[::n]] = True
    return chosen
