"""Whether the cells of a plan can start on this machine at all: found out once, before the first of them trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitlab.config import CellConfig, Config, ConfigError, DatasetConfig
from vitlab.study.run import cell_of


def prove(named: Sequence[tuple[str, Config]]) -> None:
    """Look for the device, the data, the model and the starting weights of these cells, each once.

    Raises ConfigError naming the key, and the cell where there are several. Nothing is trained, and of a tree of image
    files only the top is read.
    """
    from vitlab.train.distributed import pick_device

    seen: set[object] = set()
    for name, config in named:
        cell = cell_of(config)
        try:
            if "device" not in seen:
                pick_device(config.device)
            for what, check in ((cell.dataset, _data), ((cell.model, cell.dataset.num_classes), _model)):
                if what not in seen:
                    check(cell)
                seen.add(what)
            if cell.pretrain.kind == "checkpoint" and cell.pretrain not in seen:
                _weights(cell)
            seen |= {"device", cell.pretrain}
        except (ValueError, OSError) as error:
            of = "" if len(named) == 1 else f" (in the cell {name})"
            raise ConfigError(f"{error}{of}; nothing was started") from None


def _data(cell: CellConfig) -> None:
    data = cell.dataset
    if data.pack:
        from vitlab.data.pack import read_manifest

        read_manifest(Path(data.pack))
    elif data.kind == "folder":
        from vitlab.data.folder import class_folders, find_root, train_folder

        class_folders(train_folder(data, find_root(data)))
    elif data.fractal is not None:
        from vitlab.data.fractal_cache import check_spec

        check_spec(data.fractal)
    else:
        from vitlab.data.sources import build_source

        build_source(data, "train")
        if _evaluates(data):
            build_source(data, "eval")


def _evaluates(data: DatasetConfig) -> bool:
    return data.num_eval != 0 or data.val_fraction > 0


def _model(cell: CellConfig) -> None:
    """Build it without memory; what cannot be built so is built for real before it is refused."""
    import torch

    from vitlab.models.build import build_model

    classes = cell.dataset.num_classes or 1000
    try:
        with torch.device("meta"):
            build_model(cell.model, classes)
    except (ConfigError, NotImplementedError):
        build_model(cell.model, classes)


def _weights(cell: CellConfig) -> None:
    from vitlab.models.checkpoint import read_checkpoint

    assert cell.pretrain.path, "checked when the configuration was read"
    read_checkpoint(Path(cell.pretrain.path), weights=cell.pretrain.weights)
