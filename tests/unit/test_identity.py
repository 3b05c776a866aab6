"""Identities: equal for equal experiments, different for any difference that matters."""

import dataclasses
import json

import pytest

from vitlab.config import choice, experiment
from vitlab.study import identity as module
from vitlab.study.identity import differences, identity, older_identity


def test_hardware_paths_and_labels_do_not_enter(compose_config):
    base = compose_config("augment=mixup")
    same = compose_config(
        "augment=none", "augment.mixup=0.8", "devices=1", "workers=7", "threads=2", "output_dir=elsewhere",
        "device=cpu", "device_batch=32", "wandb.project=other", "study.name=x", "recipe.compile=true",
        "recipe.keep_every=2", "model.grad_checkpointing=true", "dataset.root=/data", "dataset.stage=/disk",
    )  # fmt: skip
    assert identity(base.cell) == identity(same.cell)
    assert identity(base.cell)[0] == "c" and len(identity(base.cell)) == 12


@pytest.mark.parametrize(
    "override",
    ["seed=1", "model.depth=2", "augment.mixup=0.7", "augment.mix_group=16", "recipe.precision=bf16", "recipe.eps=1e-7",
     "dataset.version='2'", "dataset.hflip=0.5", "dataset.val_fraction=0.1", "dataset.crop_scale=[0.5,1]"],
)  # fmt: skip
def test_anything_that_matters_enters(compose_config, override):
    assert identity(compose_config("augment=mixup").cell) != identity(compose_config("augment=mixup", override).cell)


def test_a_raised_semantics_number_is_another_cell(compose_config, monkeypatch):
    cell = compose_config().cell
    before = identity(cell)
    monkeypatch.setattr(module, "SEMANTICS", module.SEMANTICS + 1)
    assert identity(cell) != before


def test_the_pretraining_is_part_of_the_identity(compose_config):
    cell = compose_config("pretrain=fractaldb").cell
    assert cell.pretraining is not None
    changed = dataclasses.replace(cell.pretrain, seed=1)
    assert identity(dataclasses.replace(cell, pretrain=changed)) != identity(cell)
    assert identity(cell.pretraining) != identity(cell)
    assert json.dumps(experiment(cell.pretraining)) == json.dumps(experiment(cell.pretraining))


def test_differences_name_keys():
    old, new = ({"recipe": {"lr": v, "epochs": 3}, "augment": a} for v, a in ((1e-3, {"mixup": 0}), (2e-3, None)))
    assert differences(old, new) == ["recipe.lr: 0.001 → 0.002", "augment: {'mixup': 0} → off"]
    assert differences(old, old) == []


def test_a_changed_choice_changes_a_dataclass():
    assert choice("augment", "deit") == choice("augment", "deit_no_jitter") != choice("augment", "deit_no_mixup")


@pytest.mark.parametrize(("words", "expected"), [
    ([], "c5c01f5eb1bd"),
    (["augment=deit"], "c95df0b2f435"),
    (["dataset=imagenet1k", "pretrain=fractaldb"], "cae097369edc"),
])  # fmt: skip
def test_a_later_field_that_is_off_changes_no_identity(compose_config, words, expected):
    """The names that the rule before gave, pinned before dataset.grey16 and dataset.exif were there."""
    name = identity(compose_config(*words).cell)
    assert older_identity(compose_config(*words).cell) == expected
    off = compose_config(*words, "dataset.grey16=range", "dataset.exif=ignore").cell
    assert older_identity(off) == expected and identity(off) == name
    for change in ("dataset.grey16=minmax", "dataset.exif=apply"):  # they act on image files alone
        changed = compose_config(*words, change).cell
        assert (identity(changed) != name) == (changed.dataset.kind == "folder")
