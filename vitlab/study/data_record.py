"""Which data a record was made with, and whether they are those on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.config import ConfigError, DatasetConfig
from vitlab.core.errors import UserError
from vitlab.core.integrity import fingerprints_from
from vitlab.data.sources.catalogue import describe_changes, other_name, remember_data
from vitlab.data.sources.inventory import Inventory
from vitlab.data.sources.on_disk import inventories, take_inventory
from vitlab.study.record import Record


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
