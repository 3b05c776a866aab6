"""How many cells this machine trains at once, and on which devices: what `study.cells_at_once` and
`study.cells_per_device` mean here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from vitlab.config import Config, ConfigError
from vitlab.core.device import usable_cores
from vitlab.core.processes import answer_of
from vitlab.study.provenance import visible_gpus

BUSY_SHARE = 0.1
"""A GPU is idle while no process computes on it and at most this share of its time and of its memory is in use."""


@dataclass(frozen=True)
class Capacity:
    """`cells` at once, up to `per_device` of them on the same devices: `gpus`, or the CPU where there are none."""

    cells: int
    gpus: tuple[str, ...]
    reason: str
    """Where the number of cells comes from, for the plan."""
    per_device: int = 1

    def together(self, cells: int) -> int:
        """How many of `cells`, all that there are to train, are on one device at the same time at most."""
        return -(-min(self.cells, max(1, cells)) // self.places)

    def devices_of(self, slot: int, devices: int) -> tuple[str, ...]:
        """The GPUs of the cell in a slot, of `devices` each: neighbours are on different ones, while there are any."""
        place = self.place_of(slot)
        return self.gpus[place * devices : (place + 1) * devices]

    @property
    def places(self) -> int:
        """How many cells can have devices of their own."""
        return -(-self.cells // self.per_device)

    def place_of(self, slot: int) -> int:
        return slot % self.places


def capacity(config: Config, number: Callable[[], int] = lambda: 1) -> Capacity:
    """The capacity of this machine for cells of this configuration.

    `study.cells_at_once=auto` is as many cells as there are idle GPUs for, or usable CPU cores, and at least one.
    `number` finds what `study.cells_per_device=auto` is.
    """
    wanted, devices, gpus = config.study.cells_at_once, config.devices, gpus_for(config)
    each = config.study.cells_per_device
    if each is not None:
        return _several_per_device(config, number() if each == "auto" else each, gpus)
    if wanted != "auto":
        return Capacity(wanted, tuple(gpus), f"study.cells_at_once={wanted}")
    each = f", devices={devices}" if devices > 1 else ""
    if gpus:
        idle = idle_gpus(gpus)
        busy = [gpu for gpu in gpus if gpu not in idle]
        reason = f"study.cells_at_once=auto: {len(idle)} of {len(gpus)} GPUs idle{each}"
        return Capacity(max(1, len(idle) // devices), (*idle, *busy), reason)
    if config.device == "mps" or (config.device == "auto" and sys.platform == "darwin"):
        return Capacity(1, (), "study.cells_at_once=auto: one device")
    cores = usable_cores()
    reason = f"study.cells_at_once=auto: {cores} CPU cores, threads={config.threads}{each}"
    return Capacity(max(1, cores // (config.threads * devices)), (), reason)


def _several_per_device(config: Config, each: int, gpus: list[str]) -> Capacity:
    wanted, devices = config.study.cells_at_once, config.devices
    idle = idle_gpus(gpus)
    places = max(1, len(idle) // devices) if gpus else 1
    where = f"{places} of {len(gpus) // devices} GPUs" if gpus else "one device, the CPU"
    if gpus and devices > 1:
        where = f"{places} times {devices} GPUs"
    chosen = f"auto: {each} on" if config.study.cells_per_device == "auto" else f"{each}:"
    reason = f"study.cells_per_device={chosen} {where}"
    ordered = (*idle, *(gpu for gpu in gpus if gpu not in idle))
    if wanted != "auto":
        return Capacity(wanted, ordered, f"study.cells_at_once={wanted}, study.cells_per_device={each}", each)
    return Capacity(places * each, ordered, reason, each)


def require_devices(config: Config, capacity: Capacity) -> None:
    """Raises ConfigError where the cells that train at once need more devices than there are."""
    cells, devices, visible, each = capacity.cells, config.devices, len(capacity.gpus), capacity.per_device
    if visible and devices > visible:
        raise ConfigError("devices", f"each cell needs {devices} GPUs, and {visible} are visible")
    places, there = -(-cells // each), max(1, visible // devices)
    if config.study.cells_per_device is not None and places > there:
        raise ConfigError(
            "study.cells_at_once",
            f"{cells} cells, {each} on a device, need {places} devices, and there {'is' if there == 1 else 'are'} "
            f"{there}{'' if visible else ', the CPU'}",
            [f"study.cells_at_once={there * each}", f"study.cells_per_device={-(-cells // there)}"],
        )
    if visible and places * devices > visible:
        raise ConfigError(
            "study.cells_at_once",
            f"{cells} cells on {devices} devices each need {cells * devices} GPUs, and {visible} are visible",
        )


def gpus_for(config: Config) -> list[str]:
    """The GPUs that cells of this configuration may use here; none on a CPU."""
    return visible_gpus() if config.device in ("auto", "cuda") else []


def idle_gpus(gpus: list[str]) -> list[str]:
    """Those of the visible GPUs that nobody uses now. One of which nvidia-smi does not tell counts as idle."""
    known = _ask("--query-gpu=index,uuid,name,utilization.gpu,memory.used,memory.total")
    computing = {fields[0] for fields in _ask("--query-compute-apps=gpu_uuid")}
    by_index = len({name for _, _, name, *_ in known}) == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    busy = set()  # identifiers as CUDA_VISIBLE_DEVICES may write them
    for index, uuid, _, time, used, total in known:
        if uuid in computing or _number(time) > 100 * BUSY_SHARE or _number(used) > BUSY_SHARE * _number(total):
            busy |= {uuid, index} if by_index else {uuid}  # of unlike GPUs, CUDA numbers the fastest first
    return [gpu for gpu in gpus if not any(_names(gpu.strip(), one) for one in busy)]


def _names(written: str, known: str) -> bool:
    """Whether `written`, an index or the beginning of a UUID, means the GPU that nvidia-smi calls `known`."""
    return written == known or (written.startswith("GPU-") and known.startswith(written))


def _ask(query: str) -> list[list[str]]:
    """The rows that nvidia-smi answers; none where it is absent or fails."""
    answer = answer_of("nvidia-smi", query, "--format=csv,noheader,nounits", seconds=30) or ""
    return [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.strip()]


def _number(text: str) -> float:
    """A figure of nvidia-smi's; 0 where it says `[N/A]`, as for a GPU that is cut into MIG instances."""
    try:
        return float(text)
    except ValueError:
        return 0.0
