"""From records to tables: every source gives the same table, every gap is said, every format agrees."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from written_records import SCORES, SPEC, write_all, write_cell

from vitlab.analysis import collect
from vitlab.analysis.formats.text import to_markdown
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import TableSpec
from vitlab.cli.analyze import analyze
from vitlab.config import ConfigError, choice
from vitlab.config.choices import compose_group
from vitlab.core.errors import UserError
from vitlab.study.studies import write_study


def test_collect_is_tidy(tmp_path):
    frame = write_all(tmp_path)
    assert len(frame) == 12 and frame["last.top1"].notna().all()
    row = frame[frame["name"] == "mixup/s1"].iloc[0]
    assert row["augment.mixup"] == 0.8 and row["recipe.epochs"] == 18 and row["state"] == "finished"
    assert len(collect(tmp_path)) == 12
    with pytest.raises(UserError, match=r"no study 'x'.*there are: s"):
        collect(tmp_path, "x")


def test_the_table_says_what_it_should(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    assert [r.label for r in table.rows] == list(SCORES)
    assert table.rows[1].ticks == {"Mixup": (True, True), "Erase": (False, False)}
    assert not table.flags and "3 seeds" in table.caption and "400 images" in table.caption
    text = to_markdown(table)
    assert re.search(r"mixup +\| +\*\*✓\*\*", text) and "**91.23 ± 0.25**" in text
    assert "mixup +1.13 points over none, 95 % CI" in text and "no difference shown" in text
    assert "^a deit: everything at once" in text
    assert "- none: 90.00, 90.40, 89.90" in text


def test_gaps_and_confounds_are_said(tmp_path):
    scores = {k: v for k, v in SCORES.items() if k != "deit"}
    frame = write_all(tmp_path, scores)
    extra = [
        write_cell(tmp_path, "erase", 3, None, state="failed"),
        write_cell(tmp_path, "mixup", 5, 90.0, lr=0.5, commit="def"),
    ]
    frame = pd.concat(
        [frame, collect(tmp_path).query("id in @ids", local_dict={"ids": [e["id"] for e in extra]})], ignore_index=True
    )
    table = build_table(frame, SPEC)
    flags = " | ".join(table.flags)
    assert "erase/s3 failed (ValueError: no luck)" in flags and "deit: not run" in flags
    assert "recipe.lr" in flags and "2 versions of the code" in flags and "seeds" in flags
    assert "| deit" in to_markdown(table) and "--" in to_markdown(table)


def test_a_cell_resumed_on_other_code_is_said(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0, 90.5], "mixup": [91.0, 91.5]}, earlier=[{"commit": "old"}])
    flags = build_table(frame, dataclasses.replace(SPEC, rows=("none", "mixup"))).flags
    mixed = "2 versions of the code (commit abc123456, commit old)"
    assert f"none/s0 was resumed, and mixes {mixed}" in flags and f"the cells mix {mixed}" not in flags


def test_packages_and_threads_that_differ_are_noted_under_the_table(tmp_path):
    scores = {"none": [90.0], "mixup": [91.0]}
    write_all(tmp_path, scores, packages={"timm": "1.0.20"}, code="a" * 16)
    write_cell(tmp_path, "mixup", 0, 91.0, packages={"timm": "1.0.31"}, threads=4, code="a" * 16, commit="def")
    table = build_table(collect(tmp_path, "s"), dataclasses.replace(SPEC, rows=tuple(scores)))
    expected = ["versions of packages (timm 1.0.20 and 1.0.31)", "2 counts of CPU threads (1, 4)"]
    assert [f.removeprefix("the cells mix ") for f in table.flags] == expected, "not the commits: the code is one"
    assert "timm 1.0.20 and 1.0.31" in to_markdown(table)


def test_two_names_of_one_cell_are_counted_once(tmp_path):
    """deit_no_jitter is deit: the pooled variance, its degrees of freedom and the intervals must not see it twice."""
    scores = {"deit": [80.0, 81.0, 79.5], "deit_no_mixup": [81.0, 82.5, 81.2]}
    frame = write_all(tmp_path, scores)
    spec = dataclasses.replace(SPEC, rows=(*scores, "deit_no_jitter"), baseline="deit", footnotes={})
    table = build_table(frame, spec)
    alone = build_table(frame, dataclasses.replace(spec, rows=tuple(scores)))
    assert table.rows[1].entries == alone.rows[1].entries and table.detectable == alone.detectable
    twin = table.rows[2]
    assert twin.notes == ("the same cells as deit, counted once",) and not table.flags
    assert twin.entries["digits"].comparison.delta is None and twin.entries["digits"].values["last.top1"]


def test_a_product_has_main_effects_and_an_interaction(tmp_path):
    """augment × pretrain, compared with statsmodels' own table."""
    rng = np.random.default_rng(0)
    cells = [write_cell(tmp_path, a, s, float(round(80 + (a == "mixup") + 4 * (p == "checkpoint") + rng.normal(), 2)),
                        pretrain=p)
             for a in ("none", "mixup") for p in ("scratch", "checkpoint") for s in range(4)]  # fmt: skip
    write_study(tmp_path, "s", {"table": None, "cells": cells})
    frame = collect(tmp_path, "s")
    table = build_table(frame, dataclasses.replace(SPEC, rows=None, factor=None, baseline="none / scratch"))
    assert [e["effect"] for e in table.anova] == ["augment", "pretrain", "augment × pretrain"]
    data = frame.rename(columns={"label.augment": "a", "label.pretrain": "p", "last.top1": "y"})
    reference = anova_lm(ols("y ~ C(a) * C(p)", data[["a", "p", "y"]]).fit(), typ=2)
    assert [e["F"] for e in table.anova] == pytest.approx(list(reference["F"][:3]))
    assert re.search(r"- pretrain: F\(1, [\d.]+\) = [\d.]+, p < 0\.001", to_markdown(table))


def test_further_pairs_are_named_and_adjusted(tmp_path):
    frame = write_all(tmp_path)
    text = to_markdown(build_table(frame, dataclasses.replace(SPEC, pairs=(("mixup", "erase"), ("erase", "deit")))))
    assert "p by Holm" in text and "- erase 1.03 points below mixup, 95 % CI" in text
    with pytest.raises(ConfigError, match=r"pairs: 'mixupp' is no row of this table\. Did you mean 'mixup'"):
        build_table(frame, dataclasses.replace(SPEC, pairs=(("mixupp", "erase"),)))
    with pytest.raises(ConfigError, match="pairs: takes two different rows each"):
        build_table(frame, dataclasses.replace(SPEC, pairs=(("mixup", "mixup"),)))


def test_unlike_spread_and_cells_of_no_row_are_said(tmp_path):
    scores = {"none": [90.0, 90.1, 90.2], "mixup": [91.0, 70.0, 80.0], "jitter": [90.0]}
    frame, note = (
        write_all(tmp_path, scores),
        "statistics=pooled assumes equal scatter, and it is not equal (Bartlett, p < 0.001)",
    )
    table = build_table(frame, dataclasses.replace(SPEC, rows=("none", "mixup"), statistics="pooled"))
    assert any(note in line for line in table.notes) and "Dunnett, one variance for all rows" in table.caption
    table = build_table(frame, dataclasses.replace(SPEC, rows=("none", "mixup")))
    assert not any(note in line for line in table.notes) and "every row with its own scatter" in table.caption
    assert [flag for flag in table.flags if flag.startswith("in no row of this table, by their values: jitter/s0")]


def test_one_seed_speaks_of_checkpoints(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0], "mixup": [95.0]})
    text = to_markdown(build_table(frame, dataclasses.replace(SPEC, rows=("none", "mixup"))))
    assert "supports no ranking" in text and "95 % CI +" not in text
    found, below = text.split("These two checkpoints, not their conditions:")
    assert "McNemar" not in found and "- mixup: 20 images gained and 0 lost of 400 against none (exact McNemar" in below
    assert (
        "mixup +5.00 points over none, one seed: no conclusion about the condition; detecting a difference of" in found
    )
    assert re.search(r"would take \d+ seeds each, if they scatter by 2.24 points", found)


def test_data_sets_never_share_a_column(tmp_path):
    cells = [write_cell(tmp_path, a, s, 80.0 + s + (a == "mixup") + 5 * (d == "digits"), dataset=d)
             for a in ("none", "mixup") for d in ("digits", "fashion_mnist") for s in range(3)]  # fmt: skip
    write_study(tmp_path, "s", {"table": None, "cells": cells})
    table = build_table(collect(tmp_path, "s"), dataclasses.replace(SPEC, rows=None, factor=None, baseline=None))
    assert table.datasets == ("digits", "fashion_mnist") and [r.label for r in table.rows] == ["none", "mixup"]
    assert len(table.anova) == 3 and "fashion_mnist: top-1" in to_markdown(table)


def composed(folder, **changes):
    base = {"table": None, "source": "runs", "output_dir": str(folder), "study": None,
            "tables_dir": str(folder / "tables"),
            "baseline": None, "reference": None, "strict": False, "diff": None, "entity": None, "project": "vitlab",
            "refresh": False, "logs": None}  # fmt: skip
    return base | changes


def test_analyze_end_to_end_and_strict(tmp_path):
    write_all(tmp_path)
    lines = analyze(composed(tmp_path), None)
    assert (
        "| none" in lines[0] and (tmp_path / "tables/s.html").exists() and (tmp_path / "tables/s_curves.pdf").exists()
    )
    write_cell(tmp_path, "cutmix", 0, None, state="failed")
    cells = json.loads((tmp_path / "studies/s.json").read_text(encoding="utf-8"))["cells"]
    write_study(
        tmp_path, "s", {"table": None, "cells": [*cells, write_cell(tmp_path, "cutmix", 0, None, state="failed")]}
    )
    with pytest.raises(ConfigError, match=r"strict: .*cutmix"):
        analyze(composed(tmp_path, strict=True), None)
    with pytest.raises(ConfigError, match="baseline: 'nothing' is no row"):
        analyze(composed(tmp_path, baseline="nothing"), None)
    with pytest.raises(ConfigError, match="no study"):
        analyze(composed(tmp_path / "empty"), None)
    with pytest.raises(UserError, match="no study 'table3_3'"):
        analyze(composed(tmp_path, table=compose_group("table", "table3_3")), "table3_3")


def pretraining(name, **changes):
    """`pretrain=NAME` as a parsed configuration holds it, with other values in its recipe or its data set."""
    start = choice("pretrain", name)
    fractal = dataclasses.replace(start.dataset.fractal, **changes.pop("fractal", {}))
    counts = {"num_classes": fractal.categories, "num_train": fractal.categories * fractal.instances, "num_eval": 0}
    dataset = dataclasses.replace(start.dataset, fractal=fractal, **counts)
    return dataclasses.replace(start, dataset=dataset, recipe=dataclasses.replace(start.recipe, **changes))


def test_a_row_of_a_pretraining_holds_no_other(tmp_path):
    starts = {
        "scratch": [None] * 3,
        "fractaldb60": [pretraining("fractaldb60")] * 3,
        "fractaldb_small": [pretraining("fractaldb_small", epochs=4), *[pretraining("fractaldb_small")] * 2],
        "left out": [pretraining("fractaldb_small", fractal={"instances": 10})],
    }
    cells = [
        write_cell(tmp_path, "none", s, 80.0 + 5 * n + s, start=start)
        for n, seeds in enumerate(starts.values())
        for s, start in enumerate(seeds)
    ]
    write_study(tmp_path, "s", {"table": None, "cells": cells})
    rows = ("scratch", "fractaldb60", "fractaldb_small", "fractaldb")
    table = build_table(collect(tmp_path, "s"), TableSpec("t", "T", factor="pretrain", rows=rows, baseline="scratch"))
    means = {row.label: row.entries["digits"].mean("last.top1") for row in table.rows}
    assert means == {"scratch": 81.0, "fractaldb60": 86.0, "fractaldb_small": 91.0, "fractaldb": None}
    assert "fractaldb_small: its cells differ in pretrain.recipe.epochs" in table.flags
    assert "fractaldb: not run" in table.flags
    assert [flag for flag in table.flags if flag.startswith("in no row of this table, by their values: none/s0")]
    assert "The pre-training has one seed of its own: the spread covers fine-tuning only" in table.caption


def test_a_table_that_does_not_fit_is_one_message(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0]})
    for changes, message in (
        ({"factor": "augmnt"}, "table: factor 'augmnt' is no group. Did you mean 'augment'"),
        ({"factor": None}, "names rows .* but no factor"),
        ({"rows": ("nothing",)}, "augment: 'nothing' is no choice of conf/augment"),
        ({"ticks": {"Mixup": "augment.mixupp"}}, "the column 'Mixup' shows 'augment.mixupp', which no cell has"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_table(frame, dataclasses.replace(SPEC, **changes))


def test_a_factor_no_run_has(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0]})
    with pytest.raises(ConfigError, match=r"no cell of the study is a row of table=t"):
        build_table(frame, dataclasses.replace(SPEC, rows=("cutmix", "randaug")))


@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_cell_is_a_note_and_the_other_rows_stay(tmp_path, sealed):
    scores = {"none": [90.0, 90.5, 89.75], "mixup": [91.0, 91.5, 91.25], "erase": [90.0, 90.25, 90.5]}
    spec = dataclasses.replace(SPEC, rows=tuple(scores))
    whole = build_table(write_all(tmp_path, scores, sealed=sealed), spec)
    assert not whole.flags
    file = tmp_path / collect(tmp_path, "s")["id"][4] / "result.json"
    for text in (
        file.read_text(encoding="utf-8")[:40],
        file.read_text(encoding="utf-8").replace("91.5", "97.5"),
        "",
        '{"last": 3}',
        "\xff",
    ):
        file.write_text(text, encoding="latin-1")
        table = build_table(collect(tmp_path, "s"), spec)
        line, _ = table.flags
        assert line.startswith((f"mixup: mixup/s1: {file}: damaged (", f"mixup: mixup/s1: {file}: does not agree"))
        assert f"study.rerun='[{file.parent.name}]'" in line
        assert table.rows[1].entries["digits"].values["last.top1"] == (91.0, 91.25), "not another number"
        assert table.rows[2].entries["digits"].values == whole.rows[2].entries["digits"].values


def test_damage_beside_the_figures_is_noted_and_costs_no_row(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0], "mixup": [95.0]})
    spec = dataclasses.replace(SPEC, rows=("none", "mixup"))
    assert "McNemar" in to_markdown(build_table(frame, spec))
    one, two = (tmp_path / identity for identity in frame["id"])
    for name in ("predictions.npz", "metrics.jsonl"):
        (two / name).write_bytes((one / name).read_bytes() + b"\n")
        text = to_markdown(build_table(collect(tmp_path, "s"), spec))
        assert "95.00" in text and "McNemar" not in text
        assert f"- mixup/s0: {two / name}: damaged (not the file that result.json sums up); restore" in text


def test_diff_names_everything(tmp_path):
    a, b = write_cell(tmp_path, "none", 0, 90.0), write_cell(tmp_path, "mixup", 0, 95.0, commit="def")
    text = "\n".join(analyze(composed(tmp_path, diff=[a["id"], b["id"]]), None))
    assert "augment.mixup: 0.0 → 0.8" in text and "commit: abc123456789 → def" in text
    assert "disagree on 20 of 400 images (20 gained, 0 lost)" in text
    with pytest.raises(UserError, match="no cell 'c0'"):
        analyze(composed(tmp_path, diff=["c0", a["id"]]), None)


@pytest.mark.parametrize(
    "name", ["table3_2", "table3_3", "table3_3_add_one", "table3_3_leave_one_out", "quick_table3_2", "quick_table3_3"]
)
def test_every_layout_composes(name):
    layout = compose_group("table", name)
    assert layout["title"] and layout["study"]
