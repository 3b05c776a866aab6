"""docs/from_the_book.md: every row of its tables is carried out at toy size, and both languages say the same."""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import run
from PIL import Image

from vitlab.cli.flags import FLAGS, hints_for_flags
from vitlab.cli.train_task import load_task

ROOT = Path(__file__).parents[2]
TOY = ["recipe.epochs=1", "recipe.warmup_epochs=0", "recipe.batch_size=8", "model.image_size=32", "devices=1",
       "workers=0", "wandb.mode=disabled", "device=cpu"]  # fmt: skip
TREE = ["dataset.num_classes=2", "dataset.num_train=32", "dataset.num_eval=8"]
FRACTAL = ["categories=2", "instances=8", "image_size=32", "num_points=1000"]


def tables() -> list[list[list[str]]]:
    """The page's tables, as rows of cells without the header: three in English, the same three in Japanese."""
    found: list[list[list[str]]] = []
    before = ""
    for line in (ROOT / "docs/from_the_book.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| --- "):
            found.append([])
        elif line.startswith("|") and before.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        before = line
    return found


def code(cell: str) -> list[str]:
    """What stands between backquotes."""
    return re.findall(r"`([^`]+)`", cell)


COMMANDS, SETTINGS, HABITS = tables()[:3]
SINGLE = [code(row[1])[0] for row in COMMANDS if " -m " not in row[1]]
SWEEPS = [code(row[1])[0] for row in COMMANDS if " -m " in row[1]]
OVERRIDES = [code(row[1])[0] for row in [*SETTINGS, *HABITS] if code(row[1]) and "=" in code(row[1])[0]]
OVERRIDES += [code(row[2])[0] for row in HABITS if code(row[2])]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the page's commands name: an ImageNet of two classes, CIFAR, the book's checkpoints."""
    folder = tmp_path_factory.mktemp("book")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 40, 3), dtype=np.uint8)
    for i in range(40):
        split = "train" if i < 32 else "val"
        file = folder / "imagenet" / split / f"n{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(file)
    for name in ("ImageNet", "FractalDB-1k"):
        (folder / name).symlink_to(folder / "imagenet")
    names = {"label_names": [str(i) for i in range(10)], "fine_label_names": [str(i) for i in range(100)]}
    ten = dict.fromkeys((*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"), 10_000)
    for part, sizes in (("cifar-10-batches-py", ten), ("cifar-100-python", {"train": 50_000, "test": 10_000})):
        (folder / "data" / part).mkdir(parents=True)
        for name, count in sizes.items():  # grey images, as many as published: other counts are refused
            labels = {"labels": [i % 10 for i in range(count)], "fine_labels": [i % 100 for i in range(count)]}
            batch = {"data": np.full((count, 3072), 127, np.uint8), **labels}
            (folder / "data" / part / name).write_bytes(pickle.dumps(batch))
        for name in ("batches.meta", "meta"):
            (folder / "data" / part / name).write_bytes(pickle.dumps(names))
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32)
    args = argparse.Namespace(model="vit_tiny_16_224", data_set="ImageNet", input_size=32)
    for name in ("best_checkpoint.pth", "checkpoint.pth"):
        torch.save({"model": model.state_dict(), "args": args, "epoch": 295}, folder / name)
    return folder


def toy(words: list[str]) -> list[str]:
    """The command, with as little of everything as can be run."""
    text = " ".join(words)
    if "task=" in text:
        return [*words, "device=cpu", "workers=0", "wandb.mode=disabled"]
    small = list(TOY)
    if any(word in text for word in ("augment=deit", "augment=mixup", "augment.mixup", "augment.cutmix")):
        words = [word for word in words if not word.startswith("augment.mix_group=")]
        small.append("augment.mix_group=4")
    if "dataset=imagenet1k" in text:
        small += TREE
    elif "dataset=fractaldb1k" in text:
        small += [f"dataset.fractal.{word}" for word in FRACTAL]
    elif "dataset=cifar" in text:
        small += ["dataset.train_per_class=1"]
    else:
        small += ["dataset.train_per_class=2"]
    if "pretrain=fractaldb" in text:
        small += [f"pretrain.dataset.fractal.{word}" for word in FRACTAL]
        if "keep_head" in text and "dataset=" not in text:  # the digits' number of classes
            small.append("pretrain.dataset.fractal.categories=10")
        small += ["pretrain.recipe.epochs=1", "pretrain.recipe.warmup_epochs=0", "pretrain.recipe.batch_size=8"]
    if "model=vit_tiny" not in text:
        small = [word for word in small if not word.startswith("model.")]
    return [*words, *small]


@pytest.fixture
def carry_out(place, compose_config, train_here, monkeypatch, capsys):
    """Run a command's words in this process, in the folder; returns what it prints."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    importlib.import_module("run")  # knows of all tasks
    from vitlab.cli.train_task import TASKS

    def of(words: list[str]) -> str:
        here = toy([word.replace("=/data/", f"={place}/") for word in words])
        config = compose_config(*here)
        if config.task != "train":
            return "\n".join(load_task(TASKS[config.task])(config))
        train_here(*here)
        return capsys.readouterr().out

    return of


def test_both_languages_list_the_same():
    english, japanese = tables()[:3], tables()[3:]
    assert [[row[1] for row in table] for table in english[:2]] == [
        [row[1].replace("同じコマンドをもう一度", "the same command again") for row in table] for table in japanese[:2]
    ]
    for ours, theirs in zip(english, japanese, strict=True):
        assert len(ours) == len(theirs)
        for row, other in zip(ours, theirs, strict=True):
            flags = [set(re.findall(r"--[\w-]+", cell)) for cell in (row[0], other[0])]
            assert flags[0] == flags[1]
    assert len(SINGLE) >= 11 and len(SWEEPS) == 2 and len(OVERRIDES) >= 25


@pytest.mark.parametrize("command", SINGLE)
def test_a_command(carry_out, place, command):
    assert command.startswith("python run.py ")
    output = carry_out(command.split()[2:])
    if "task=evaluate" in command:
        assert "(book, epoch 295)" in output and "mean 0.485 0.456 0.406" in output and "n 8" in output
    elif "task=explain" in command:
        assert "wrote" in output
    else:
        assert "finished" in output
    if "keep_head" in command and "pretrain=checkpoint" in command:
        results = [json.loads(f.read_text(encoding="utf-8")) for f in place.glob("runs/c*/result.json")]
        loaded = [r["derived"]["pretrained"] for r in results if r["derived"]["pretrained"]]
        assert any("152 tensors loaded" in line and "dropped" not in line for line in loaded)


@pytest.mark.parametrize("overrides", sorted(set(OVERRIDES)))
def test_a_flag(carry_out, overrides):
    context = {"task=evaluate": "dataset.root=/data/imagenet", "pretrain=checkpoint": "model=vit_tiny_16_224"}
    words = overrides.split()
    carry_out([*words, *(more for word, more in context.items() if word in words)])


@pytest.mark.slow
@pytest.mark.parametrize("command", SWEEPS)
def test_a_sweep(place, command, tmp_path):
    words = [word.replace("=/data/", f"={place}/") for word in command.split()[2:]]
    small = [*TOY, *TREE, "recipe.batch_size=32", "model.depth=1", "recipe.precision=fp32"]
    typed = {word.partition("=")[0]: word for word in [*words, *small]}  # a key that is typed twice is refused
    for script, arguments in (("run.py", [*typed.values()]), ("analyze.py", [])):
        done = run(script, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "erase" in done.stdout


def test_every_flag_of_the_page_is_answered_when_it_is_typed():
    for row in SETTINGS:
        for flag in re.findall(r"--[\w-]+", row[0]):
            assert flag in FLAGS, flag
            assert hints_for_flags([flag])


def test_the_books_own_command_is_answered(tmp_path):
    """Typed as it stands in the book, it trains nothing and says what to type."""
    typed = "--batch-size 512 --data-path /path/ --data-set ImageNet --output_dir out --model vit_tiny_16_224 --no-aug"
    for words, expected in ((typed, "recipe.batch_size=N"), ("-m dataset=ImageNet", "dataset=imagenet1k")):
        done = run("run.py", *words.split(), cwd=tmp_path)
        assert done.returncode == 1 and expected in done.stderr and "docs/from_the_book.md" in done.stderr
        assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
