"""Where a result comes from: code, packages, machine, command and data; and whether these data are on the disk."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import UserError
from vitlab.core.integrity import fingerprints_from
from vitlab.core.plugins import source_digest
from vitlab.core.processes import answer_of
from vitlab.data.sources.catalogue import describe_changes, other_name, remember_data
from vitlab.data.sources.inventory import Inventory
from vitlab.data.sources.on_disk import inventories, take_inventory
from vitlab.study.record import Record

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "numba", "pillow", "simplejpeg", "scikit-learn", "hydra-core", "wandb",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
"""Where the code is that this process runs: the user's folder, or a snapshot of it (vitlab/study/snapshot.py)."""
MANIFEST, ORIGIN, PATCH = "files.sha256", "origin.json", "code.patch"
"""In a snapshot: the list of its files, and the commit and the changes that it was copied from."""
EXPECTED = "VITLAB_CODE"
"""The environment variable that names the snapshot whose code a process has to run."""
_TRAINS = (
    "vitlab/core",
    "vitlab/config",
    "vitlab/data",
    "vitlab/models",
    "vitlab/train",
    "vitlab/study",
    "hydra_plugins",
)
"""Where the code is that a training runs; the other rooms read its results (tests/unit/test_layers.py)."""


@functools.cache
def code_version() -> dict[str, Any]:
    """The git commit of vitlab's folder, and whether files differ from it; commit None outside a repository.

    Of a snapshot those of the folder that it was copied from.
    """
    if snapshot_here():
        try:
            origin = json.loads((ROOT / ORIGIN).read_text(encoding="utf-8"))
            return {"commit": origin["commit"], "dirty": origin["dirty"]}
        except (OSError, ValueError, KeyError):
            return {"commit": None, "dirty": False}
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit and commit.strip(), "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


@functools.cache
def code_patch() -> str:
    """What differs from the commit, as a patch; empty for a clean tree."""
    if snapshot_here():
        return (ROOT / PATCH).read_text(encoding="utf-8") if (ROOT / PATCH).is_file() else ""
    return _git("diff", "HEAD") or ""


def snapshot_here() -> str | None:
    """The fingerprint of the snapshot whose code this process runs; None for code in the user's folder."""
    return ROOT.name if (ROOT / MANIFEST).is_file() else None


@functools.cache
def code_fingerprint(root: Path = ROOT) -> str:
    """16 hex digits of the content of the source files that can change a number, with or without git.

    It is computed once in a process, and by the fork server for its cells: code that is edited while a study runs is
    not what its cells run.
    """
    digest = hashlib.sha256()
    for file in sorted(file for folder in _TRAINS for file in (root / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _git(*arguments: str) -> str | None:
    return answer_of("git", "-C", str(ROOT), *arguments, seconds=20)


@functools.cache
def package_versions() -> dict[str, str]:
    """The versions of the packages that can change a number, and Python's."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would show here, found without loading CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [g for g in chosen.split(",") if g.strip() and g != "-1"]
    return [str(i) for i in range(len(gpu_kinds()))]


@functools.cache
def device_kind(wanted: str) -> str:
    """What `device_name` in a record will say of this machine under `device=wanted`; torch is not asked."""
    if wanted == "mps":
        return "mps"
    if wanted == "cpu" or not visible_gpus():
        return f"{platform.machine()} CPU"
    return next(iter(gpu_kinds()), "cuda")


_DRIVER = Path("/proc/driver/nvidia/gpus")


@functools.cache
def gpu_kinds(driver: Path = _DRIVER) -> tuple[str, ...]:
    """The kind of each GPU of this machine, from the driver's files, or from nvidia-smi where there are none: some
    containers (gVisor) and WSL hide them. `driver` is another folder only in tests."""
    if driver.is_dir():
        return tuple(_model_in(folder / "information") for folder in sorted(driver.iterdir()))
    answer = answer_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader", seconds=30) or ""
    return tuple(line.strip() for line in answer.splitlines() if line.strip())


def _model_in(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "cuda")


def settings(
    device_name: str | None, devices: int, threads: int, compiled: bool | None = None, plugins: Iterable[str] = ()
) -> dict[str, Any]:
    """What this process trains with, as `mixture.mixtures` compares it; None: not known."""
    return {
        "code": code_with(plugins), **code_version(), "packages": package_versions(), "device_name": device_name,
        "devices": devices, "threads": threads, "compiled": compiled,
    }  # fmt: skip


def code_with(plugins: Iterable[str]) -> str:
    """`code_fingerprint`, and with it the files of the plugins that are imported here."""
    own = code_fingerprint()
    files = [f"{name} {source_digest(name)}" for name in sorted(plugins)]
    return hashlib.sha256("\n".join([own, *files]).encode()).hexdigest()[:16] if files else own


def whereabouts() -> dict[str, Any]:
    """The machine, the command and the time, for people."""
    return {
        "host": socket.gethostname(), "platform": platform.platform(), "cpus": os.cpu_count(), "command": sys.argv,
        "snapshot": snapshot_here(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip


def record_data(output_dir: str, dataset: DatasetConfig) -> dict[str, Any]:
    """What provenance.json says of the data, split by split; their files are listed below `output_dir/datasets`."""
    taken = inventories(dataset)
    remember_data(output_dir, dataset, taken)
    return {split: inventory.fingerprint.plain() for split, inventory in taken.items()}


def data_changes(
    provenance: Mapping[str, Any] | None, dataset: DatasetConfig, output_dir: str | Path, now: Mapping[str, Inventory]
) -> list[str]:
    """What differs between the data that a record names and those on the disk; empty where nothing does, or where no
    data are recorded."""
    recorded = (provenance or {}).get("data")
    if isinstance(recorded, str):
        return _changes_of_old(recorded, dataset)
    return describe_changes(output_dir, fingerprints_from(recorded), now)


def _changes_of_old(recorded: str, dataset: DatasetConfig) -> list[str]:
    """As `data_changes`, for the one fingerprint that older records hold: of the chosen images of both splits."""
    from vitlab.data.sources.registry import build_source

    splits = ("train",) if dataset.num_eval == 0 and dataset.val_fraction == 0 else ("train", "eval")
    here = "-".join(build_source(dataset, split).fingerprint() for split in splits)
    return [] if here == recorded else [f"their fingerprint was {recorded} and is now {here}"]


def require_same_data(record: Record, dataset: DatasetConfig, output_dir: str | Path) -> None:
    """Raise ConfigError where a record was made with other data than those on the disk; data out of sight pass."""
    provenance = record.read_intact("provenance.json")
    if not provenance or not provenance.get("data"):
        return
    try:
        changes = data_changes(provenance, dataset, output_dir, inventories(dataset))
    except (UserError, OSError):
        return  # whoever trains on them says what is wrong with them
    if changes:
        raise ConfigError(
            "dataset.root",
            f"the data of {record.folder} have changed since it was begun\n"
            + "".join(f"    {line}\n" for line in changes)
            + f"  Restore them; or {other_name(dataset, output_dir)}; or train the cell again: "
            f"study.rerun='[{record.id}]'",
        )


def evaluated_data(dataset: DatasetConfig) -> Inventory:
    """The images that a data set is evaluated on; with `val_fraction` all those that they are chosen from."""
    return take_inventory(dataset, "train" if dataset.val_fraction else "eval")


def require_evaluated_data(checkpoint: Path, dataset: DatasetConfig) -> None:
    """Raise ConfigError where a cell's checkpoint is asked about other evaluation images than the cell was evaluated
    on, under the name of the same data set. Checkpoints that are of no cell pass."""
    record, output_dir = Record(checkpoint.parent), checkpoint.parent.parent
    provenance, config = record.read_intact("provenance.json"), record.read_intact("config.yaml")
    if not provenance or not config or config["experiment"]["dataset"]["name"] != dataset.name:
        return
    recorded = fingerprints_from(provenance.get("data"))
    if "eval" in recorded:
        now = {"eval": evaluated_data(dataset)}
        if changes := describe_changes(output_dir, {"eval": recorded["eval"]}, now):
            raise ConfigError(
                "dataset.root",
                f"{dataset.name!r} holds other images than those that {record.id} was evaluated on\n"
                + "".join(f"    {line}\n" for line in changes)
                + f"  Restore them; or {other_name(dataset, output_dir)}",
            )
