"""Commands that name data, checkpoints or folders that are not there are answered without loading torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TYPE = """
import multiprocessing.forkserver, os, runpy, sys
import hydra._internal.hydra, hydra.main, hydra_plugins.vitlab_sweeper, vitlab.cli.train_task, vitlab.study.launch_local
for place, words in enumerate(sys.argv[2:]):
    if os.fork():
        os.wait()
        continue
    sys.argv = [sys.argv[1], *words.split()]
    sys.stdout = open(f"{place}.txt", "w", encoding="utf-8")
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        print(end.code)
    started = multiprocessing.forkserver._forkserver._forkserver_pid is not None
    print("LOADED", sorted({"torch", "timm", "torchvision"} & {*sys.modules}), "fork server" * started)
    break
"""
"""Runs each command in a fork of this process; writes what it was answered, and what was loaded for it."""
CASES = [
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
]  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each command was answered, and the line about what was loaded."""
    folder = tmp_path_factory.mktemp("nowhere")
    subprocess.run(
        [sys.executable, "-c", TYPE, ROOT / "run.py", *(typed for typed, _ in CASES)], cwd=folder, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"},
    )  # fmt: skip
    written = [(folder / f"{place}.txt").read_text(encoding="utf-8") for place in range(len(CASES))]
    return {typed: text.splitlines()[-2:] for (typed, _), text in zip(CASES, written, strict=True)}


@pytest.mark.parametrize(("typed", "answer"), CASES, ids=str)
def test_what_is_not_there_is_named_before_torch_is_loaded(answers, typed, answer):
    line, loaded = answers[typed]
    assert answer in line and line.startswith("vitlab: ")
    assert loaded.strip() == "LOADED []"
