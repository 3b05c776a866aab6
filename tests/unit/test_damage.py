"""Damaged records never end in a traceback, and never give another number without a note that names the file.

Each damage (`damage.KINDS`) hits one file of a study of eight cells. Then the study's table is made, its command is
typed again (first as a dry run), and what the messages propose (`study.rerun='[ID]'`) is done.
"""

import contextlib
import dataclasses
import io
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import KINDS, copied_over, key_dropped, line_added, line_gone, not_a_number, swapped, wrong_type
from PIL import Image
from planned import with_study
from written_records import unseal, write_cell

from vitlab.analysis import collect
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import TableSpec
from vitlab.cli.train_task import run_study
from vitlab.config import experiment
from vitlab.core.errors import UserError
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.study.identity import Request, identity
from vitlab.study.plan import build_plan, study_content
from vitlab.study.provenance import record_data
from vitlab.study.record import Record
from vitlab.study.studies import write_study
from vitlab.train.checkpoint import save_checkpoint

SCORES = {"none": [90.0, 90.5, 89.75, None], "mixup": [91.0, 91.5, 91.25, "cut"]}
SPEC = TableSpec("t", "A title", "s", factor="augment", ticks={"Mixup": "augment.mixup"})


class World:
    """A study `s` of eight cells (six finished, one failed, one interrupted) below `folder`, damaged and reset."""

    def __init__(self, folder, compose_config, sealed=True):
        self.sealed = sealed
        self.runs, self.backup = folder / "runs", folder / "backup"
        for split, count in (("train", 16), ("val", 3)):
            for label in ("a", "b"):
                (folder / "images" / split / label).mkdir(parents=True)
                for i in range(count):
                    pixels = np.full((8, 8, 3), 20 * i % 250, np.uint8)
                    Image.fromarray(pixels).save(folder / "images" / split / label / f"{i}.png")
        shared = [f"output_dir={self.runs}", f"dataset.root={folder / 'images'}", "dataset.name=pictures"]
        shared += ["dataset=folder", "study.name=s", "recipe.epochs=3", "recipe.warmup_epochs=1", "wandb.mode=disabled"]
        words = [[f"augment={a}", f"seed={s}"] for a, scores in SCORES.items() for s in range(len(scores))]
        self.requests = [Request((*own, *shared), compose_config(*own, *shared)) for own in words]
        self._write(sealed)
        shutil.copytree(self.runs, self.backup)
        self.table, self.said = self.analyzed(), self.planned()

    def _write(self, sealed):
        config = self.requests[0].config
        dataset = resolve_class_list(config.cell.dataset, str(self.runs))
        data = record_data(str(self.runs), dataset)
        resolved = [dataclasses.replace(r.config, cell=dataclasses.replace(r.config.cell, dataset=dataset))
                    for r in self.requests]  # fmt: skip
        values = [(a, s, score) for a, scores in SCORES.items() for s, score in enumerate(scores)]
        for config, (augment, seed, score) in zip(resolved, values, strict=True):
            state = "failed" if score is None else "interrupted" if score == "cut" else "finished"
            write_cell(self.runs, augment, seed, score, state, sealed=sealed, cell=config.cell, data=data)
        cut = Record(self.runs / identity(resolved[-1].cell))
        cut.append_row({"epoch": 1, "step": 1, "train/loss": 2.0, "eval/top1": 50.0})
        state = {"config": experiment(resolved[-1].cell), "epoch": 1, "step": 1, "model": {"w": torch.ones(500)}}
        save_checkpoint(state | {"optimizer": {}, "fingerprint": "x", "seconds": 1.0}, cut.folder / "last.pt")
        requests = [dataclasses.replace(r, config=c) for r, c in zip(self.requests, resolved, strict=True)]
        plan = build_plan(requests, "s")
        for name in ("r", "s"):
            write_study(self.runs, name, study_content(plan, resolved[0]))
            if not sealed:
                unseal(self.runs / "studies" / f"{name}.json")
        other = (self.runs / "datasets/pictures.json").read_text(encoding="utf-8")
        (self.runs / "datasets/others.json").write_text(other.replace("pictures", "others"), encoding="utf-8")

    def reset(self):
        shutil.rmtree(self.runs)
        shutil.copytree(self.backup, self.runs)

    def targets(self):
        """Each file that can be damaged, with one of the same name that it can be swapped with."""
        folders = sorted(f for f in self.runs.iterdir() if f.name.startswith("c"))
        found = []
        for folder in folders:
            for file in sorted(f for f in folder.iterdir() if f.name != "lock"):
                others = [f / file.name for f in folders if f != folder and (f / file.name).exists()]
                found.append((file, others[0] if others else self.runs / "studies/r.json"))
        for name, other in (("studies/s.json", "studies/r.json"), ("datasets/pictures.json", "datasets/others.json")):
            found += [(self.runs / name, self.runs / other)] * 6
        return found

    def analyzed(self):
        """(What the table shows, its notes), or the message in place of a table."""
        try:
            table = build_table(collect(self.runs, "s"), SPEC)
        except UserError as error:
            return str(error), []
        rows = tuple(dataclasses.replace(row, notes=()) for row in table.rows)
        notes = [*table.notes, *(note for row in table.rows for note in row.notes)]
        return (table.caption, rows, table.findings, table.datasets), notes

    def planned(self, **study):
        """What a study's command prints, or its message; no cell is trained."""
        requests = [dataclasses.replace(r, config=with_study(r.config, **study)) for r in self.requests]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                run_study(requests, lambda plan, view: {}, prove=lambda plan: None)
            except UserError as error:
                print(error)
        return out.getvalue()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory, compose_config):
    return [World(tmp_path_factory.mktemp(n), compose_config, n == "sealed") for n in ("sealed", "old")]


def _applies(damage, file):
    if damage in (line_gone, line_added):
        return file.suffix == ".jsonl"
    return damage not in (wrong_type, not_a_number, key_dropped) or file.suffix != ".txt"


def suffer(world, rng):
    """Damage one file and look: (kind, file, what became of it)."""
    world.reset()
    damage = rng.choice(KINDS)
    file, other = rng.choice([pair for pair in world.targets() if _applies(damage, pair[0])])
    before = file.read_bytes()
    damage(file, rng, other)
    kind, name = damage.__name__, file.name
    if file.is_file() and file.read_bytes() == before:
        return kind, name, "no change"
    named = [str(file), *([str(other)] if damage in (swapped, copied_over) else [])]
    if not world.sealed:  # without digests it is not always known which of a cell's files is at fault
        named.append(file.parent.name)
    (shown, notes), said = world.analyzed(), []
    table = _judge_table(world, shown, notes, named)
    for study in ({"dry_run": True}, {}):
        said.append(world.planned(**study))
    plan = _judge_plan(world, said, named)
    proposed = set(re.findall(r"study\.rerun='\[(c\w{11})\]'", "\n".join([*notes, *said, str(shown)])))
    if proposed and plan != "refused":
        world.planned(rerun=tuple(sorted(proposed)))
        left = [str(f) for f in world.runs.glob("c*/archive/*")]
        assert {Path(f).parts[-3] for f in left} == proposed, "what is proposed is accepted, and archives the record"
    return kind, name, f"{table}, {plan}"


def _judge_table(world, shown, notes, named):
    """What became of the table; fails where something else is shown and no note names the file."""
    whole, before = world.table
    new = [note for note in notes if note not in before]
    told = any(name in note for note in new for name in named)
    if isinstance(shown, str):
        gone = "no study 's'" in shown and not Path(named[0]).exists()
        assert gone or any(name in shown for name in named), f"{named}: {shown}"
        return "refused"
    if shown == whole:
        return "noted" if told else "as before"
    if not told and not Path(named[0]).exists():  # without that file it is a cell that is not finished
        assert new and _figures(shown).items() <= _figures(whole).items(), f"{named}: {new}"
        return "missing and noted"
    if not told and not world.sealed and "studies" in named[0]:  # an old list may place or name a cell otherwise
        assert _figures(shown).items() <= _figures(whole).items(), f"{named}: another figure of a cell"
        return "as before"
    assert told, f"{named}: another table without a note\n{shown}\n{whole}\n{new}"
    return "missing and noted"


def _figures(shown):
    """Identity → top-1 in the table."""
    entries = [entry for row in shown[1] for entry in row.entries.values()]
    return {i: v for e in entries for i, v in zip(e.ids, e.values.get("last.top1", ()), strict=True)}


def _judge_plan(world, said, named):
    """What became of the plan; fails where a cell has another state or figure and no note names the file."""
    told = any(name in text for text in said for name in named)
    shown = _states(said[-1])
    if shown == _states(world.said):
        return "noted" if told else "as before"
    gone = not Path(named[0]).exists()  # without that file it is a cell that is not finished
    assert told or gone, f"{named}: another plan without a note\n" + "\n".join(said)
    for cell, state in shown.items():
        fitting = (_states(world.said)[cell], "damaged", *(("interrupted", "missing") if gone else ()))
        assert state in fitting, f"{named}: {cell} is {state} in the plan"
    return "noted" if shown else "refused"


def _states(said):
    """Identity → state and figure, as a command's summary prints them."""
    return dict(re.findall(r"^. \S+  (c\w{11})  (.*)$", said, re.MULTILINE))


def fuzz(worlds, count, seed):
    rng = random.Random(seed)
    outcomes = Counter()
    while outcomes.total() < count:
        kind, _, became = suffer(rng.choice(worlds), rng)
        if became != "no change":
            outcomes[kind, became] += 1
    return outcomes


def test_twenty_damages(worlds):
    outcomes = fuzz(worlds, 20, seed=0)
    assert len({became for _, became in outcomes}) > 2, "they differ in what they do"


@pytest.mark.slow
def test_four_hundred_damages(worlds):
    outcomes = fuzz(worlds, 400, seed=1)
    columns = sorted({became for _, became in outcomes})
    print("\n" + " | ".join(["kind", *columns]))
    for kind in KINDS:
        print(" | ".join([kind.__name__, *(str(outcomes[kind.__name__, c]) for c in columns)]))
