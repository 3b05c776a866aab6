"""Commands that name data, checkpoints or folders that are not there are answered without loading torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TYPE = """
import multiprocessing.forkserver, runpy, sys
sys.argv = [sys.argv[1], *sys.argv[2:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print(end.code)
started = multiprocessing.forkserver._forkserver._forkserver_pid is not None
print("LOADED", sorted({"torch", "timm", "torchvision"} & {*sys.modules}), "fork server" * started)
"""
"""Runs the command in this process; says what it was answered, and what was loaded for it."""


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("dataset=imagenet1k dataset.root=/nowhere", "dataset.root: there is no folder '/nowhere'; imagenet1k needs"),
        ("dataset=imagenet1k", "dataset.root: imagenet1k needs a folder"),
        ("dataset=cifar10 dataset.root=/nowhere", "dataset.root: no folder cifar-10-batches-py in '/nowhere'"),
        ("dataset=folder dataset.root=/nowhere", "dataset.root: '/nowhere' is no folder"),
        ("dataset=stl10 dataset.root=/nowhere", "dataset.root: no whole STL10 in '/nowhere' (there is no stl10_binary"),
        ("dataset=svhn dataset.root=/nowhere", "dataset.root: no whole SVHN in '/nowhere'"),
        ("dataset=fashion_mnist dataset.root=/nowhere", "dataset.root: no Fashion-MNIST in /nowhere"),
        ("dataset=digits dataset.pack=/nowhere", "/nowhere"),
        ("pretrain=checkpoint pretrain.path=/nowhere.pth", "pretrain.path: no file, cell folder or identity"),
        ("task=evaluate checkpoint=/nowhere.pth", "checkpoint: no file, cell folder or identity '/nowhere.pth'"),
        ("task=explain checkpoint=/nowhere.pth", "checkpoint: no file, cell folder or identity '/nowhere.pth'"),
        ("task=explain checkpoint=[/nowhere.pth]", "checkpoint: no file, cell folder or identity '/nowhere.pth'"),
        ("task=explain checkpoint=/nowhere.json", "checkpoint: '/nowhere.json' is no study's file"),
    ],
    ids=str,
)
def test_what_is_not_there_is_named_before_torch_is_loaded(typed, answer, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TYPE, ROOT / "run.py", *typed.split()], cwd=tmp_path, capture_output=True,
        encoding="utf-8", env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"},
    )  # fmt: skip
    *_, line, loaded = done.stdout.splitlines()
    assert answer in line and line.startswith("vitlab: "), done
    assert loaded.strip() == "LOADED []"
