"""From records to tables: every source gives the same table, every gap is said, every format agrees."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from written_records import SCORES, SPEC, write_all, write_cell

from vitlab.analysis import collect, compare_to_baseline
from vitlab.analysis.command import analyze
from vitlab.analysis.deit_logs import collect_logs
from vitlab.analysis.page import to_html
from vitlab.analysis.reference import beside_reference, read_reference
from vitlab.analysis.render import to_csv, to_json, to_latex, to_markdown
from vitlab.analysis.statistics import (
    compare_checkpoints,
    dunnett,
    holm,
    indistinguishable_from_best,
    interaction,
)
from vitlab.analysis.table import TableSpec, build_table
from vitlab.analysis.wandb_source import collect_wandb, offline_runs
from vitlab.config import ConfigError, choice
from vitlab.config.choices import compose_group
from vitlab.study.record import write_study


def test_collect_is_tidy(tmp_path):
    frame = write_all(tmp_path)
    assert len(frame) == 12 and frame["last.top1"].notna().all()
    row = frame[frame["name"] == "mixup/s1"].iloc[0]
    assert row["augment.mixup"] == 0.8 and row["recipe.epochs"] == 18 and row["state"] == "finished"
    assert len(collect(tmp_path)) == 12
    with pytest.raises(ValueError, match=r"no study 'x'.*there are: s"):
        collect(tmp_path, "x")


def test_comparisons_are_scipys():
    groups = [np.array(v) for v in SCORES.values()]
    reference = stats.dunnett(*groups[1:], control=groups[0], rng=1)
    interval = reference.confidence_interval(0.95)
    ours = dunnett([list(g) for g in groups], 0)[1:]
    assert [c.p for c in ours] == pytest.approx(list(reference.pvalue), abs=1e-3)
    assert [c.low for c in ours] == pytest.approx(list(interval.low), abs=5e-3)
    assert [c.high for c in ours] == pytest.approx(list(interval.high), abs=5e-3)


def test_compare_to_baseline(tmp_path):
    compared = compare_to_baseline(write_all(tmp_path), "none", "label.augment", "last.top1")
    assert list(compared.columns) == ["level", "n", "mean", "sd", "delta", "ci_low", "ci_high", "p_adjusted", "mde"]
    assert compared.loc[1, "level"] == "mixup" and compared.loc[1, "delta"] == pytest.approx(91.2333 - 90.1, abs=1e-3)
    assert (
        compared.loc[1, "p_adjusted"]
        == compare_to_baseline(collect(tmp_path, "s"), "none", "label.augment").loc[1, "p_adjusted"]
    ), "the same to the last bit, every time"
    with pytest.raises(ValueError, match="no column 'colour'"):
        compare_to_baseline(collect(tmp_path, "s"), "none", "colour")
    with pytest.raises(ValueError, match="baseline 'all'"):
        compare_to_baseline(collect(tmp_path, "s"), "all", "label.augment")


def test_one_seed_gets_no_interval():
    for comparison in dunnett([[90.0], [95.0]], 0):
        assert comparison.low is None and comparison.p is None and not comparison.significant
    assert indistinguishable_from_best([[90.0], [95.0]]) == [False, False]
    assert indistinguishable_from_best(list(SCORES.values())) == [False, True, False, False]


def test_checkpoints_are_compared_exactly():
    first = np.array([1] * 80 + [0] * 20, bool)
    second = np.array([1] * 75 + [0] * 5 + [1] * 12 + [0] * 8, bool)
    result = compare_checkpoints(first, second)
    assert (result.only_first, result.only_second, result.delta) == (5, 12, 7.0)
    assert result.p == pytest.approx(stats.binomtest(5, 17).pvalue)
    assert result.low < 7 < result.high and compare_checkpoints(first, second) == result


def test_holm_and_anova():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(0)
    rows = [
        {"a": a, "b": b, "y": (a == "x") * 3 + (b == "u") + rng.normal(0, 0.1)}
        for a in "xz"
        for b in "uv"
        for _ in range(4)
    ]
    effects = interaction(pd.DataFrame(rows), "a", "b", "y").set_index("effect")
    assert effects.loc["a", "p"] < 1e-6 and effects.loc["b", "p"] < 1e-6 and effects.loc["a x b", "p"] > 0.01
    assert interaction(pd.DataFrame(rows[:1]), "a", "b", "y") is None


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


def test_all_formats_say_the_same(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    content = json.loads(to_json(table))
    assert [line["row"] for line in lines] == [r["label"] for r in content["rows"]] == list(SCORES)
    page, tex, text = to_html(table, {}, {}, "p"), to_latex(table), to_markdown(table)
    for line in lines:
        shown = f"{float(line['top1']):.2f}"
        assert all(shown in t for t in (page, tex, text))
        assert float(line["top1"]) == pytest.approx(np.mean([float(v) for v in line["top1_values"].split()]))
    assert tex.count(r"\begin{") == tex.count(r"\end{") and "✓" not in tex and r"\cmark" in tex
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


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
    assert "erase/s3 failed (ValueError: no luck)" in flags and "deit on digits: not run" in flags
    assert "recipe.lr" in flags and "2 code versions" in flags and "seeds" in flags
    assert "| deit" in to_markdown(table) and "--" in to_markdown(table)


def test_one_seed_speaks_of_checkpoints(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0], "mixup": [95.0]})
    text = to_markdown(build_table(frame, dataclasses.replace(SPEC, rows=("none", "mixup"))))
    assert "supports no ranking" in text and "Checkpoint-level: 20 images gained and 0 lost of 400" in text
    assert "95 % CI +" not in text


def test_data_sets_never_share_a_column(tmp_path):
    cells = [write_cell(tmp_path, a, s, 80.0 + s + (a == "mixup") + 5 * (d == "digits"), dataset=d)
             for a in ("none", "mixup") for d in ("digits", "fashion_mnist") for s in range(3)]  # fmt: skip
    write_study(tmp_path, "s", {"table": None, "cells": cells})
    table = build_table(collect(tmp_path, "s"), dataclasses.replace(SPEC, rows=None, factor=None, baseline=None))
    assert table.datasets == ("digits", "fashion_mnist") and [r.label for r in table.rows] == ["none", "mixup"]
    assert len(table.anova) == 3 and "fashion_mnist: top-1" in to_markdown(table)


def test_offline_wandb_gives_the_same_table(tmp_path):
    frame = write_all(tmp_path / "runs", {"none": [90.0, 91.0], "mixup": [92.0, 93.5]}, mirror=True)
    spec = dataclasses.replace(SPEC, rows=("none", "mixup"))
    ours = build_table(frame, spec)
    theirs = build_table(collect_wandb(None, "vitlab", "s", tmp_path / "runs", False), spec)
    for render in (to_markdown, to_latex, to_csv, to_json):
        assert render(ours) == render(theirs)
    run = offline_runs(tmp_path / "runs")[0]
    assert [row["epoch"] for row in run["history"]] == [1, 2, 3]


def test_a_torn_wandb_file_is_a_crashed_run(tmp_path):
    write_all(tmp_path / "runs", {"none": [90.0]}, mirror=True)
    (file,) = (tmp_path / "runs").rglob("run-*.wandb")
    file.write_bytes(file.read_bytes()[:-200])
    assert [r["state"] for r in offline_runs(tmp_path / "runs")] == ["crashed"]
    file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"not a \.wandb file"):
        offline_runs(tmp_path / "runs")
    with pytest.raises(ConfigError, match="no run of vitlab's"):
        collect_wandb(None, "vitlab", None, tmp_path / "empty", False)


def test_deits_logs_become_a_table(tmp_path):
    for name, top in (("scratch", 70.8), ("finetuned", 69.4)):
        (tmp_path / name).mkdir()
        lines = [{"train_lr": 1e-3, "train_loss": 3.0, "test_loss": 1.2, "test_acc1": top - 1 + e, "test_acc5": 90.0,
                  "epoch": e, "n_parameters": 5717416} for e in (0, 1)]  # fmt: skip
        (tmp_path / name / "log.txt").write_text("\n".join(map(json.dumps, lines)))
    frame = collect_logs([tmp_path])
    table = build_table(frame, TableSpec("deit_logs", "Logs"))
    assert {r.label: r.entries["as logged"].mean("last.top1") for r in table.rows} == {
        "scratch": 70.8,
        "finetuned": 69.4,
    }
    (tmp_path / "scratch" / "log.txt").write_text("epoch 1: fine\n")
    with pytest.raises(ValueError, match=r"log\.txt, line 1: not a line of DeiT's"):
        collect_logs([tmp_path])
    with pytest.raises(ConfigError, match=r"no log\.txt"):
        collect_logs([tmp_path / "nowhere"])


def test_a_reference_stands_beside(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    file = tmp_path / "book.csv"
    file.write_text(
        "row,dataset,figure,value,sd,source\nnone,digits,top1,90.0,,me\nmixup,*,top1,,,\nerase,digits,top1,70,,me\n"
    )
    text = to_markdown(beside_reference(table, read_reference(str(file))))
    assert "ours 90.10, reference 90.00 (me): +0.10, within seed noise" in text
    assert "not known" in text and "beyond seed noise" in text and "look at epochs" in text
    file.write_text("row,dataset,figure,value,sd,source\nother,digits,top1,90,,me\n")
    with pytest.raises(ConfigError, match=r"its rows \(other\) are none of the table's"):
        beside_reference(table, read_reference(str(file)))
    file.write_text("row,dataset,figure,value,sd,source\nnone,digits,top1,ninety,,me\n")
    with pytest.raises(ConfigError, match="'ninety' is no number"):
        read_reference(str(file))
    for name in ("book_table3_2", "book_table3_3", "deit_table8"):
        assert read_reference(name)


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
    cells = json.loads((tmp_path / "studies/s.json").read_text())["cells"]
    write_study(
        tmp_path, "s", {"table": None, "cells": [*cells, write_cell(tmp_path, "cutmix", 0, None, state="failed")]}
    )
    with pytest.raises(RuntimeError, match=r"strict: .*cutmix"):
        analyze(composed(tmp_path, strict=True), None)
    with pytest.raises(ConfigError, match="baseline: 'nothing' is no row"):
        analyze(composed(tmp_path, baseline="nothing"), None)
    with pytest.raises(ConfigError, match="no study"):
        analyze(composed(tmp_path / "empty"), None)
    with pytest.raises(ValueError, match="no study 'table3_3'"):
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
    assert "fractaldb on digits: not run" in table.flags
    assert [flag for flag in table.flags if flag.startswith("in no row of this table, by their values: none/s0")]
    assert "The pre-training has one seed of its own: the spread covers fine-tuning only" in table.caption


def test_a_factor_no_run_has(tmp_path):
    frame = write_all(tmp_path, {"none": [90.0]})
    with pytest.raises(ConfigError, match=r"no cell of the study is a row of table=t"):
        build_table(frame, dataclasses.replace(SPEC, rows=("cutmix", "randaug")))


def test_a_damaged_figure_is_refused(tmp_path):
    entry = write_cell(tmp_path, "none", 0, 90.0)
    file = tmp_path / entry["id"] / "result.json"
    content = json.loads(file.read_text())
    content["last"]["top1"] = math.nan
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"last\.top1 is nan; the record is damaged"):
        collect(tmp_path)
    file.write_text(file.read_text()[:40])
    with pytest.raises(ValueError, match=r"result\.json: damaged"):
        collect(tmp_path)


def test_diff_names_everything(tmp_path):
    a, b = write_cell(tmp_path, "none", 0, 90.0), write_cell(tmp_path, "mixup", 0, 95.0, commit="def")
    text = "\n".join(analyze(composed(tmp_path, diff=[a["id"], b["id"]]), None))
    assert "augment.mixup: 0.0 → 0.8" in text and "commit: abc123456789 → def" in text
    assert "disagree on 20 of 400 images (20 gained, 0 lost)" in text
    with pytest.raises(ValueError, match="no cell 'c0'"):
        analyze(composed(tmp_path, diff=["c0", a["id"]]), None)


@pytest.mark.parametrize(
    "name", ["table3_2", "table3_3", "table3_3_add_one", "table3_3_leave_one_out", "quick_table3_2", "quick_table3_3"]
)
def test_every_layout_composes(name):
    layout = compose_group("table", name)
    assert layout["title"] and layout["study"]


def test_finished_runs_of_one_cell_that_disagree_are_refused(tmp_path):
    for place, score in (("a", 90.0), ("b", 91.0)):
        write_all(tmp_path / place, {"none": [score]}, mirror=True)
    with pytest.raises(ValueError, match=r"two finished runs of cell c\w+ disagree \(last/top1 90\.0 and 91\.0\)"):
        offline_runs(tmp_path)


@pytest.mark.slow()
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex; Debian's texlive-latex-recommended has it")
def test_the_latex_compiles(tmp_path):
    (tmp_path / "t.tex").write_text(to_latex(build_table(write_all(tmp_path / "runs"), SPEC)))
    packages = r"\usepackage{booktabs,amssymb,graphicx}"
    (tmp_path / "main.tex").write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}\input{{t}}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (tmp_path / "main.pdf").exists(), done.stdout[-2000:]


@pytest.mark.slow()
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_error_rates_under_the_null(seeds):
    """7 ablations that do nothing: how often any interval leaves zero out (4 to 6 %), and the coverage of true ones."""
    from vitlab.dunnett import critical_value

    rng = np.random.default_rng(seeds)
    runs, k = 40_000, 7
    shifts = np.linspace(-1, 1, k + 1)
    data = rng.normal(0, 0.2, (runs, k + 1, seeds)) + shifts[:, None]
    means, pooled = data.mean(2), data.var(2, ddof=1).mean(1)
    half = critical_value((seeds,) * k, seeds, (k + 1) * (seeds - 1)) * np.sqrt(pooled * 2 / seeds)
    error = np.abs((means[:, 1:] - means[:, :1]) - (shifts[1:] - shifts[0]))
    covered = float((error <= half[:, None]).all(1).mean())
    print(f"{seeds} seeds: simultaneous coverage {100 * covered:.2f} %, family-wise error {100 * (1 - covered):.2f} %")
    assert 0.94 < covered < 0.96
    for run in range(20):
        ours = dunnett([list(g) for g in data[run]], 0)
        inside = all(c.low <= s - shifts[0] <= c.high for c, s in zip(ours[1:], shifts[1:], strict=True))
        assert inside == bool((error[run] <= half[run]).all())
