"""What a row is compared with: its own block's baseline, or one for all; what is shown to be the same."""

import dataclasses

import numpy as np
import pytest
from written_records import SPEC, write_all, write_cell

from vitlab.analysis import collect
from vitlab.analysis.formats.text import to_csv, to_markdown
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import TableSpec
from vitlab.config import ConfigError
from vitlab.core import welch
from vitlab.study.studies import write_study

FREE = dataclasses.replace(SPEC, rows=None, factor=None, baseline=None, footnotes={})
VALUES = {
    ("none", "scratch"): [80.0, 80.5, 79.75],
    ("mixup", "scratch"): [82.0, 82.5, 81.5],
    ("none", "checkpoint"): [85.0, 85.25, 84.5],
    ("mixup", "checkpoint"): [85.0, 85.5, 84.75],
    ("erase", "checkpoint"): [83.0, 83.5, 83.75],
}


def two_factors(folder, values=VALUES):
    cells = [
        write_cell(folder, augment, seed, top1, pretrain=start)
        for (augment, start), scores in values.items()
        for seed, top1 in enumerate(scores)
    ]
    write_study(folder, "s", {"table": None, "cells": cells})
    return collect(folder, "s")


def by_hand(base, rows, of=1.0):
    """(delta, low, high) of each row against one baseline, at that part `of` the error."""
    variances = [np.var(v, ddof=1) for v in (base, *rows)]
    level = 1 - 0.95**of
    if len(rows) > 1:
        critical = welch.common_critical_value(variances[0], np.array(variances[1:]), 3, level)
    else:
        critical = float(welch.critical_value(variances[0] / sum(variances), 2, 2, level))
    halves = [critical * np.sqrt((variances[0] + v) / 3) for v in variances[1:]]
    deltas = [np.mean(row) - np.mean(base) for row in rows]
    return [(d, d - h, d + h) for d, h in zip(deltas, halves, strict=True)]


def test_each_row_stands_beside_the_baseline_of_its_block(tmp_path):
    table = build_table(two_factors(tmp_path), FREE)
    assert [row.label for row in table.rows] == [f"{a} / {p}" for a, p in VALUES], "block by block, baseline first"
    entries = {tuple(row.label.split(" / ")): row.entries["digits"] for row in table.rows}
    for start, rows in (("scratch", ["mixup"]), ("checkpoint", ["mixup", "erase"])):
        base = entries["none", start]
        assert base.comparison.delta is None and base.versus is None
        wanted = by_hand(VALUES["none", start], [VALUES[row, start] for row in rows], of=len(rows) / 3)
        for row, figures in zip(rows, wanted, strict=True):
            c = entries[row, start].comparison
            assert entries[row, start].versus == f"none / {start}"
            assert (c.delta, c.low, c.high) == pytest.approx(figures)
    text = to_markdown(table)
    assert "Δ to none of the same pre-training" in text and "hold for all rows together" in text
    assert "mixup / checkpoint +0.17 points over none / checkpoint" in text
    line = next(line for line in to_csv(table).splitlines() if line.startswith("rows,erase / checkpoint"))
    assert ",none / checkpoint," in line


def test_what_all_models_have_in_brackets_is_in_the_caption(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0, 90.5], "mixup": [91.0, 91.5]})
    large, deep = "vit_small(image_size=32)", "vit_tiny(depth=6,image_size=32)"
    mixup = frame["name"].str.startswith("mixup")
    for column in [c for c in frame if c.startswith("augment.")]:
        frame[column] = [frame.loc[~mixup, column].iloc[0]] * len(frame)
    frame["model.depth"] = [6 if one else 12 for one in mixup]
    frame["label.model"] = [deep if one else large for one in mixup]
    table = build_table(frame, TableSpec("s", "Study s", study="s"))
    assert [row.label for row in table.rows] == ["vit_small", "vit_tiny(depth=6)"]
    assert "Model vit_small, vit_tiny(depth=6) (each with image_size=32), data set" in table.caption
    frame["label.model"] = [deep if one else "vit_small" for one in mixup]
    assert [row.label for row in build_table(frame, TableSpec("s", "Study s", study="s")).rows] == ["vit_small", deep]


def test_one_baseline_for_all_where_it_is_asked_for(tmp_path):
    frame = two_factors(tmp_path)
    for spec in (dataclasses.replace(FREE, against="one"), dataclasses.replace(FREE, baseline="none / scratch")):
        table = build_table(frame, spec)
        entry = {row.label: row.entries["digits"] for row in table.rows}["mixup / checkpoint"]
        others = [VALUES[key] for key in VALUES if key != ("none", "scratch")]
        wanted = by_hand(VALUES["none", "scratch"], others)[others.index(VALUES["mixup", "checkpoint"])]
        c = entry.comparison
        assert (c.delta, c.low, c.high) == pytest.approx(wanted) and "Δ to none / scratch with" in table.caption
    blocks = build_table(frame, dataclasses.replace(FREE, baseline="mixup"))
    entries = {row.label: row.entries["digits"] for row in blocks.rows}
    assert entries["erase / checkpoint"].versus == "mixup / checkpoint" and entries["mixup / scratch"].versus is None


def test_a_block_without_a_baseline_is_compared_with_nothing(tmp_path):
    values = {k: v for k, v in VALUES.items() if k != ("none", "checkpoint")}
    table = build_table(two_factors(tmp_path, values), FREE)
    entries = {row.label: row.entries["digits"] for row in table.rows}
    assert entries["mixup / checkpoint"].comparison.delta is None and entries["mixup / scratch"].comparison.p
    told = "its block has no baseline (none of the same pre-training), so it is not compared"
    assert f"mixup / checkpoint: {told}" in table.flags and told in to_markdown(table)


def test_data_sets_are_blocks_and_hold_together(tmp_path):
    scores = {"none": [80.0, 80.5, 79.75], "mixup": [82.0, 82.5, 81.5], "erase": [79.0, 78.5, 79.5]}
    cells = [
        write_cell(tmp_path, augment, seed, top1 + 5 * (data == "digits"), dataset=data)
        for augment, values in scores.items()
        for seed, top1 in enumerate(values)
        for data in ("digits", "fashion_mnist")
    ]
    write_study(tmp_path, "s", {"table": None, "cells": cells})
    frame = collect(tmp_path, "s")
    spec = dataclasses.replace(FREE, baseline="none")
    together, apart = (build_table(frame, dataclasses.replace(spec, against=a)) for a in (None, "one"))
    for table, part in ((together, 0.5), (apart, 1.0)):
        c = {row.label: row.entries["fashion_mnist"] for row in table.rows}["mixup"].comparison
        wanted = by_hand(scores["none"], [scores["mixup"], scores["erase"]], part)[0]
        assert (c.delta, c.low, c.high) == pytest.approx(wanted)
    assert "hold for all rows and over the data sets together" in together.caption
    assert "hold for all rows together" in apart.caption
    assert build_table(frame, dataclasses.replace(spec, statistics="pooled")).rows[1].entries["digits"].comparison.p


def test_what_is_shown_to_be_the_same(tmp_path):
    scores = {
        "none": [90.0, 90.25, 90.0, 89.75],
        "mixup": [90.0, 90.25, 90.25, 89.75],
        "erase": [94.0, 94.5, 93.5, 94.0],
    }
    table = build_table(write_all(tmp_path, scores), dataclasses.replace(SPEC, rows=tuple(scores), margin=1.0))
    assert [row.entries["digits"].comparison.same for row in table.rows] == [None, True, False]
    assert any(line.startswith("mixup") and line.endswith("4 seeds: same within ±1.") for line in table.findings)
    assert not any(line.startswith("erase") and "same" in line for line in table.findings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 0.0}, "margin: got 0, allowed: more than 0, in points; for instance margin=0.5"),
        ({"margin": -1.0}, "margin: got -1, allowed: more than 0"),
        ({"against": "block"}, "baseline: block compares within each model, data set or pre-training, and this table"),
        ({"baseline": "blok"}, "baseline: 'blok' is no row of this table. Did you mean 'block'"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path, changes, message):
    frame = write_all(tmp_path, {"none": [90.0, 90.5], "mixup": [91.0, 91.5]})
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build_table(frame, dataclasses.replace(FREE, **changes))
