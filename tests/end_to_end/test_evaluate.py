"""`task=evaluate` as a user types it: on what training wrote, and on what others would write of the same weights."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from commands import run
from safetensors.torch import save_file

from vitlab.cli.evaluate_task import run_evaluate
from vitlab.core.errors import UserError

STATISTICS = ["dataset.mean=[0.485,0.456,0.406]", "dataset.std=[0.229,0.224,0.225]", "dataset.eval_crop=0.875"]
TINY = ["recipe.warmup_epochs=0", "wandb.mode=disabled", *STATISTICS]


FLAGS = {
    "best_checkpoint.pth": {"model": "vit_tiny_16_224", "data_set": "ImageNet"},
    "deit.pth": {"model": "deit_tiny_patch16_224", "data_set": "IMNET"},
    "checkpoint_299.pth": {"model": "vit_tiny_16_224", "data_set": "FractalDB-1k"},
}
"""File → the arguments of the book's main.py, or DeiT's, in it. The last one's statistics are 0.5."""


@pytest.fixture
def evaluate(cell, compose_config, monkeypatch):
    """Run `task=evaluate` in this process, in the cell's folder; returns what the command prints."""
    monkeypatch.chdir(cell.parents[1])
    return lambda *words: "\n".join(run_evaluate(compose_config("task=evaluate", "device=cpu", *words)))


def figures(folder: Path, name: str) -> dict[str, float]:
    content = json.loads((folder / "runs/evaluate" / f"{name}.json").read_text(encoding="utf-8"))
    return {key: content[key] for key in ("top1", "top5", "loss")}


@pytest.fixture(scope="module")
def cell(tmp_path_factory, train_here) -> Path:
    """A trained cell, the folder it lies in, and files that other programs would have made of its weights."""
    folder = tmp_path_factory.mktemp("evaluate")
    few = ["recipe.epochs=4", "dataset.train_per_class=64", "recipe.batch_size=16"]
    train_here("recipe.ema_decay=0.9", *few, *TINY, f"output_dir={folder}/runs")
    (record,) = folder.glob("runs/c*")
    ours = torch.load(record / "last.pt", weights_only=True)
    both = {"model": ours["model"], "model_ema": ours["model_ema"], "epoch": 3}
    for name, given in FLAGS.items():
        torch.save(both | {"args": argparse.Namespace(input_size=16, **given)}, folder / name)
    told = argparse.Namespace(model="x", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], crop_pct=0.875)
    state = {"arch": "vit_tiny_patch16_224", "state_dict": ours["model"], "state_dict_ema": ours["model_ema"]}
    torch.save(state | {"args": told}, folder / "timm.pth.tar")
    torch.save(ours["model"], folder / "bare.pth")
    (folder / "hub").mkdir()
    card = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": vars(told)}
    (folder / "hub/config.json").write_text(json.dumps(card), encoding="utf-8")
    for file in ("weights.safetensors", "hub/model.safetensors"):
        save_file(ours["model"], folder / file)
    return record


def test_it_repeats_the_trainings_own_figures_to_the_digit(cell, evaluate):
    result = json.loads((cell / "result.json").read_text(encoding="utf-8"))
    folder = cell.parents[1]
    for weights, expected in (("raw", result["last"]), ("ema", result["ema"]["last"])):
        printed = evaluate(f"checkpoint={cell.name}", f"weights={weights}")
        assert f"top-1 {expected['top1']:.3f} %, top-5 {expected['top5']:.3f} %" in printed
        assert f"loss {expected['loss']:.6f}, n 360" in printed
        assert figures(folder, f"{cell.name}_last_digits_{weights}") == {
            k: expected[k] for k in ("top1", "top5", "loss")
        }
    assert result["last"]["loss"] != result["ema"]["last"]["loss"]


def test_every_format_gives_the_same_figures(cell, evaluate):
    """Statistics and crop come from the file where it tells them (ImageNet's, 0.875), not from digits or timm."""
    tell = ["best_checkpoint.pth", "deit.pth", "timm.pth.tar", "hub/model.safetensors", cell.name, str(cell)]
    silent = ["checkpoint_299.pth", "bare.pth", "weights.safetensors"]
    last = json.loads((cell / "result.json").read_text(encoding="utf-8"))["last"]
    assert last["top1"] > 15, "better than chance, or equal figures would say little"
    kinds = []
    for files, words in ((tell, []), (silent, STATISTICS)):
        listed = f"checkpoint=[{','.join(files)}]"
        printed = evaluate(listed, "model=vit_micro", "dataset=digits", *words)
        lines = [line for line in printed.splitlines() if line.startswith("digits: ")]
        shown = f"top-1 {last['top1']:.3f} %, top-5 {last['top5']:.3f} %, loss {last['loss']:.6f}, n 360"
        assert len(lines) == len(files) and all(shown in line for line in lines), printed
        assert printed.count("mean 0.485 0.456 0.406, std 0.229 0.224 0.225; shorter side to 18") == len(files)
        kinds += re.findall(r"^checkpoint \S+ \((\w+)", printed, re.MULTILINE)
    assert kinds == ["book", "deit", "timm", "timm", "vitlab", "vitlab", "book", "plain", "plain"]
    ema = json.loads((cell / "result.json").read_text(encoding="utf-8"))["ema"]["last"]
    files = "checkpoint=[deit.pth,timm.pth.tar]"
    averaged = evaluate(files, "weights=ema", "model=vit_micro", "dataset=digits")
    assert averaged.count(f"loss {ema['loss']:.6f}, n 360") == 2, averaged


def test_every_format_can_be_fine_tuned(cell, train_here, monkeypatch, capsys):
    """A study over the files: what became of their tensors is printed, and all train to the same figures."""
    monkeypatch.chdir(cell.parents[1])
    files = [*FLAGS, "timm.pth.tar", "bare.pth", "weights.safetensors", str(cell)]
    words = [*TINY, "recipe.epochs=1", "dataset.train_per_class=8", "output_dir=tuned", "device=cpu"]
    train_here(*words, "pretrain=checkpoint", f"pretrain.path={','.join(files)}")
    printed = capsys.readouterr().out
    assert printed.count("42 tensors loaded; dropped: head.") == 7
    line = "42 tensors loaded; dropped: head.weight, head.bias; fresh: head.weight, head.bias"
    assert f"checkpoint best_checkpoint.pth (book, epoch 3): {line}" in printed
    results = [json.loads(file.read_text(encoding="utf-8")) for file in Path("tuned").glob("c*/result.json")]
    assert len(results) == 7 and all(r["last"] == results[0]["last"] for r in results)


def test_the_command_gives_the_same_digits_on_any_number_of_devices(cell):
    folder = cell.parents[1]
    done = run("run.py", "task=evaluate", f"checkpoint={cell.name}", "devices=2", "output_dir=runs", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((cell / "result.json").read_text(encoding="utf-8"))["last"]
    assert done.stdout.count("n 360") == 1
    assert figures(folder, f"{cell.name}_last_digits_raw") == {k: result[k] for k in ("top1", "top5", "loss")}
    wrong = run("run.py", "task=evaluate", "checkpoint=bare.pth", "model=vit_micro", "devices=2", cwd=folder)
    assert wrong.returncode == 1 and "name its data set" in wrong.stderr and "Traceback" not in wrong.stderr


def other_digits(folder: Path) -> Path:
    """A tree of ten classes, none of which is a digit's."""
    from PIL import Image

    for split in ("train", "val"):
        for name in "abcdefghij":
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (10, 20, 30)).save(folder / split / name / "1.png")
    return folder


def test_a_mistake_ends_in_one_message(tmp_path):
    done = run("run.py", "task=evaluate", cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("vitlab: checkpoint: task=evaluate reads one")


def test_what_does_not_fit_is_named(cell, tmp_path, evaluate):
    tree = other_digits(tmp_path / "letters")
    cases = {
        "checkpoint=nowhere": "no file, cell folder or identity 'nowhere'",
        f"checkpoint={cell}/config.yaml": "config.yaml: not a checkpoint",
        "checkpoint=bare.pth model=vit_micro": "name its data set",
        f"checkpoint={cell} dataset=folder dataset.root={tree}": "class 0 is '0' there and 'a' in letters",
        "checkpoint=checkpoint_299.pth model=vit_micro": "has no images to evaluate on",
        f"checkpoint={cell} dataset=folder dataset.root={tree.parent}": "did you mean dataset.root=",
    }
    for words, message in cases.items():
        with pytest.raises(UserError, match=message):
            evaluate(*words.split())
    ten = torch.load("bare.pth", weights_only=True)
    torch.save(ten | {"head.weight": ten["head.weight"][:3], "head.bias": ten["head.bias"][:3]}, "three.pth")
    with pytest.raises(UserError, match="classifier has 3 classes and digits has 10"):
        evaluate("checkpoint=three.pth", "dataset=digits", "model=vit_micro")
