"""Both commands as other locales and other programs see them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run, start
from PIL import Image

ROOT = Path(__file__).parents[2]
SHORT = ["recipe.epochs=1", "recipe.warmup_epochs=0", "recipe.batch_size=8", "wandb.mode=disabled", "workers=0"]


IN_TURN = """
import glob, json, runpy, sys
for words in map(json.loads, sys.argv[1:]):
    sys.argv = [word.replace("CELL", "".join(glob.glob("runs/c[0-9a-f]*"))) for word in words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
"""
"""Runs several commands in one interpreter, since a start costs 8 s; CELL is the one cell there is."""


@pytest.mark.parametrize(
    "words",
    [["run.py", "--help"], ["analyze.py", "--help"], ["run.py", "study.dry_run=true"], ["run.py", "--cfg", "job"]],
)
def test_only_the_first_line_is_read(tmp_path, words):
    """`python run.py … | head -1`"""
    line = f"{sys.executable} {ROOT}/{' '.join(words)} | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    assert done.stderr == "" and done.stdout.count("\n") == 1


def test_a_reader_that_goes_while_cells_train_lets_them_save(tmp_path):
    process = start("run.py", "recipe.epochs=5000", "wandb.mode=disabled", "study.name=long", cwd=tmp_path)
    for line in process.stdout:
        if "epoch 1/5000" in line:
            break
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(120) == 141
    process.stderr.close()
    (cell,) = (tmp_path / "runs").glob("c[0-9a-f]*")
    log = (cell / "log.txt").read_text(encoding="utf-8").splitlines()
    assert (cell / "last.pt").is_file() and log[0] == "none/s0: starts" and log[-1] == "none/s0: interrupted"


def test_everything_in_the_c_locale(tmp_path):
    """A tree with names of any script is trained on, evaluated, looked into and tabulated, as UTF-8."""
    for split, count in (("train", 8), ("val", 2)):
        for i, name in enumerate(("猫", "hånd")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in range(count):
                picture = np.random.default_rng(k).integers(90 * i, 90 * i + 90, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / "data" / split / name / f"写真{k}.png")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    data = ["dataset=folder", "dataset.root=data", "dataset.name=hands"]

    def in_turn(*commands: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", IN_TURN, *(json.dumps([str(ROOT / script), *words]) for script, *words in commands)],
            cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=240,
            env=os.environ | plain | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    of_it = ["checkpoint=CELL", "dataset.root=data", "wandb.mode=disabled"]
    done = in_turn(
        ["run.py", *data, *SHORT, "study.name=s"],
        ["run.py", "task=evaluate", *of_it],
        ["run.py", "task=explain", "explain=rollout", *of_it, "explain.images=[eval,'data/val/*/*.png']"],
        ["analyze.py"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ none/s0" in done.stdout and "data: hands: 2 classes, 16 + 4 images in data" in done.stdout
    (cell,) = (tmp_path / "runs").glob("c[0-9a-f]*")
    assert "none/s0: epoch 1/1  loss " in (cell / "log.txt").read_text(encoding="utf-8")
    assert "hands: top-1" in done.stdout and "wrote runs/explain/rollout" in done.stdout, done.stdout
    assert "Δ (95 % CI)" in done.stdout and "✗" in done.stdout, done.stdout + done.stderr
    assert "✗" in (tmp_path / "tables" / "s.md").read_text(encoding="utf-8")

    fingerprint = json.loads((cell / "provenance.json").read_text(encoding="utf-8"))["data"]
    again = run("run.py", *data, *SHORT, "study.name=s", "study.rerun=all", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((cell / "provenance.json").read_text(encoding="utf-8"))["data"] == fingerprint
