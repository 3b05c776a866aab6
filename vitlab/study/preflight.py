"""Whether the cells of a plan can start on this machine at all: found out once, before the first of them trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from vitlab.config import CellConfig, Config, ConfigError
from vitlab.core.errors import as_user_error
from vitlab.core.wandb import require_accepted_key
from vitlab.data.sources.presence import require_data
from vitlab.study.cell import cell_of


def prove(named: Sequence[tuple[str, Config]]) -> None:
    """Look for the device, the data and the model of these cells, each once.

    Raises ConfigError naming the key, and the cell where there are several. Nothing is trained, and of a tree of image
    files only the top is read.
    """
    from vitlab.core.device import pick_device

    for mode in {config.wandb.mode for _, config in named}:
        require_accepted_key(mode)
    require_all_data(named)
    seen: set[object] = set()
    for name, config in named:
        cell = cell_of(config)
        with _nothing_started(name, config, alone=len(named) == 1):
            if "device" not in seen:
                pick_device(config.device)
            seen.add("device")
            if cell.dataset not in seen:
                _data(cell)
            label = config.labels.get("model", "")
            if (model := (cell.model, cell.dataset.num_classes, label)) not in seen:
                _model(cell, label)
            seen |= {cell.dataset, model}


def require_all_data(named: Sequence[tuple[str, Config]]) -> None:
    """See that the data of these cells are there, each once, without torch. Raises ConfigError like `prove`."""
    seen: set[object] = set()
    for name, config in named:
        dataset = cell_of(config).dataset
        if dataset not in seen:
            with _nothing_started(name, config, alone=len(named) == 1):
                require_data(dataset)
        seen.add(dataset)


@contextlib.contextmanager
def _nothing_started(name: str, config: Config, *, alone: bool) -> Iterator[None]:
    """A user's mistake found inside names the cell, unless it is the only one, and says that nothing was started."""
    try:
        yield
    except Exception as error:
        if (wrong := as_user_error(error)) is None:
            raise
        if isinstance(wrong, ConfigError) and config.study.part == "pretraining":
            wrong = wrong.under("pretrain")
        wrong = wrong if alone else wrong.in_cell(name)
        raise wrong.extended("; nothing was started") from None


def _data(cell: CellConfig) -> None:
    from vitlab.data.sources.registry import build_source

    data = cell.dataset
    if data.pack or data.kind not in ("folder", "fractal"):  # quickly read
        build_source(data, "train")
        if data.num_eval != 0 or data.val_fraction > 0:
            build_source(data, "eval")


def _model(cell: CellConfig, label: str) -> None:
    from vitlab.models.build import build_without_memory
    from vitlab.models.size import check_label

    classes = cell.dataset.num_classes or 1000
    network = build_without_memory(cell.model, classes)
    check_label(label, sum(p.numel() for p in network.parameters()), classes)
