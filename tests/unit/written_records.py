"""Finished and failed records as a run leaves them, for the tests of what reads them."""

import dataclasses
import re
import time

import numpy as np

from vitlab.analysis import collect
from vitlab.analysis.sources.wandb_files import read_offline_run
from vitlab.analysis.table_model import TableSpec
from vitlab.config import CellConfig, WandbConfig, choice, experiment
from vitlab.core.integrity import Fingerprint
from vitlab.study.identity import SEMANTICS, identity
from vitlab.study.record import Record, experiment_digest
from vitlab.study.studies import write_study
from vitlab.study.uploads import CellRun, summary_of

IMAGES = {
    split: Fingerprint(count, f"{split} names", f"{split} ends").plain()
    for split, count in (("train", 1437), ("eval", 400))
}
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


def make_cell(augment, seed, dataset="digits", pretrain="scratch", start=None, **recipe):
    parts = [choice(g, n) for g, n in (("model", "vit_micro"), ("dataset", dataset), ("augment", augment))]
    start = start or choice("pretrain", pretrain)
    if pretrain == "checkpoint":
        start = dataclasses.replace(start, path="before.pth", digest="0" * 64)
    return CellConfig(*parts, start, dataclasses.replace(choice("recipe", "quick"), **recipe), seed)


def write_cell(
    folder, augment, seed, top1, state="finished", dataset="digits", offline=False, commit="abc123456789", place=None,
    pretrain="scratch", earlier=(), packages=None, code=None, threads=1, data=IMAGES, sealed=True, cell=None,
    **recipe,
):  # fmt: skip
    """A record as a run leaves it, or as older versions left it (`sealed=False`); `offline` adds its W&B run."""
    cell = cell or make_cell(augment, seed, dataset, pretrain, **recipe)
    record = Record(folder / identity(cell))
    labels = {"model": "vit_micro", "dataset": dataset, "augment": augment, "pretrain": pretrain, "recipe": "quick"}
    name = f"{augment}/s{seed}"
    content = {"schema_version": 1, "id": record.id, "semantics": SEMANTICS, "name": name}
    content |= {"experiment": experiment(cell), "labels": labels, "runtime": {"devices": 1, "threads": threads}}
    record.write("config.yaml", content)
    origin = {"code": code, "commit": commit, "dirty": False, "device_name": "CPU", "packages": packages or {}}
    origin |= {"data": data}
    record.write("provenance.json", {"id": record.id} | origin | {"earlier": list(earlier)})
    entry = {"id": record.id, "name": name, "part": "cell", "labels": labels, "aliases": [], "overrides": []}
    entry |= {"experiment": experiment(cell)}
    run = None
    if offline:
        about = {"id": record.id, "name": name, "study": "s", "labels": labels, "devices": 1,
                 "part": "cell", "table": None, "place": place}  # fmt: skip
        about |= origin | {"digest": experiment_digest(experiment(cell))}
        run = CellRun(WandbConfig(mode="offline"), identity=record.id, name=name, study="s", folder=record.folder,
                     config=experiment(cell) | {"vitlab": about})  # fmt: skip
    if state != "finished":
        if state == "failed":
            record.fail("ValueError", "no luck", "…")
        if run is not None:
            run.finish({"failure": "ValueError: no luck"} if state == "failed" else None, int(state == "failed"))
            _wait_until_written(record.folder)
        return entry
    rng = np.random.default_rng(seed)
    label = np.arange(400) % 10
    right = np.arange(400) < round(top1 * 4)
    ranking = np.stack([np.where(right, label, (label + 1) % 10)] * 5, 1).astype(np.int32)
    np.savez(record.folder / "predictions.npz", index=np.arange(400), label=label, top5=ranking, loss=rng.random(400))
    epochs = [
        {"epoch": e, "top1": top1 + more, "top5": 99.0 + seed / 10, "loss": 0.3}
        for e, more in ((1, -5), (2, 0.5), (3, 0))
    ]
    result = {"last": epochs[2], "best": epochs[1], "ema": None, "num_train": 1437, "num_eval": 400,
              "num_parameters": 155018, "images_per_second": 2000.0, "wall_seconds": 30.0, "device_seconds": 30.0,
              "epochs": 3, "derived": {"num_parameters": 155018, "num_train": 1437, "num_eval": 400}}  # fmt: skip
    rows = [
        {"epoch": e["epoch"], "step": 44 * e["epoch"], "train/loss": 2 / e["epoch"]}
        | {f"eval/{key}": e[key] for key in ("top1", "top5", "loss")}
        for e in epochs
    ]
    for row in rows:
        record.append_row(row)
    if sealed:
        record.finish(result | {"finished_at": None})
    else:  # as before results had digests
        record.write("result.json", {"schema_version": 1, "id": record.id} | result | {"finished_at": None})
        for name in ("result.json", "provenance.json", "config.yaml"):
            unseal(record.folder / name)
    if run is not None:
        for row in rows:
            run.log(row)
        run.finish(summary_of(record, result))
        _wait_until_written(record.folder)
    return entry


def unseal(file):
    """Take the digest out of a file, as older versions wrote it."""
    text = re.sub(r',?\s*"?digest"?: "?\w{64}"?', "", file.read_text(encoding="utf-8"))
    file.write_text(text, encoding="utf-8")


def _wait_until_written(folder, seconds=60):
    """W&B's own process writes the file a moment after `finish` returns."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + seconds
    while (run := read_offline_run(file)) is None or run["state"] == "crashed":
        assert time.monotonic() < end, f"{file} has no end after {seconds} s"
        time.sleep(0.02)


def write_all(folder, scores=SCORES, **options):
    """A study `s` of these scores; None is a cell that failed."""
    planned = [(augment, seed, top1) for augment, values in scores.items() for seed, top1 in enumerate(values)]
    cells = [
        write_cell(folder, a, s, v, "failed" if v is None else "finished", place=place, **options)
        for place, (a, s, v) in enumerate(planned)
    ]
    write_study(folder, "s", {"table": None, "cells": cells})
    return collect(folder, "s")
