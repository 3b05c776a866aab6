"""A bug shows its traceback, on the screen and in the record, wherever it is; a mistake of the user's is one line."""

from __future__ import annotations

import json

import commands
import pytest
from written_records import write_all

SHORT = ["recipe.epochs=1", "recipe.warmup_epochs=0", "dataset.train_per_class=16", "wandb.mode=disabled"]
BREAKING = '''
import importlib.abc, importlib.util, os, sys

module, _, function = os.environ.get("BREAK", "").partition(":")


class Finder(importlib.abc.MetaPathFinder):
    """Imports the module that BREAK names with a function that raises ValueError, in every process."""

    def find_spec(self, name, path, target=None):
        if name != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(made):
            execute(made)
            setattr(made, function, broken)

        spec.loader.exec_module = exec_module
        return spec


def broken(*arguments, **named):
    raise ValueError("zip() argument 2 is longer than argument 1")


if module:
    sys.meta_path.insert(0, Finder())
'''


def run(program, *words, cwd, broken=""):
    """The finished command; `broken` is MODULE:FUNCTION, made to raise a ValueError."""
    (cwd / "sitecustomize.py").write_text(BREAKING, encoding="utf-8")
    return commands.run(program, *words, cwd=cwd, PYTHONPATH=str(cwd), BREAK=broken)


@pytest.mark.parametrize(
    ("program", "words", "broken"),
    [
        ("run.py", [*SHORT, "study.dry_run=true"], "vitlab.study.identity:name_cells"),
        ("run.py", ["task=preview"], "vitlab.cli.preview_task:draw_condition"),
        ("run.py", SHORT, "vitlab.data.sources.claims:require_data"),
        ("analyze.py", [], "vitlab.core.comparisons:compare"),
    ],
    ids=["plan", "task", "before training", "statistics"],
)
def test_a_bug_shows_its_traceback(tmp_path, program, words, broken):
    if program == "analyze.py":
        write_all(tmp_path / "runs", {"none": [90.0, 90.4], "mixup": [91.0, 91.5], "cutmix": [92.0, 92.5]})
    done = run(program, *words, cwd=tmp_path, broken=broken)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback (most recent call last)" in done.stderr
    assert 'sitecustomize.py", line' in done.stderr and "vitlab/" in done.stderr, "the frames down to the place"
    assert "ValueError: zip() argument 2 is longer than argument 1" in done.stderr
    assert not any(line.startswith("vitlab: ") for line in done.stderr.splitlines())


def test_a_bug_in_training_is_on_the_screen_and_in_the_record(tmp_path):
    done = run("run.py", *SHORT, cwd=tmp_path, broken="vitlab.train.step:train_step")
    assert done.returncode == 1
    (file,) = tmp_path.glob("runs/c*/failure.json")
    failure = json.loads(file.read_text(encoding="utf-8"))
    log = file.with_name("log.txt").read_text(encoding="utf-8")
    for text in (done.stdout, failure["traceback"], log):
        assert "Traceback (most recent call last)" in text and "train/loop.py" in text
        assert "ValueError: zip() argument 2 is longer than argument 1" in text
    assert failure["type"] == "ValueError"


@pytest.mark.parametrize(
    ("program", "words", "line"),
    [
        ("run.py", ["output_dir=here"], "output_dir: 'here' is a file; give a folder"),
        ("run.py", ["task=preview", "preview.file=sheet.foo"], "preview.file: 'sheet.foo' is no picture's name"),
        (
            "run.py",
            ["task=preview", "preview.file=here/sheet.png", "preview.pictures=0"],
            "here: no folder can be made",
        ),
        ("run.py", ["task=evaluate", "checkpoint=here"], "here: not a checkpoint"),
        ("run.py", [*SHORT, "recipe.lr=1e18", "recipe.optimizer=sgd"], "the loss is not finite since step"),
        ("analyze.py", ["tables_dir=here"], "tables_dir: 'here' is a file; give a folder"),
        ("analyze.py", ["source=deit_logs", "logs=here"], "here, line 1: not a line of DeiT's log.txt"),
    ],
    ids=["no folder", "no picture", "unwritable", "no checkpoint", "diverged", "no folder for tables", "no log"],
)
def test_a_mistake_is_a_line(tmp_path, program, words, line):
    (tmp_path / "here").write_text("a file\n", encoding="utf-8")
    if program == "analyze.py":
        write_all(tmp_path / "runs", {"none": [90.0, 90.4], "mixup": [91.0, 91.5]})
    done = run(program, *words, cwd=tmp_path)
    assert done.returncode == 1 and line in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.splitlines()[-1] if "loss" not in line else "vitlab: "
    assert last.startswith("vitlab: ")
