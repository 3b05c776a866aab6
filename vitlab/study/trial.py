"""A short trial on the device: what a step, a cell's memory and reading an image take, and how many cells that suits.

What follows from the trial is arithmetic (`images_per_second`), so that the plan can say why. A trial on a node of a
cluster is kept in a file, for the jobs that are submitted later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import multiprocessing as mp
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vitlab.config import Config, ConfigError
from vitlab.core.device import free_memory, usable_cores
from vitlab.core.errors import as_user_error
from vitlab.core.files import in_units, make_folder, write_text
from vitlab.core.integrity import DamagedError, read_mapping, sealed
from vitlab.core.plugins import import_plugins
from vitlab.core.processes import end_with_parent
from vitlab.data.order import readers_for
from vitlab.study.attempts import peak_memory
from vitlab.study.cell import cell_of

MOST = 16
"""Cells on a device that `auto` considers."""
ENOUGH = 0.95
"""`auto` takes the fewest cells that give this share of the rate of the best number."""
_TOKENS = 2048
"""Tokens of a trial's step on a CPU, where a whole batch could take minutes."""


@dataclass(frozen=True)
class Trial:
    """What was measured of one cell on this machine."""

    on_gpu: bool
    step_seconds: float
    """Of a step of `batch` images, whatever their number: what the host does."""
    image_seconds: float
    """Of the device, for a further image in a step."""
    batch: int
    reading_seconds: float
    """Of a core, for reading an image; 0 where images are in memory."""
    cell_bytes: int
    free_bytes: int
    """Memory that a cell takes, and that the device (on a CPU the machine) has."""
    cores: int
    threads: int
    workers: int
    seconds: float
    """How long the trial took."""
    process_bytes: int = 0
    host_bytes: int = 0
    """Memory of the machine that a cell's process takes, and that is free; 0: not known."""

    @property
    def fitting(self) -> int:
        """Cells whose memory the device and the machine have; at least one."""
        on_device = 0.9 * self.free_bytes / max(1, self.cell_bytes)
        on_host = 0.9 * self.host_bytes / self.process_bytes if self.process_bytes else math.inf
        return max(1, int(min(on_device, on_host)))

    def within(self, cores: int | None, memory: int | None) -> Trial:
        """The trial where cells may use no more than so many cores, and bytes of the machine's memory."""
        memory = memory or self.host_bytes
        free = self.free_bytes if self.on_gpu else min(self.free_bytes, memory or self.free_bytes)
        cores, host = min(self.cores, cores or self.cores), min(self.host_bytes, memory)
        return dataclasses.replace(self, cores=cores, free_bytes=free, host_bytes=host)

    def images_per_second(self, cells: int, sharing: int) -> float:
        """What `cells` on the device train in all, where each loader serves `sharing` of them.

        On a GPU the device, the host (a process for each cell) and the loaders each set a limit, of which the lowest
        counts; on a CPU all of them share the cores.
        """
        sharing = max(1, min(sharing, cells))
        loaders = math.ceil(cells / sharing)
        alone = self.image_seconds + self.step_seconds / self.batch  # of an image of one cell
        readers = loaders * readers_for(sharing, self.workers, self.cores)
        if self.on_gpu:
            reading = min(readers, self.cores) / self.reading_seconds if self.reading_seconds else math.inf
            return min(cells / alone, 1 / self.image_seconds, reading * cells / loaders)
        busy = cells * self.threads + (readers if self.reading_seconds and (sharing > 1 or self.workers) else 0)
        return min(self.cores, busy) / (alone * self.threads + self.reading_seconds * loaders / cells)

    def best(self, sharing: int, most: int) -> int:
        """The fewest cells, up to `most`, that come close to the highest rate."""
        rates = [self.images_per_second(k, sharing) for k in range(1, max(1, min(MOST, most, self.fitting)) + 1)]
        return 1 + next(i for i, rate in enumerate(rates) if rate >= ENOUGH * max(rates))

    def why(self, cells: int, sharing: int) -> str:
        """The figures behind a number of cells."""
        alone = self.image_seconds + self.step_seconds / self.batch
        reading = f"reading one {1e3 * self.reading_seconds:.2g} ms of a core" if self.reading_seconds else "none read"
        return (
            f"one cell trains {self.images_per_second(1, 1):,.0f} images/s, {cells} together "
            f"{self.images_per_second(cells, sharing):,.0f}; "
            f"an image takes {1e3 * alone:.2g} ms to train on, {reading}; {in_units(self.cell_bytes)} a cell of "
            f"{in_units(self.free_bytes)}; a trial of {self.seconds:.1f} s"
        )


def keep_trial(file: Path, trial: Trial, device_name: str) -> None:
    """Write what was measured, and on what, for the plans of later commands."""
    make_folder(file.parent)
    content = {"trial": dataclasses.asdict(trial), "device_name": device_name, "at": time.strftime("%Y-%m-%d %H:%M")}
    write_text(file, json.dumps(sealed(content)))


def kept_trial(file: Path) -> tuple[Trial, str] | None:
    """What `keep_trial` wrote, and where and when it was measured; None where there is no such file, or none of use."""
    with contextlib.suppress(DamagedError, TypeError, KeyError):  # of another version, too: it is measured again
        if content := read_mapping(file, ""):
            return Trial(**content["trial"]), f"{content['device_name']}, {content['at']}"
    return None


def run_trial(config: Config) -> Trial:
    """Measure the cell of `config` in a process of its own. Raises UserError where it cannot be trained here."""
    from vitlab.study.launch_local import fork_server

    reader, writer = mp.Pipe(duplex=False)
    process = fork_server(config).Process(target=_measure, args=(config, writer))
    process.start()
    writer.close()
    try:
        found = reader.recv()
    except EOFError:
        process.join()
        raise ConfigError(
            "study.cells_per_device", f"the trial of auto ended with exit code {process.exitcode}; give a number"
        ) from None
    process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _measure(config: Config, pipe: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
    end_with_parent(signal.SIGKILL)
    try:
        pipe.send(measure(config))
    except Exception as error:
        if as_user_error(error) is None:
            error.add_note(f"in the process of the trial:\n{traceback.format_exc()}")
        pipe.send(error)


def measure(config: Config) -> Trial:
    """The trial itself, in this process."""
    import torch

    from vitlab.core.device import pick_device
    from vitlab.data.shared import seconds_to_read
    from vitlab.models.build import build_model
    from vitlab.train.step import choose_device_batch, seconds_of_steps

    began = time.perf_counter()
    import_plugins(config.plugins)
    cell, device = cell_of(config), pick_device(config.device)
    torch.set_num_threads(config.threads)
    reading = seconds_to_read(cell)
    model: Any = build_model(cell.model, cell.dataset.num_classes or 1000).to(device)
    batch = config.device_batch or choose_device_batch(model, cell, cell.recipe.batch_size // config.devices, device)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        tokens = (cell.model.image_size // (cell.model.patch_size or 16)) ** 2 + 1
        batch = max(2, min(batch, _TOKENS // tokens))
    half, whole = seconds_of_steps(model, cell, (max(1, batch // 2), batch), device)
    each = max((whole - half) / (batch - batch // 2 or 1), 0.05 * whole / batch)
    fixed = max(0.0, whole - batch * each)
    process = round(1e9 * peak_memory())
    if on_gpu:
        free, total = torch.cuda.mem_get_info(device)
        taken = torch.cuda.max_memory_reserved(device) + (total - free - torch.cuda.memory_reserved(device))
        free = total
    else:
        taken, free = process, free_memory()
    return Trial(
        on_gpu, fixed, each, batch, reading, int(taken), int(free), usable_cores(), config.threads, config.workers,
        time.perf_counter() - began, process, free_memory(),
    )  # fmt: skip
