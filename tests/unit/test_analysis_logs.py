"""DeiT's log.txt files as cells."""

import json
import math

import pytest

from vitlab.analysis import collect_logs
from vitlab.analysis.formats.text import to_markdown
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import TableSpec
from vitlab.config import ConfigError
from vitlab.core.errors import UserError


def test_deits_logs_become_a_table(tmp_path):
    for name, top in (("scratch", 70.8), ("finetuned", 69.4)):
        (tmp_path / name).mkdir()
        lines = [{"train_lr": 1e-3, "train_loss": 3.0, "test_loss": 1.2, "test_acc1": top - 1 + e, "test_acc5": 90.0,
                  "epoch": e, "n_parameters": 5717416} for e in (0, 1)]  # fmt: skip
        (tmp_path / name / "log.txt").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    frame = collect_logs([tmp_path])
    table = build_table(frame, TableSpec("deit_logs", "Logs"))
    assert {r.label: r.entries["as logged"].mean("last.top1") for r in table.rows} == {
        "scratch": 70.8,
        "finetuned": 69.4,
    }
    (tmp_path / "scratch" / "log.txt").write_text("epoch 1: fine\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"log\.txt, line 1: not a line of DeiT's"):
        collect_logs([tmp_path])
    with pytest.raises(ConfigError, match=r"no log\.txt"):
        collect_logs([tmp_path / "nowhere"])


def write_log(folder, *top1, **changes):
    lines = [{"train_lr": 1e-3, "train_loss": 3.0, "test_loss": 1.2, "test_acc1": top, "test_acc5": 90.0, "epoch": e,
              "n_parameters": 5717416} | changes for e, top in enumerate(top1)]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def test_seeds_are_told_by_the_folders(tmp_path):
    for seed, top in enumerate((70.0, 70.4)):
        write_log(tmp_path / f"scratch_seed{seed}", 60.0, top)
        write_log(tmp_path / "mixup" / f"s{seed}", 61.0, top + 2)
    write_log(tmp_path / "scratch_seed0_copied", 60.0, 70.0)  # of scratch_seed0: the same run
    table = build_table(collect_logs([tmp_path]), TableSpec("deit_logs", "Logs", factor="model", baseline="scratch"))
    rows = {row.label: row.entries["as logged"] for row in table.rows}
    assert rows["mixup"].seeds == (0, 1) and rows["mixup"].comparison.delta == pytest.approx(2.0)
    assert sum(len(entry.ids) for entry in rows.values()) == 4 and "95 % CI" in to_markdown(table)


def test_a_pre_training_was_not_evaluated(tmp_path):
    write_log(tmp_path / "scratch", 60.0, 70.0)
    (tmp_path / "fractal").mkdir()
    line = {"train_lr": 1e-3, "train_loss": 0.336, "epoch": 0, "n_parameters": 5717416}
    (tmp_path / "fractal" / "log.txt").write_text(json.dumps(line), encoding="utf-8")
    table = build_table(collect_logs([tmp_path]), TableSpec("deit_logs", "Logs", factor="model"))
    assert "fractal: fractal/s0 not evaluated" in to_markdown(table) and table.flags


def test_broken_logs_are_refused(tmp_path):
    write_log(tmp_path / "a" / "scratch", 60.0, math.nan)
    with pytest.raises(UserError, match=r"log\.txt, line 2: eval/top1 is nan, not a number"):
        collect_logs([tmp_path])
    write_log(tmp_path / "b" / "scratch", 60.0, 70.0)
    write_log(tmp_path / "c" / "scratch", 60.0, 71.0)
    with pytest.raises(UserError, match="two different logs are called scratch/s0; rename a folder"):
        collect_logs([tmp_path / "b", tmp_path / "c"])
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"empty\.txt: empty"):
        collect_logs([tmp_path / "empty.txt"])
