"""Requests with other study options, and finished records as a run leaves them, for the tests of plans."""

import dataclasses

from vitlab.config import experiment
from vitlab.study.identity import SEMANTICS, identity
from vitlab.study.record import Record


def with_study(config, **changes):
    return dataclasses.replace(config, study=dataclasses.replace(config.study, **changes))


def begin(folder, config, part="cell", name="x"):
    """A record that is just begun."""
    cell = config.cell if part == "cell" else config.cell.pretraining
    record = Record(folder / identity(cell))
    content = {"schema_version": 1, "id": record.id, "semantics": SEMANTICS, "name": name}
    content |= {"experiment": experiment(cell), "labels": {}, "runtime": {"devices": 1}}
    record.write("config.yaml", content)
    return record


def finish(folder, config, part="cell", top1=90.0, seconds=13.0, rate=2000.0, sharing=1, **origin):
    """A finished record, as a run of so many seconds on a device that so many cells shared leaves it."""
    record = begin(folder, config, part)
    record.write("provenance.json", {"commit": "abc", "dirty": False, "packages": {}, "device_name": "X"} | origin)
    figures = {"epoch": 18, "top1": top1, "top5": 99.0, "loss": 0.3}
    record.write("result.json", {
        "schema_version": 1, "id": record.id, "last": figures, "best": figures, "ema": None, "num_train": 1437,
        "num_eval": 360, "num_parameters": 155018, "images_per_second": rate,
        "wall_seconds": seconds, "device_seconds": seconds / sharing,
    })  # fmt: skip
    return record
