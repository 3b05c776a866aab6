"""`task=explain` as a user asks for it, on files such as ours, DeiT's and the book's trainings write."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from commands import run
from PIL import Image
from planned import begin
from written_records import make_cell

from vitlab.cli.explain_task import run_explain
from vitlab.config import choice, experiment
from vitlab.core.errors import UserError
from vitlab.models.build import build_model
from vitlab.study.identity import identity

CELLS = [make_cell("none", seed) for seed in (0, 1)]
ONE, TWO = map(identity, CELLS)

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
    model = choice("model", "vit_micro")
    cells = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_model(model, 10)
        torch.nn.init.normal_(network.get_parameter("head.weight"), std=0.2)
        record = begin(folder / "runs", SimpleNamespace(cell=CELLS[seed]), name=f"none/s{seed}")
        state = {"model": network.state_dict(), "config": experiment(CELLS[seed]), "schema_version": 1}
        torch.save(state | {"epoch": 3, "classes": [str(i) for i in range(10)]}, record.folder / "last.pt")
        cells.append({"id": record.id, "name": f"none/s{seed}", "part": "cell"})
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
    lines, files = explain("explain=position", f"checkpoint=[{ONE},{TWO}]")
    stem = f"{ONE}_last"
    assert {f"position_{stem}.png", f"filters_{stem}.pdf", f"distance_{stem}.npy", "distance_checkpoints.png"} <= files
    assert np.load(f"out/position_{ONE}_last.npy").shape == (4, 4, 4, 4)
    assert any(line.startswith("next: ") for line in lines)


def test_rollout_without_images_shows_the_photographs(explain):
    lines, files = explain(
        "explain=rollout", f"checkpoint={ONE}", "explain.head_fusion=max", "explain.discard_ratio=0.3"
    )
    assert {f"rollout_{ONE}_last.png", f"rollout_{ONE}_last_china.npy"} <= files
    assert any("explain.images=eval" in line for line in lines)


def test_relevance_of_classes_by_index_name_and_rank(explain):
    _, files = explain(f"checkpoint={ONE}", "explain.images=[eval:0,noise.jpg]", "explain.class_index=[3,5]")
    assert {f"lrp_{ONE}_last.png", f"lrp_{ONE}_last_eval-0_class3.npy"} <= files
    assert f"lrp_{ONE}_last_noise_class5.npy" in files
    _, named = explain(f"checkpoint={ONE}", "explain.images=eval:0", "explain.class_name=7", "explain.method=attnlrp")
    assert f"attnlrp_{ONE}_last_eval-0_class7.npy" in named
    lines, _ = explain(f"checkpoint={ONE}", "explain.images=eval:0", "explain.top_k=3", "explain.method=generic")
    assert len(list(Path("out").glob("generic_*_eval-0_class*.npy"))) == 3
    assert any("mean 0.5 0.5 0.5" in line for line in lines)


def test_raw_maps_are_the_librarys(explain, folder):
    from vitlab.explain import relevance
    from vitlab.explain.pictures import load_pictures, normalise

    explain(f"checkpoint={TWO}", "explain.images=eval:3", "explain.class_index=2")
    digits = choice("dataset", "digits")
    images = normalise(load_pictures("eval:3", digits, 16, "runs"), digits)
    network = build_model(choice("model", "vit_micro"), 10)
    network.load_state_dict(torch.load(folder / f"runs/{TWO}/last.pt", weights_only=True)["model"])
    expected = relevance(network, images, 2)[0].numpy()
    np.testing.assert_allclose(np.load(f"out/lrp_{TWO}_last_eval-3_class2.npy"), expected, rtol=1e-4)


def test_checkpoints_make_rows_and_studies_make_columns(explain):
    _, files = explain(f"checkpoint=[{ONE},{TWO}]", "explain.labels=[scratch,FractalDB]", "explain.images=eval:0")
    assert "lrp_checkpoints_eval-0.png" in files
    _, files = explain("checkpoint=runs/studies/seeds.json", "explain.compare=true", "explain.images=eval")
    assert "lrp_compared.pdf" in files


def test_features_need_no_classifier(explain, folder):
    """A DINO file as its training writes it, by itself and with a classifier, whose head is left out."""
    torch.manual_seed(1)
    backbone = build_model(choice("model", "vit_micro"), 0).state_dict()
    nets = {"teacher": {f"backbone.{k}": v for k, v in backbone.items()}}
    nets["student"] = {f"module.backbone.{k}": v + 1 for k, v in backbone.items()}
    torch.save(nets | {"epoch": 9, "optimizer": {}}, folder / "dino.pth")
    words = ("explain=features", "explain.images=noise.jpg", "model=vit_micro")
    lines, files = explain(*words, "checkpoint=dino.pth")
    assert {"features_dino.png", "features_dino.pdf", "features_dino_heads.png"} <= files
    maps = {
        view: np.load(folder / f"out/features_dino_noise_{view}.npy") for view in ("attention", "rollout", "lrp", "pca")
    }
    assert [m.shape for m in maps.values()] == [(4, 4, 4), (4, 4), (4, 4), (4, 4, 3)]
    assert any("the teacher is taken" in line for line in lines) and lines[-1] == "next: explain=position"
    assert any("first three principal components hold" in line for line in lines)
    _, files = explain(*words[:2], f"checkpoint=[{ONE},{TWO}]", "explain.method=attnlrp")
    assert {
        "features_checkpoints_noise.png",
        f"features_{ONE}_last_heads.png",
        f"features_{TWO}_last_heads.png",
    } <= files
    with pytest.raises(UserError, match=r"explain=relevance needs one.*explain=features, explain=rollout"):
        explain(*words[1:], "checkpoint=dino.pth")


def test_features_of_a_network_without_attention(explain, folder):
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), folder / "resnet.pth")
    words = (
        "explain=features",
        "explain.images=noise.jpg",
        "checkpoint=resnet.pth",
        "model.name=test_resnet",
        "model.image_size=64",
    )
    lines, files = explain(*words, "dataset=imagenet1k", "dataset.root=none", "explain.method=attnlrp")
    assert {"features_resnet.png", "features_resnet_noise_attnlrp.npy"} <= files
    assert "features_resnet_heads.png" not in files
    assert sum(line.startswith("without ") for line in lines) == 3


def test_methods_and_fusions_side_by_side(explain):
    _, files = explain(f"checkpoint={ONE}", "explain.compare=true", "explain.images=eval")
    assert f"methods_{ONE}_last.png" in files
    _, files = explain("explain=rollout", f"checkpoint={ONE}", "explain.compare=true", "explain.images=eval:1")
    assert f"rollout_fusions_{ONE}_last.png" in files
    maps = [np.load(f"out/rollout_{how}_{ONE}_last_eval-1.npy") for how in ("mean", "max", "min")]
    assert all(m.shape == (4, 4) for m in maps) and not np.allclose(maps[0], maps[1])


def test_many_pictures_take_several_sheets(explain):
    _, files = explain("explain=rollout", f"checkpoint={ONE}", "explain.images=eval:0-7")
    assert {f"rollout_{ONE}_last_1.png", f"rollout_{ONE}_last_2.png"} <= files


def test_faithfulness_is_a_table_and_curves(explain):
    words = ["explain=faithfulness", f"checkpoint={ONE}", "explain.methods=[lrp]", "explain.num_images=6"]
    lines, files = explain(*words, "explain.target=label")
    assert {f"faithfulness_{ONE}_last.{kind}" for kind in ("png", "pdf", "csv", "md")} <= files
    assert any(line.startswith("lrp ") for line in lines) and any(line.startswith("random ") for line in lines)
    assert any("6 images, for the labelled class" in line for line in lines)


def test_the_two_object_test_runs_without_a_checkpoint(explain, monkeypatch):
    monkeypatch.setattr("vitlab.explain.faithfulness.SCENES", 16)
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
    "a missing image": ([f"checkpoint={ONE}", "explain.images=nowhere.jpg"], "no image at 'nowhere.jpg'"),
    "no image": ([f"checkpoint={ONE}", "explain.images=runs/studies/seeds.json"], "seeds.json: not an image"),
    "a class too many": ([f"checkpoint={ONE}", "explain.class_index=10"], "got 10, the model has 10 classes"),
    "an unknown class": ([f"checkpoint={ONE}", "explain.class_name=cat"], "no class 'cat'"),
    "too many best": ([f"checkpoint={ONE}", "explain.top_k=11"], "explain.top_k: got 11"),
    "a layer too many": ([f"checkpoint={ONE}", "explain.start_layer=9"], "start_layer: got 9, allowed: 0"),
    "another model": (
        [f"checkpoint={ONE}", "model=vit_tiny_16_224"],
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
        ["explain=faithfulness", "explain.synthetic=true", f"checkpoint={ONE}"], "trains a model of its own",
    ),
    "a study that is none": (["checkpoint=runs/nothing.json"], "is no study's file"),
    "labels for others": ([f"checkpoint={ONE}", "explain.labels=[a,b]"], "2 labels for 1 checkpoints"),
    "a CNN": (["checkpoint=cnn.pth"], "not those of a Vision Transformer"),
    "features without attention": (
        ["explain=features", "checkpoint=cnn.pth", "model.name=test_resnet", "model.image_size=64"],
        "explain.method=attnlrp works on it",
    ),
    "a class for features": (
        ["explain=features", f"checkpoint={ONE}", "explain.class_index=3"], "explain=features takes no class",
    ),
    "a class for Rollout": (
        ["explain=rollout", f"checkpoint={ONE}", "explain.class_index=3"], "Attention Rollout knows no class",
    ),
    "no labels": (
        ["explain=faithfulness", f"checkpoint={ONE}", "explain.images=noise.jpg", "explain.target=label"],
        "explain.target: label needs images whose class is known",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_line(words, told, explain, folder):
    if not (folder / "cnn.pth").exists():
        torch.save(timm.create_model("test_resnet").state_dict(), folder / "cnn.pth")
    with pytest.raises(UserError) as error:
        explain(*words)
    said = str(error.value).partition("Else convert the file")[0]  # which takes three lines of Python
    assert told in said and "\n" not in said


def test_from_the_command_line(folder):
    words = ["task=explain", "wandb.mode=disabled", "explain=rollout", f"checkpoint={ONE}"]
    done = run("run.py", *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"wrote runs/explain/rollout_{ONE}_last.png" in done.stdout and not done.stderr
