"""Finished and failed records as a run leaves them, for the tests of what reads them."""

import dataclasses

import numpy as np

from vitlab.analysis import collect
from vitlab.analysis.table import TableSpec
from vitlab.config import CellConfig, WandbConfig, choice, experiment
from vitlab.study.identity import identity
from vitlab.study.mirror import Mirror, flat_summary, packed_hits
from vitlab.study.record import Record, write_study

SCORES = {
    "none": [90.0, 90.4, 89.9],
    "mixup": [91.0, 91.5, 91.2],
    "erase": [90.1, 90.3, 90.2],
    "deit": [80.0, 81.0, 79.5],
}
TICKS = {"Mixup": "augment.mixup", "Erase": "augment.erase"}
NOTES = {"deit": "everything at once"}
SPEC = TableSpec(
    "t", "A title", "s", factor="augment", rows=tuple(SCORES), baseline="none", ticks=TICKS, footnotes=NOTES
)


def make_cell(augment, seed, dataset="digits", start=None, **recipe):
    parts = [choice(g, n) for g, n in (("model", "vit_micro"), ("dataset", dataset), ("augment", augment))]
    start = start or choice("pretrain", "scratch")
    return CellConfig(*parts, start, dataclasses.replace(choice("recipe", "quick"), **recipe), seed)


def write_cell(
    folder, augment, seed, top1, state="finished", dataset="digits", mirror=False, commit="abc123456789", **recipe
):
    """A record as a run leaves it; with `mirror`, its offline W&B run too."""
    cell = make_cell(augment, seed, dataset, **recipe)
    record = Record(folder / identity(cell))
    labels = {"model": "vit_micro", "dataset": dataset, "augment": augment, "pretrain": "scratch", "recipe": "quick"}
    name = f"{augment}/s{seed}"
    record.write("config.yaml", {"schema_version": 1, "id": record.id, "name": name, "experiment": experiment(cell),
                                 "labels": labels, "runtime": {"devices": 1}})  # fmt: skip
    origin = {"commit": commit, "dirty": False, "device_name": "CPU"}
    record.write("provenance.json", origin)
    entry = {"id": record.id, "name": name, "part": "cell", "labels": labels, "aliases": [], "overrides": []}
    if state != "finished":
        record.write("failure.json", {"type": "ValueError", "message": "no luck"})
        return entry
    rng = np.random.default_rng(seed)
    label = np.arange(400) % 10
    right = np.arange(400) < round(top1 * 4)
    ranking = np.stack([np.where(right, label, (label + 1) % 10)] * 5, 1).astype(np.int32)
    np.savez(record.folder / "predictions.npz", index=np.arange(400), label=label, top5=ranking, loss=rng.random(400))
    figures = {"epoch": 18, "top1": top1, "top5": 99.0 + seed / 10, "loss": 0.3}
    result = {"last": figures, "best": figures | {"top1": top1 + 0.5}, "ema": None, "num_train": 1437, "num_eval": 400,
              "num_parameters": 155018, "images_per_second": 2000.0, "wall_seconds": 30.0, "device_seconds": 30.0,
              "epochs": 18, "derived": {}}  # fmt: skip
    rows = [{"epoch": e, "step": 44 * e, "train/loss": 2 / e, "eval/top1": top1 - 5 / e} for e in (1, 2, 3)]
    for row in rows:
        record.append_row(row)
    record.write("result.json", {"schema_version": 1, "id": record.id} | result | {"finished_at": None})
    if mirror:
        about = {"name": name, "study": "s", "labels": labels, "devices": 1} | origin
        run = Mirror(WandbConfig(mode="offline"), identity=record.id, name=name, study="s", folder=record.folder,
                     config=experiment(cell) | {"vitlab": about})  # fmt: skip
        for row in rows:
            run.log(row)
        run.finish(flat_summary(result) | {"hits": packed_hits(record.folder)})
    return entry


def write_all(folder, scores=SCORES, **options):
    cells = [write_cell(folder, a, s, v, **options) for a, values in scores.items() for s, v in enumerate(values)]
    write_study(folder, "s", {"table": None, "cells": cells})
    return collect(folder, "s")
