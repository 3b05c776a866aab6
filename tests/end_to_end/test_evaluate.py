"""`task=evaluate` as a user types it: on what training wrote, and on what others would write of the same weights."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitlab.config import ConfigError
from vitlab.train.evaluate_task import run_evaluate

ROOT = Path(__file__).parents[2]
TINY = ["recipe.epochs=2", "recipe.warmup_epochs=0", "dataset.train_per_class=64", "wandb.mode=disabled"]


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], cwd=cwd, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def figures(folder: Path, name: str) -> dict[str, float]:
    content = json.loads((folder / "runs/evaluate" / f"{name}.json").read_text())
    return {key: content[key] for key in ("top1", "top5", "loss")}


@pytest.fixture(scope="module")
def cell(tmp_path_factory) -> Path:
    """A trained cell, the folder it lies in, and files that other programs would have made of its weights."""
    folder = tmp_path_factory.mktemp("evaluate")
    done = run("augment=mixup", "recipe.ema_decay=0.9", *TINY, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = folder.glob("runs/c*")
    ours = torch.load(record / "last.pt", weights_only=True)
    args = argparse.Namespace(model="vit_tiny_patch16_224", data_set="FractalDB-1k", input_size=16)  # statistics 0.5
    ema = ours["model_ema"]
    torch.save({"model": ours["model"], "model_ema": ema, "args": args, "epoch": 1}, folder / "book.pth")
    told = argparse.Namespace(model="x", mean=[0.5], std=[0.5], crop_pct=1.0, img_size=16)
    state = {"arch": "vit_tiny_patch16_224", "state_dict": ours["model"], "state_dict_ema": ema, "args": told}
    torch.save(state, folder / "timm.pth.tar")
    torch.save(ours["model"], folder / "bare.pth")
    save_file(ours["model"], folder / "weights.safetensors")
    return record


def test_it_repeats_the_trainings_own_figures_to_the_digit(cell):
    result = json.loads((cell / "result.json").read_text())
    folder = cell.parents[1]
    for weights, expected in (("raw", result["last"]), ("ema", result["ema"]["last"])):
        done = run("task=evaluate", f"checkpoint={cell.name}", f"weights={weights}", cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"top-1 {expected['top1']:.3f} %, top-5 {expected['top5']:.3f} %" in done.stdout
        assert f"loss {expected['loss']:.6f}, n 360" in done.stdout
        assert figures(folder, f"{cell.name}_last_digits_{weights}") == {
            k: expected[k] for k in ("top1", "top5", "loss")
        }
    assert result["last"]["loss"] != result["ema"]["last"]["loss"]


def test_every_format_gives_the_same_figures(cell):
    """One command, five files: the statistics from the file where it tells, else from dataset=."""
    folder = cell.parents[1]
    files = ["book.pth", "timm.pth.tar", "bare.pth", "weights.safetensors", str(cell / "best.pt")]
    words = ["model=vit_micro", "dataset=digits", "dataset.eval_crop=1.0", "evaluate.statistics=dataset"]
    done = run("task=evaluate", f"checkpoint=[{','.join(files)}]", *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("digits: ")]
    last = json.loads((cell / "result.json").read_text())["last"]
    assert len(lines) == 5 and all(f"loss {last['loss']:.6f}, n 360" in line for line in lines[:4])
    for kind in ("(book, epoch 1)", "(timm)", "(plain)", "(vitlab, epoch "):
        assert kind in done.stdout
    averaged = run("task=evaluate", "checkpoint=timm.pth.tar", "weights=ema", *words[:2], cwd=folder)
    ema = json.loads((cell / "result.json").read_text())["ema"]["last"]
    assert f"loss {ema['loss']:.6f}, n 360" in averaged.stdout, averaged.stdout + averaged.stderr


def test_two_devices_see_every_image_once(cell):
    folder = cell.parents[1]
    done = run("task=evaluate", f"checkpoint={cell.name}", "devices=2", "output_dir=runs", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((cell / "result.json").read_text())["last"]
    again = figures(folder, f"{cell.name}_last_digits_raw")
    assert done.stdout.count("n 360") == 1 and again["top1"] == result["top1"]
    assert again["loss"] == pytest.approx(result["loss"], rel=1e-6)


def other_digits(folder: Path) -> Path:
    """A tree of ten classes, none of which is a digit's."""
    from PIL import Image

    for split in ("train", "val"):
        for name in "abcdefghij":
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (10, 20, 30)).save(folder / split / name / "1.png")
    return folder


@pytest.mark.parametrize("words", ["task=evaluate", "task=evaluate checkpoint=config.yaml"])
def test_a_mistake_ends_in_one_message(cell, words):
    done = run(*words.split(), cwd=cell)
    output = done.stdout + done.stderr
    assert done.returncode == 1 and "checkpoint" in output and "Traceback" not in output


def test_what_does_not_fit_is_named(cell, tmp_path, compose_config, monkeypatch):
    folder = cell.parents[1]
    monkeypatch.chdir(folder)
    tree = other_digits(tmp_path / "letters")
    cases = {
        "checkpoint=nowhere": "no file, cell folder or identity 'nowhere'",
        "checkpoint=bare.pth model=vit_micro": "name its data set",
        "checkpoint=bare.pth dataset=digits": "does not tell its model",
        f"checkpoint={cell} dataset=folder dataset.root={tree}": "class 0 is '0' there and 'a' in folder",
        "checkpoint=book.pth model=vit_micro": "has no images to evaluate on",
        f"checkpoint={cell} dataset=folder dataset.root={tree.parent}": "did you mean dataset.root=",
    }
    for words, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            run_evaluate(compose_config("task=evaluate", "device=cpu", *words.split()))
    ten = torch.load("bare.pth", weights_only=True)
    torch.save(ten | {"head.weight": ten["head.weight"][:3], "head.bias": ten["head.bias"][:3]}, "three.pth")
    with pytest.raises(ConfigError, match="classifier has 3 classes and digits has 10"):
        words = ["checkpoint=three.pth", "dataset=digits", "model=vit_micro", "device=cpu"]
        run_evaluate(compose_config("task=evaluate", *words))
