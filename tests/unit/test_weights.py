"""Reading everybody's checkpoints, written here in each format, and refusing what is none."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.scheduler import CosineLRScheduler
from torch import nn

from vitlab.cli.train_task import run_study
from vitlab.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConfigError,
    ModelConfig,
    PretrainConfig,
    experiment,
    find_checkpoint,
)
from vitlab.core.errors import UserError
from vitlab.core.integrity import DamagedError
from vitlab.models.build import build_model
from vitlab.models.restore import restore
from vitlab.models.weights import Weights, load_start, load_weights, read_checkpoint
from vitlab.study.identity import SEMANTICS, Request, identity
from vitlab.study.record import Record
from vitlab.train.checkpoint import load_checkpoint, save_checkpoint

MICRO = ModelConfig("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=64, depth=3, num_heads=4)


def tiny(num_classes: int = 1000, **sizes: int) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **sizes)


def save(content: object, file: Path) -> Path:
    torch.save(content, file)
    return file


def flags(**given: object) -> argparse.Namespace:
    """The arguments of DeiT's main.py, as far as they matter, with a few that do not."""
    usual = {"model": "deit_tiny_patch16_224", "data_set": "IMNET", "input_size": 224, "batch_size": 64, "lr": 5e-4,
             "output_dir": "", "clip_grad": None, "distributed": True}  # fmt: skip
    return argparse.Namespace(**(usual | given))


def training_state(model: nn.Module, given: dict[str, object]) -> dict:
    """What DeiT's main.py saves, of a model whose optimizer has made a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.cls_token.grad = torch.ones_like(model.cls_token)
    optimizer.step()
    scheduler = CosineLRScheduler(optimizer, t_initial=300)
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": scheduler.state_dict(),
        "epoch": 295, "model_ema": {k: v * 0.5 for k, v in model.state_dict().items()},
        "scaler": {"scale": 65536.0, "_growth_tracker": 0}, "args": flags(**given),
    }  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    state = training_state(tiny(), {"model": "vit_tiny_16_224", "data_set": "ImageNet", "aug": False})
    return save(state, folder / "best_checkpoint.pth")


def test_the_books(book):
    weights = read_checkpoint(book)
    assert (weights.kind, weights.epoch, weights.num_classes) == ("book", 295, 1000)
    assert weights.model == ModelConfig("vit_tiny_patch16_224", image_size=224)
    assert weights.arguments["aug"] is False
    data = weights.dataset
    assert data and (data.name, data.mean, data.std, data.eval_crop) == (
        "imagenet1k",
        IMAGENET_MEAN,
        IMAGENET_STD,
        0.875,
    )
    report = load_weights(build_model(weights.model, 1000), weights, keep_head=True)
    assert report.loaded == len(weights.state) and not (report.dropped or report.fresh or report.resized)
    averaged = read_checkpoint(book, weights="ema")
    torch.testing.assert_close(averaged.state["norm.weight"], weights.state["norm.weight"] * 0.5)


@pytest.mark.parametrize(
    ("given", "kind", "name", "mean", "crop"),
    [
        ({}, "deit", "imagenet1k", IMAGENET_MEAN, 0.875),
        ({"data_set": "CIFAR"}, "deit", "cifar100", IMAGENET_MEAN, 0.875),
        ({"eval_crop_ratio": 1.0}, "deit", "imagenet1k", IMAGENET_MEAN, 1.0),
        ({"model": "vit_tiny_16_224", "data_set": "CIFAR10"}, "book", "cifar10", (0.4914, 0.4822, 0.4465), 1.0),
        ({"model": "vit_tiny_16_224", "data_set": "FractalDB-1k"}, "book", "fractaldb1k", (0.5, 0.5, 0.5), 0.875),
    ],
)
def test_statistics_come_from_the_arguments(tmp_path, given, kind, name, mean, crop):
    state = {"model": tiny(num_classes=100).state_dict(), "args": flags(**given)}
    weights = read_checkpoint(save(state, tmp_path / "checkpoint.pth"))
    assert weights.dataset and weights.kind == kind
    assert (weights.dataset.name, weights.dataset.mean, weights.dataset.eval_crop) == (name, mean, crop)


def test_deits_distilled_model(tmp_path):
    model = timm.create_model("deit_tiny_distilled_patch16_224")
    file = save(
        {"model": model.state_dict(), "args": flags(model="deit_tiny_distilled_patch16_224")}, tmp_path / "d.pth"
    )
    weights = read_checkpoint(file)
    assert weights.model == ModelConfig("deit_tiny_distilled_patch16_224", image_size=224)
    assert not load_weights(build_model(weights.model, 1000), weights, keep_head=True).fresh


def test_timms_own(tmp_path):
    model = tiny(num_classes=12, img_size=96)
    args = argparse.Namespace(model="vit_tiny_patch16_224", mean=None, std=None, crop_pct=None, img_size=96)
    state = {"arch": "vit_tiny_patch16_224", "state_dict": model.state_dict(), "epoch": 4, "version": 2, "args": args}
    weights = read_checkpoint(save(state, tmp_path / "last.pth.tar"))
    assert (weights.kind, weights.epoch) == ("timm", 4)
    own = weights.dataset  # what train.py takes from the model's configuration
    assert own and (own.mean, own.std, own.eval_crop) == ((0.5,) * 3, (0.5,) * 3, 0.9)
    assert weights.model == ModelConfig("vit_tiny_patch16_224", image_size=96)
    args.mean, args.std, args.crop_pct = [0.5], [0.25], 0.9
    weights = read_checkpoint(save(state, tmp_path / "told.pth.tar"))
    assert weights.dataset and (weights.dataset.mean, weights.dataset.std) == ((0.5,) * 3, (0.25,) * 3)


def test_bare_tensors(tmp_path):
    """A state dict alone: the model where the shapes tell, never the statistics."""
    wrapped = {f"module.{k}": v for k, v in tiny(num_classes=5, img_size=64).state_dict().items()}
    weights = read_checkpoint(save(wrapped, tmp_path / "weights.pth"))
    assert (weights.kind, weights.dataset, weights.num_classes) == ("plain", None, 5)
    assert weights.model and not load_weights(build_model(weights.model, 5), weights, keep_head=True).fresh
    assert weights.model.image_size == 64
    micro = read_checkpoint(save(build_model(MICRO, 5).state_dict(), tmp_path / "micro.pth"))
    assert micro.model and micro.model.num_heads == 1, "the number of heads is in no tensor's shape"
    assert "1 heads (64 channels each by convention, which no tensor tells)" in micro.said[0]


def test_safetensors_with_and_without_a_card(tmp_path):
    save_file(tiny(num_classes=3).state_dict(), tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path / "model.safetensors").dataset is None
    card = {
        "architecture": "deit_tiny_patch16_224",
        "pretrained_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.9},
    }
    (tmp_path / "config.json").write_text(json.dumps(card), encoding="utf-8")
    weights = read_checkpoint(tmp_path / "model.safetensors")
    assert weights.model and weights.model.name == "deit_tiny_patch16_224"
    assert weights.dataset and (weights.dataset.mean, weights.dataset.eval_crop) == ((0.4,) * 3, 0.9)


def test_ours(tmp_path, compose_config):
    cell = compose_config("recipe.epochs=3").cell
    model = build_model(cell.model, 10)
    folder = tmp_path / "c0123456789a"
    folder.mkdir()
    save_checkpoint(
        {"model": model.state_dict(), "config": experiment(cell), "classes": list("0123456789"), "epoch": 3},
        folder / "last.pt",
    )
    assert find_checkpoint("c0123456789a", str(tmp_path)) == folder / "last.pt"
    weights = read_checkpoint(find_checkpoint(str(folder), "elsewhere"))
    assert (weights.kind, weights.epoch, weights.classes) == ("vitlab", 3, tuple("0123456789"))
    assert weights.model == cell.model and weights.dataset == cell.dataset
    with pytest.raises(ConfigError, match="no moving average"):
        read_checkpoint(folder / "last.pt", weights="ema")
    with pytest.raises(ConfigError, match="'c999'"):
        find_checkpoint("c999", str(tmp_path))
    start = ["pretrain=checkpoint", f"output_dir={tmp_path}"]
    by_name, by_file = (
        compose_config(*start, f"pretrain.path={path}").cell.pretrain for path in (folder.name, folder / "last.pt")
    )
    assert by_name == by_file and by_name.path == str(folder / "last.pt") and len(by_name.digest) == 64


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


class Command(Payload):
    def __reduce__(self):
        import os

        return (os.system, (f"touch {self.file}",))


@pytest.mark.parametrize("kind", [Payload, Command])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, kind, zipped):
    ran, file = tmp_path / "ran", tmp_path / "checkpoint.pth"
    content = {"model": tiny(num_classes=2).state_dict(), "epoch": kind(ran)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="refused: reading it would call or build") as error:
        read_checkpoint(file)
    assert str(file) in str(error.value) and not ran.exists()
    file.write_bytes(pickle.dumps(kind(ran), protocol=2))
    with pytest.raises(UserError, match="refused"):
        read_checkpoint(file)
    assert not ran.exists()


def test_what_is_no_checkpoint_is_named(tmp_path, book):
    whole = book.read_bytes()
    small = tmp_path / "small.safetensors"
    save_file({"a": torch.zeros(100)}, small)
    bad = {
        "text.pth": b"hello world\n" * 10, "empty.pth": b"", "picture.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        "half.pth": whole[: len(whole) // 2], "head.pth": whole[:100], "pickle.pth": pickle.dumps({"a": 1}),
        "half.safetensors": small.read_bytes()[:200], "text.safetensors": b"hello",
    }  # fmt: skip
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    for name, content in {"list.pth": [1, 2], "numbers.pth": {"epoch": 3}, "whole.pth": tiny(num_classes=2)}.items():
        save(content, tmp_path / name)
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="there is no file"):
        read_checkpoint(tmp_path / "nothing.pth")


def test_a_cnn_without_its_name_is_refused(tmp_path, compose_config):
    file = save({"state_dict": timm.create_model("resnet18", num_classes=3).state_dict()}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"resnet\.pth.*conv1\.weight.*not those of a Vision.*ResNet of timm"):
        restore(compose_config("task=evaluate", f"checkpoint={file}"), str(file))


def test_the_checkpoints_statistics_win_unless_told_otherwise(tmp_path, book, compose_config):
    task = ["task=evaluate", f"checkpoint={book}", "dataset=digits"]
    assert restore(compose_config(*task), str(book)).dataset.mean == IMAGENET_MEAN
    assert restore(compose_config(*task), str(book), statistics="dataset").dataset.mean == (0.5,) * 3
    words = ["dataset.eval_crop=0.9", "dataset.mean=[0.1,0.2,0.3]"]
    for start in (task, task[:2]):  # what the user sets counts, whoever tells the rest
        asked = restore(compose_config(*start, *words), str(book)).dataset
        assert (asked.eval_crop, asked.mean, asked.std) == (0.9, (0.1, 0.2, 0.3), IMAGENET_STD)
    own = restore(compose_config(*task[:2], "dataset.root=/data", "dataset.num_eval=7"), str(book)).dataset
    assert (own.name, own.root, own.num_eval, own.eval_crop) == ("imagenet1k", "/data", 7, 0.875)


def test_another_resolution_is_said(tmp_path, book, compose_config):
    words = ["task=evaluate", f"checkpoint={book}", "model=vit_tiny_16_224", "model.image_size=32"]
    restored = restore(compose_config(*words), str(book))
    assert restored.describe()[-1] == "resized: pos_embed (197, 192) → (5, 192)"
    plain = restore(compose_config(*words[:2]), str(book))
    assert not any("resized" in line for line in plain.describe())


def test_a_wrong_start_is_refused_by_its_key(tmp_path, book):
    model = build_model(MICRO, 10)
    start = PretrainConfig("checkpoint", path=str(book), weights="ema")
    typed = r"give the model that the checkpoint is of: model\.name=vit_tiny_patch16_224 model\.image_size=224$"
    with pytest.raises(ConfigError, match=rf"pretrain\.path: .*cls_token is .*{typed}"):
        load_start(model, start, book)
    bare = save(model.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match=r"^pretrain\.weights: .*bare\.pth holds no moving average"):
        load_start(model, start, bare)


def test_a_wrong_start_stops_the_command_before_anything_is_written(tmp_path, compose_config, capsys):
    def train(plan, view):
        raise AssertionError("nothing may be trained")

    model = timm.create_model("resnet18", num_classes=3)
    file = save({"state_dict": model.state_dict()}, tmp_path / "resnet.pth")
    words = ["pretrain=checkpoint", f"pretrain.path={file}", f"output_dir={tmp_path / 'runs'}"]
    with pytest.raises(ConfigError, match=r"^pretrain\.path: .*not those of a Vision Transformer"):
        run_study([Request((), compose_config(*words))], train)
    assert not (tmp_path / "runs").exists()
    save(build_model(MICRO, 10).state_dict(), file)
    assert run_study([Request((), compose_config(*words, "study.dry_run=true"))], train) == 0
    assert "resnet.pth (plain): 42 tensors loaded; dropped: head.weight, head.bias" in capsys.readouterr().out


def test_others_checkpoints_are_not_resumed(book, tmp_path, compose_config):
    with pytest.raises(ConfigError, match=r"cannot be resumed"):
        compose_config(f"checkpoint={book}")
    with pytest.raises(UserError, match=r"best_checkpoint\.pth: not of vitlab.*cannot be resumed.*pretrain=checkpoint"):
        load_checkpoint(book)


def test_a_damaged_checkpoint_of_ours_is_not_trained_over(tmp_path):
    assert load_checkpoint(tmp_path / "last.pt") is None
    save_checkpoint({"step": 3, "model": torch.zeros(10_000)}, tmp_path / "last.pt")
    whole = (tmp_path / "last.pt").read_bytes()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    flipped = bytearray(whole)
    flipped[20_000] ^= 4  # a bit of a weight, which PyTorch reads without a word
    for part in (whole[:5000], b"", bytes(flipped)):
        (tmp_path / "last.pt").write_bytes(part)
        with pytest.raises(DamagedError, match=rf"last\.pt: damaged.*study\.rerun='\[{tmp_path.name}\]'"):
            load_checkpoint(tmp_path / "last.pt")
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(DamagedError, match=r"last\.pt: is a folder"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_checkpoint_in_a_cells_folder_is_of_that_cell(tmp_path, compose_config):
    """Another cell's last.pt is refused; where the folder's own configuration is damaged, that is said."""
    config = compose_config(f"output_dir={tmp_path}")
    cells = [dataclasses.replace(config.cell, seed=seed) for seed in (0, 1)]
    records = [Record(tmp_path / identity(cell)) for cell in cells]
    for cell, record in zip(cells, records, strict=True):
        about = {"id": record.id, "semantics": SEMANTICS, "name": "x", "labels": {}, "runtime": {"devices": 1}}
        record.write("config.yaml", about | {"experiment": experiment(cell)})
        state = {"model": build_model(cell.model, 10).state_dict(), "config": experiment(cell), "epoch": 18}
        save_checkpoint(state, record.folder / "last.pt")
    evaluated = dataclasses.replace(config, task="evaluate", weights="raw")
    assert restore(evaluated, records[0].id).doubt is None
    shutil.copy(records[1].folder / "last.pt", records[0].folder / "last.pt")
    with pytest.raises(DamagedError, match=rf"{records[0].id}/last\.pt: belongs to another cell \(of another seed\)"):
        restore(evaluated, records[0].id)
    (records[0].folder / "config.yaml").write_text("semantics: [", encoding="utf-8")
    assert "config.yaml: damaged" in (restore(evaluated, records[0].id).doubt or "")
    newer = experiment(cells[1])
    newer["augment"] = newer["augment"] | {"a_field_added_later": 0}
    load_start(build_model(cells[1].model, 10), config.cell.pretrain, records[1].folder / "last.pt", newer)
    trained = experiment(cells[0])
    with pytest.raises(DamagedError, match="belongs to another cell"):
        load_start(build_model(MICRO, 10), config.cell.pretrain, records[0].folder / "last.pt", trained)


def test_weights_without_a_head_have_no_classes():
    assert Weights(Path("x"), {}, "plain").num_classes is None
