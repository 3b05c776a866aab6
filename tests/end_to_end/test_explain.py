"""`task=explain` as a user asks for it, on files such as ours, DeiT's and the book's trainings write."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vitlab.cli.explain_task import run_explain
from vitlab.config import ConfigError, choice, plain
from vitlab.models.build import build_model

ROOT = Path(__file__).parents[2]

OTHERS = {
    "rotary": ("vit_small_patch16_rope_224", {"depth": 2, "embed_dim": 24, "num_heads": 2}),
    "swin": ("swin_s3_tiny_224", {"embed_dim": 12}),
}
ROTARY, SWIN = (
    [f"checkpoint={file}.pth", f"model.name={name}", "model.image_size=64", "dataset=imagenet1k", "dataset.root=none"]
    + [f"model.{key}={value}" for key, value in sizes.items()]
    for file, (name, sizes) in OTHERS.items()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two cells of a study, a checkpoint of the book's and a photograph."""
    folder = tmp_path_factory.mktemp("explain")
    model, data = choice("model", "vit_micro"), choice("dataset", "digits")
    config = {"model": plain(model), "dataset": plain(data), "recipe": {"precision": "fp32"}}
    cells = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_model(model, 10)
        torch.nn.init.normal_(network.get_parameter("head.weight"), std=0.2)
        cell = folder / "runs" / f"c0000000000{seed}"
        cell.mkdir(parents=True)
        state = {"model": network.state_dict(), "config": config, "schema_version": 1, "epoch": 3}
        torch.save(state | {"classes": [str(i) for i in range(10)]}, cell / "last.pt")
        (cell / "config.yaml").write_text(f"id: {cell.name}\nname: none/s{seed}\n", encoding="utf-8")
        cells.append({"id": cell.name, "name": f"none/s{seed}", "part": "cell"})
    (folder / "runs/studies").mkdir()
    (folder / "runs/studies/seeds.json").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    book = timm_vit()
    args = argparse.Namespace(model="vit_tiny_16_224", data_set="ImageNet", input_size=224)
    torch.save({"model": book.state_dict(), "args": args, "epoch": 299}, folder / "book.pth")
    for file, (name, sizes) in OTHERS.items():
        torch.save(timm.create_model(name, img_size=64, num_classes=3, **sizes).state_dict(), folder / f"{file}.pth")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)).save(folder / "noise.jpg")
    return folder


def timm_vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224")


@pytest.fixture
def explain(folder, compose_config, monkeypatch):
    """Run `task=explain` in this process, in the folder; returns the lines and the names of the files."""
    monkeypatch.chdir(folder)

    def run(*words: str):
        lines = run_explain(compose_config("task=explain", "wandb.mode=disabled", "explain.output=out", *words))
        files = {f.name for f in (folder / "out").iterdir()} if (folder / "out").exists() else set()
        for file in (folder / "out").glob("*") if files else ():
            if file.suffix != ".npy":
                file.unlink()
        return lines, files

    return run


def test_position(explain):
    lines, files = explain("explain=position", "checkpoint=[c00000000000,c00000000001]")
    stem = "c00000000000_last"
    assert {f"position_{stem}.png", f"filters_{stem}.pdf", f"distance_{stem}.npy", "distance_checkpoints.png"} <= files
    assert np.load("out/position_c00000000000_last.npy").shape == (4, 4, 4, 4)
    assert any(line.startswith("next: ") for line in lines)


def test_rollout_without_images_shows_the_photographs(explain):
    lines, files = explain(
        "explain=rollout", "checkpoint=c00000000000", "explain.head_fusion=max", "explain.discard_ratio=0.3"
    )
    assert {"rollout_c00000000000_last.png", "rollout_c00000000000_last_china.npy"} <= files
    assert any("explain.images=eval" in line for line in lines)


def test_relevance_of_classes_by_index_name_and_rank(explain):
    _, files = explain("checkpoint=c00000000000", "explain.images=[eval:0,noise.jpg]", "explain.class_index=[3,5]")
    assert {"lrp_c00000000000_last.png", "lrp_c00000000000_last_eval-0_class3.npy"} <= files
    assert "lrp_c00000000000_last_noise_class5.npy" in files
    _, named = explain(
        "checkpoint=c00000000000", "explain.images=eval:0", "explain.class_name=7", "explain.method=attnlrp"
    )
    assert "attnlrp_c00000000000_last_eval-0_class7.npy" in named
    lines, _ = explain("checkpoint=c00000000000", "explain.images=eval:0", "explain.top_k=3", "explain.method=generic")
    assert len(list(Path("out").glob("generic_*_eval-0_class*.npy"))) == 3
    assert any("mean 0.5 0.5 0.5" in line for line in lines)


def test_raw_maps_are_the_librarys(explain, folder):
    from vitlab.explain import relevance
    from vitlab.explain.pictures import load_pictures, normalise

    explain("checkpoint=c00000000001", "explain.images=eval:3", "explain.class_index=2")
    digits = choice("dataset", "digits")
    images = normalise(load_pictures("eval:3", digits, 16, "runs"), digits)
    network = build_model(choice("model", "vit_micro"), 10)
    network.load_state_dict(torch.load(folder / "runs/c00000000001/last.pt", weights_only=True)["model"])
    expected = relevance(network, images, 2)[0].numpy()
    np.testing.assert_allclose(np.load("out/lrp_c00000000001_last_eval-3_class2.npy"), expected, rtol=1e-4)


def test_checkpoints_make_rows_and_studies_make_columns(explain):
    _, files = explain(
        "checkpoint=[c00000000000,c00000000001]", "explain.labels=[scratch,FractalDB]", "explain.images=eval:0"
    )
    assert "lrp_checkpoints_eval-0.png" in files
    _, files = explain("checkpoint=runs/studies/seeds.json", "explain.compare=true", "explain.images=eval")
    assert "lrp_compared.pdf" in files


def test_methods_and_fusions_side_by_side(explain):
    _, files = explain("checkpoint=c00000000000", "explain.compare=true", "explain.images=eval")
    assert "methods_c00000000000_last.png" in files
    _, files = explain("explain=rollout", "checkpoint=c00000000000", "explain.compare=true", "explain.images=eval:1")
    assert "rollout_fusions_c00000000000_last.png" in files
    maps = [np.load(f"out/rollout_{how}_c00000000000_last_eval-1.npy") for how in ("mean", "max", "min")]
    assert all(m.shape == (4, 4) for m in maps) and not np.allclose(maps[0], maps[1])


def test_many_pictures_take_several_sheets(explain):
    _, files = explain("explain=rollout", "checkpoint=c00000000000", "explain.images=eval:0-7")
    assert {"rollout_c00000000000_last_1.png", "rollout_c00000000000_last_2.png"} <= files


def test_faithfulness_is_a_table_and_curves(explain):
    words = ["explain=faithfulness", "checkpoint=c00000000000", "explain.methods=[lrp]", "explain.num_images=6"]
    lines, files = explain(*words, "explain.target=label")
    assert {f"faithfulness_c00000000000_last.{kind}" for kind in ("png", "pdf", "csv", "md")} <= files
    assert any(line.startswith("lrp ") for line in lines) and any(line.startswith("random ") for line in lines)
    assert any("6 images, for the labelled class" in line for line in lines)


def test_the_two_object_test_runs_without_a_checkpoint(explain, monkeypatch):
    monkeypatch.setattr("vitlab.explain.faithfulness_report.SCENES", 16)
    lines, files = explain(
        "explain=faithfulness", "explain.synthetic=true", "explain.synthetic_steps=2", "explain.methods=[lrp]"
    )
    assert {"two_objects_seed0.png", "two_objects_perturbation_seed0.csv"} <= files
    assert any(line.startswith("Transformer LRP") for line in lines)


def test_the_books_checkpoint_wants_imagenets_statistics_and_names(explain):
    words = ["checkpoint=book.pth", "explain.images=noise.jpg", "explain.class_name=tabby"]
    lines, files = explain(*words)
    assert any("mean 0.485 0.456 0.406" in line and "shorter side to 256, central 224" in line for line in lines)
    assert "lrp_book_noise_class281.npy" in files


def test_other_transformers_of_timms(explain):
    """Their checkpoints tell no sizes: the user names the model."""
    _, files = explain(*ROTARY, "explain.images=noise.jpg", "explain.class_index=1")
    assert "lrp_rotary_noise_class1.npy" in files
    _, files = explain(*SWIN, "explain.images=noise.jpg", "explain.class_index=1", "explain.method=attnlrp")
    assert "attnlrp_swin_noise_class1.npy" in files


MISTAKES = {
    "no checkpoint": ([], "checkpoint: task=explain reads one or several"),
    "a missing one": (["checkpoint=nowhere.pt"], "no file, cell folder or identity 'nowhere.pt'"),
    "a missing image": (["checkpoint=c00000000000", "explain.images=nowhere.jpg"], "no image at 'nowhere.jpg'"),
    "no image": (["checkpoint=c00000000000", "explain.images=runs/studies/seeds.json"], "seeds.json: not an image"),
    "a class too many": (["checkpoint=c00000000000", "explain.class_index=10"], "got 10, the model has 10 classes"),
    "an unknown class": (["checkpoint=c00000000000", "explain.class_name=cat"], "no class 'cat'"),
    "too many best": (["checkpoint=c00000000000", "explain.top_k=11"], "explain.top_k: got 11"),
    "a layer too many": (["checkpoint=c00000000000", "explain.start_layer=9"], "start_layer: got 9, allowed: 0"),
    "another model": (
        ["checkpoint=c00000000000", "model=vit_tiny_16_224"],
        "cls_token is (1, 1, 64) there and (1, 1, 192) in the model; give the model that the checkpoint is of",
    ),
    "no position embedding": (
        ["explain=position", *ROTARY],
        "rotary.pth (vit_small_patch16_rope_224): the model has no position embedding of its own",
    ),
    "no chain of attention": (
        [*SWIN, "explain.method=generic"], "is not global over one sequence of tokens, so the layers cannot be chained",
    ),
    "a checkpoint for scenes": (
        ["explain=faithfulness", "explain.synthetic=true", "checkpoint=c00000000000"], "trains a model of its own",
    ),
    "a study that is none": (["checkpoint=runs/nothing.json"], "is no study's file"),
    "labels for others": (["checkpoint=c00000000000", "explain.labels=[a,b]"], "2 labels for 1 checkpoints"),
    "a CNN": (["checkpoint=cnn.pth"], "not those of a Vision Transformer"),
    "a class for Rollout": (
        ["explain=rollout", "checkpoint=c00000000000", "explain.class_index=3"], "Attention Rollout knows no class",
    ),
    "no labels": (
        ["explain=faithfulness", "checkpoint=c00000000000", "explain.images=noise.jpg", "explain.target=label"],
        "explain.target: label needs images whose class is known",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_one_line(words, told, explain, folder):
    if not (folder / "cnn.pth").exists():
        torch.save(timm.create_model("test_resnet").state_dict(), folder / "cnn.pth")
    with pytest.raises(ConfigError) as error:
        explain(*words)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_from_the_command_line(folder):
    words = ["task=explain", "wandb.mode=disabled", "explain=rollout", "checkpoint=c00000000000"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, encoding="utf-8"
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrote runs/explain/rollout_c00000000000_last.png" in done.stdout and not done.stderr
