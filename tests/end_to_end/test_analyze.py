"""analyze.py as a user types it: every key through Hydra, and the exit code of `strict=true`."""

from __future__ import annotations

import json

from commands import run
from written_records import write_all

from vitlab.config.choices import CONF


def analyze(folder, *words):
    return run("analyze.py", f"output_dir={folder}", f"tables_dir={folder}/tables", *words, cwd=folder)


def test_no_key_is_taken_for_a_group():
    """A folder in conf/ of a key's name would make Hydra look for a file there instead of taking the value."""
    keys = [
        line.partition(":")[0]
        for line in (CONF / "analyze.yaml").read_text(encoding="utf-8").splitlines()
        if line[:1].isalpha()
    ]
    assert "reference" in keys and "logs" in keys
    assert not [key for key in keys if (CONF / key).is_dir() and key not in ("defaults", "hydra")]


def test_pairs_and_a_reference_are_said_and_gaps_end_a_strict_run(tmp_path):
    write_all(tmp_path, {"none": [90.0, 90.4], "mixup": [91.0, 91.5], "cutmix": [91.2, None]})
    (tmp_path / "book.csv").write_text(
        "row,dataset,figure,value,sd,source\nmixup,digits,top1,99,,the book\n", encoding="utf-8"
    )
    done = analyze(tmp_path, "pairs=[[mixup,cutmix]]", f"reference={tmp_path}/book.csv")
    assert done.returncode == 0, done.stderr
    assert "cutmix 0.05 points below mixup" in done.stdout and "differs beyond seed noise" in done.stdout
    strict = analyze(tmp_path, "strict=true")
    assert strict.returncode == 1 and "strict: the table has gaps" in strict.stderr
    assert "cutmix/s1 failed (ValueError: no luck)" in strict.stderr and "Traceback" not in strict.stderr


def test_deits_logs_are_a_table(tmp_path):
    for name, top1 in (("scratch_seed0", 70.8), ("scratch_seed1", 70.4), ("mixup_seed0", 71.9), ("mixup_seed1", 72.3)):
        (tmp_path / name).mkdir()
        line = {"train_lr": 1e-3, "train_loss": 3.0, "test_loss": 1.2, "test_acc1": top1, "test_acc5": 90.0}
        (tmp_path / name / "log.txt").write_text(
            json.dumps(line | {"epoch": 299, "n_parameters": 5717416}), encoding="utf-8"
        )
    done = analyze(tmp_path, "source=deit_logs", f"logs=[{tmp_path}]", "baseline=scratch")
    assert done.returncode == 0, done.stderr
    assert "mixup +1.50 points over scratch, 95 % CI" in done.stdout and "(300 epochs)" in done.stdout
