"""What seeds vary: further seeds that follow the cell's own, in the configuration, the data, the plan and the table."""

import dataclasses

import numpy as np
import pytest
from test_analysis import pretraining
from written_records import SPEC, make_cell, write_cell

from vitlab.analysis import collect
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import TableSpec
from vitlab.config import choice
from vitlab.data.sources.registry import build_source
from vitlab.study.estimate import plan_lines
from vitlab.study.identity import identity
from vitlab.study.plan import build_plan
from vitlab.study.studies import write_study

ROWS = TableSpec("t", "T", factor="pretrain", rows=("scratch", "fractaldb_small"), baseline="scratch")


def study(folder, paired):
    """Scratch and FractalDB, three seeds; the pre-training has the cell's seed or always 0."""
    cells = []
    for n, row in enumerate(("scratch", "fractaldb_small")):
        for seed in range(3):
            start = None
            if row != "scratch":
                start = dataclasses.replace(pretraining(row), seed=seed if paired else 0)
            cells.append(write_cell(folder, "none", seed, 80.0 + 5 * n + seed / 4, start=start))
    write_study(folder, "s", {"table": None, "cells": cells})
    return collect(folder, "s")


def test_paired_is_read_as_the_cells_seed(compose_config):
    three = compose_config("pretrain=fractaldb_small", "pretrain.seed=paired", "seed=3").cell
    assert three.pretrain.seed == 3 and three.pretraining.seed == 3
    assert identity(three) == identity(compose_config("pretrain=fractaldb_small", "pretrain.seed=3", "seed=3").cell)
    subset = compose_config("dataset.train_per_class=9", "dataset.subset_seed=paired", "seed=2").cell
    assert subset.dataset.subset_seed == 2
    assert identity(subset) != identity(compose_config("dataset.train_per_class=9", "seed=2").cell)


def test_without_a_subset_its_seed_changes_no_name(compose_config):
    assert identity(compose_config("dataset.subset_seed=5").cell) == identity(compose_config().cell)


def test_a_subset_is_drawn_by_its_seed():
    data = dataclasses.replace(choice("dataset", "digits"), train_per_class=5)
    kept = {s: build_source(dataclasses.replace(data, subset_seed=s), "train") for s in (None, 0, 1)}
    assert all(np.bincount(source.labels).tolist() == [5] * 10 for source in kept.values())
    prints = [source.fingerprint() for source in kept.values()]
    assert len(set(prints)) == 3 and prints[0] == build_source(data, "train").fingerprint()
    again = build_source(dataclasses.replace(data, subset_seed=1), "train")
    assert again.fingerprint() == prints[2]
    share = dataclasses.replace(choice("dataset", "digits"), train_fraction=0.1)
    parts = [build_source(dataclasses.replace(share, subset_seed=s), "train").fingerprint() for s in (None, 0, 1)]
    assert parts[0] == parts[1] != parts[2], "a fraction was always drawn by seed 0"


def test_the_table_says_what_varies(tmp_path):
    fixed = build_table(study(tmp_path / "fixed", paired=False), ROWS)
    assert fixed.rows[0].notes == ("its seeds vary initialisation, order and augmentation",)
    assert fixed.rows[1].notes[-1].endswith("order and augmentation; not the pre-training")
    assert "The pre-training has one seed of its own" in fixed.caption
    paired = build_table(study(tmp_path / "paired", paired=True), ROWS)
    assert [len(row.entries["digits"].seeds) for row in paired.rows] == [3, 3], "one row, not one for each seed"
    assert paired.rows[1].notes[-1].endswith("order and augmentation, the pre-training")
    assert "The pre-training has one seed of its own" not in paired.caption and not paired.flags


def test_one_line_for_all_where_nothing_differs(tmp_path):
    cells = [write_cell(tmp_path, a, s, 80.0 + s / 4, place=s) for a in ("none", "mixup") for s in range(3)]
    write_study(tmp_path, "s", {"table": None, "cells": cells})
    table = build_table(collect(tmp_path, "s"), dataclasses.replace(SPEC, rows=("none", "mixup"), footnotes={}))
    assert "seeds vary initialisation, order and augmentation" in table.notes and table.rows[0].notes == ()


def test_a_mixture_is_a_confound(tmp_path):
    cells = []
    for place, (augment, paired) in enumerate((("none", True), ("mixup", False))):
        for seed in range(3):
            cell = make_cell(augment, seed)
            data = dataclasses.replace(cell.dataset, train_per_class=20, subset_seed=seed if paired else None)
            cell = dataclasses.replace(cell, dataset=data)
            cells.append(write_cell(tmp_path, augment, seed, 80.0 + place + seed / 4, cell=cell))
    write_study(tmp_path, "s", {"table": None, "cells": cells})
    spec = dataclasses.replace(SPEC, rows=("none", "mixup"), footnotes={})
    table = build_table(collect(tmp_path, "s"), spec)
    confound = "the subset of the training images varies with the seed in none and not in mixup"
    assert table.datasets == ("digits",) and any(flag.startswith(confound) for flag in table.flags)
    assert table.rows[0].notes[-1].endswith("augmentation, the subset of the training images")
    assert table.rows[1].notes[-1].endswith("augmentation; not the subset of the training images")


def test_the_plan_has_a_pretraining_for_each_seed(requests_for):
    cells = [["pretrain=fractaldb60", "pretrain.seed=paired", f"seed={s}"] for s in range(2)]
    cells += [["pretrain=scratch", f"seed={s}"] for s in range(2)]
    plan = build_plan(requests_for(*cells), "s")
    starts = [cell for cell in plan.cells if cell.config.study.part == "pretraining"]
    assert len(starts) == 2 and {cell.config.cell.pretraining.seed for cell in plan.cells if cell.needs} == {0, 1}
    assert "2 seeds and 1 comparison" in "\n".join(plan_lines(plan)), "a condition, not one for each seed"


@pytest.mark.parametrize("words", [("pretrain.seed=pared",), ("dataset.subset_seed=-1",), ("dataset.subset_seed=1.5",)])
def test_other_values_are_refused(compose_config, words):
    from vitlab.config import ConfigError

    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        compose_config("pretrain=fractaldb_small", *words)
