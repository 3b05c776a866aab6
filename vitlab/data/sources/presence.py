"""Whether a data set is where it is looked for: asked before anything trains, since a study may need it hours later."""

from __future__ import annotations

from vitlab.config import DatasetConfig
from vitlab.core.plugins import TRANSFER_SETS


def require_data(dataset: DatasetConfig) -> None:
    """Raise ConfigError where the folder of `dataset` is not there, or it cannot be staged on this machine; folders are
    looked at, no image is read.

    Packs are checked when a configuration is parsed; torchvision checks the files of STL-10 and SVHN as it reads them.
    """
    if dataset.stage is not None:
        from vitlab.data.sources.staging import require_stageable

        require_stageable(dataset)
    if dataset.pack:
        return
    if dataset.kind == "folder":
        from vitlab.data.sources.folder import recognise
        from vitlab.data.sources.parquet_files import require_random_reads

        require_random_reads(recognise(dataset))
    elif dataset.kind == "fashion_mnist":
        from vitlab.data.sources.arrays import fashion_folder

        fashion_folder(dataset)
    elif dataset.kind in ("cifar10", "cifar100"):
        from vitlab.data.sources.arrays import cifar_root

        cifar_root(dataset)
    elif dataset.kind in TRANSFER_SETS:
        from vitlab.data.sources.transfer_sets import transfer_root

        transfer_root(dataset)
    elif dataset.kind in ("stl10", "svhn"):
        from vitlab.data.sources.arrays import torchvision_root

        torchvision_root(dataset)
