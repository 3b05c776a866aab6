"""Whether a data set is where it is looked for: asked before anything trains, since a study may need it hours later."""

from __future__ import annotations

from vitlab.config import DatasetConfig


def require_data(dataset: DatasetConfig) -> None:
    """Raise ConfigError where the folder of `dataset` is not there; folders are looked at, no image is read.

    Packs are checked when a configuration is parsed, and STL-10 and SVHN by torchvision when they are read.
    """
    if dataset.pack:
        return
    if dataset.kind == "folder":
        from vitlab.data.sources.folder import find_root

        find_root(dataset)
    elif dataset.kind == "fashion_mnist":
        from vitlab.data.sources.arrays import fashion_folder

        fashion_folder(dataset)
    elif dataset.kind in ("cifar10", "cifar100"):
        from vitlab.data.sources.arrays import cifar_root

        cifar_root(dataset)
