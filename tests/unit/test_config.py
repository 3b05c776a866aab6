"""The schema, the files under conf/, and what a user reads about each kind of mistake."""

import dataclasses
from pathlib import Path

import pytest

from vitlab.config import (
    AugmentConfig,
    ConfigError,
    RecipeConfig,
    WandbConfig,
    build,
    check_cell,
    experiment,
    plain,
    with_seed,
)

CONF = Path(__file__).parents[2] / "conf"


def choices(group):
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("augment", choices("augment"))
def test_every_augmentation_composes(compose_config, augment):
    config = compose_config(f"augment={augment}")
    assert isinstance(config.cell.augment, AugmentConfig)
    assert config.labels["augment"] == augment


@pytest.mark.parametrize("group", ["model", "recipe"])
def test_every_choice_composes(compose_config, group):
    for choice in choices(group):
        config = compose_config(f"{group}={choice}", "dataset=imagenet1k")
        assert config.labels[group] == choice


def test_choices_are_short():
    for group in ("model", "dataset", "augment", "pretrain", "recipe"):
        for file in (CONF / group).glob("*.yaml"):
            values = [
                line
                for line in file.read_text(encoding="utf-8").splitlines()
                if line.strip() and not line.startswith("#")
            ]
            assert len(values) <= 16, f"{file.name} has {len(values)} lines"


def test_published_augmentations(compose_config):
    """The values of DeiT (Touvron et al., 2021, Table 9) and timm's meaning of colour jitter with RandAugment."""
    deit = compose_config("augment=deit").cell.augment
    assert (deit.auto_augment, deit.mixup, deit.cutmix, deit.erase) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.25)
    assert (deit.smoothing, deit.color_jitter, deit.mixup_switch_prob) == (0.1, 0.0, 0.5)
    assert compose_config("augment=deit_no_jitter").cell == compose_config("augment=deit").cell
    assert compose_config("augment=deit_no_mixup").cell == compose_config("augment=deit", "augment.mixup=0").cell
    off = compose_config("augment=deit_no_randaug").cell.augment
    assert (off.auto_augment, off.color_jitter) == (None, 0.0)
    none = compose_config("augment=none").cell.augment
    assert none == AugmentConfig()


def test_identity_leaves_out_speed_and_place(compose_config):
    config = compose_config("dataset=imagenet1k", "recipe=deit", "model=vit_tiny_16_224")
    kept = experiment(config.cell)
    assert "root" not in kept["dataset"] and "compile" not in kept["recipe"]
    assert plain(config.cell)["recipe"]["compile"] is True
    assert kept["recipe"]["batch_size"] == 1024


def test_linear_learning_rate_rule():
    recipe = RecipeConfig(epochs=1, batch_size=4096, lr=5e-4)
    assert recipe.peak_lr == pytest.approx(4e-3)  # the book's released FractalDB logs
    assert dataclasses.replace(recipe, lr_rule="constant").peak_lr == 5e-4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["recipe.batch_size=-4"], ["recipe.batch_size", "-4", "at least 1"]),
        (["recipe.epochs=soon"], ["recipe.epochs", "'soon'", "whole number"]),
        (["recipe.epochs=2.5"], ["recipe.epochs", "2.5"]),
        (["+augment.mixpu=0.2"], ["augment.mixpu", "no such key", "mixup"]),
        (["augment.smoothing=1.5"], ["augment.smoothing", "1.5", "between 0 and 0.99"]),
        (["augment.auto_augment=0"], ["augment.auto_augment", "0"]),
        (["augment.auto_augment=randm9"], ["augment.auto_augment", "rand-m9"]),
        (["augment=mixup", "augment.mix_group=7", "recipe.batch_size=35"], ["augment.mix_group", "even"]),
        (["augment=mixup", "recipe.batch_size=48"], ["augment.mix_group", "32", "48", "augment.mix_group=24"]),
        (["devices=3"], ["devices", "recipe.batch_size=32"]),
        (
            ["pretrain=fractaldb_small", "pretrain.dataset.fractal.image_size=1"],
            ["pretrain.dataset.fractal.image_size", "got 1,", "between 16 and 2048"],
        ),
        (["dataset=fractaldb60", "dataset.fractal.threshold=0.5"], ["dataset.fractal.threshold", "0.5", "0.38"]),
        (["dataset=fractaldb60", "dataset.fractal.categories=0"], ["dataset.fractal.categories", "got 0", "between 1"]),
        (["device_batch=5"], ["device_batch", "5", "32"]),
        (["augment=cutmix", "devices=2"], ["augment.mix_group", "16"]),
        (["recipe.precision=fp16"], ["recipe.precision", "fp16", "fp32, bf16"]),
        (["dataset.mean=[0.5,0.5]"], ["dataset.mean", "2 values", "3"]),
        (["dataset.crop_scale=[0.9,0.2]"], ["dataset.crop_scale"]),
        (["recipe.batch_size=2000"], ["recipe.batch_size", "2000", "1437"]),
        (["recipe.warmup_epochs=99"], ["recipe.warmup_epochs", "99", "18"]),
        (["model.patch_size=5"], ["model.patch_size", "16"]),
        (["pretrain=checkpoint"], ["pretrain.path"]),
        (["pretrain=checkpoint", "pretrain.path=/nowhere.pt"], ["pretrain.path", "/nowhere.pt"]),
        (["device=gpu"], ["device", "'gpu'", "cuda"]),
        (["seed=-1"], ["seed", "-1"]),
        (["seed=99999999999999999999999"], ["seed", "99999999999999999999999", "9223372036854775807"]),
        (["pretrain=fractaldb_small", "pretrain.seed=9223372036854775808"], ["pretrain.seed", "9223372036854775807"]),
        (["dataset.version=1.10"], ["dataset.version", "1.1", "text"]),
        (["wandb.mode=sometimes"], ["wandb.mode", "offline"]),
        (["dataset.pack=/nowhere"], ["dataset.pack", "/nowhere"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_mistake_is_named(compose_config, overrides, words):
    with pytest.raises(ConfigError) as error:
        compose_config(*overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_whole_number_is_text_where_text_is_wanted(compose_config):
    assert compose_config("dataset.version=2").cell == compose_config("dataset.version='2'").cell
    assert compose_config("study.name=2024").study.name == "2024"


def test_a_missing_value_is_named():
    with pytest.raises(ConfigError, match=r"recipe\.epochs: a value is needed"):
        build(RecipeConfig, {"epochs": "???", "batch_size": 8, "lr": 1e-3}, "recipe")


def test_check_cell_accepts_what_compose_made(compose_config):
    check_cell(compose_config().cell)


def test_a_wrong_choice_of_words_prints_its_list_once():
    with pytest.raises(ConfigError) as raised:
        build(WandbConfig, {"mode": "cloud"}, "wandb")
    assert str(raised.value) == "wandb.mode: got 'cloud', allowed: auto, online, offline, disabled"
    with pytest.raises(ConfigError) as raised:
        build(WandbConfig, {"mode": "ofline"}, "wandb")
    assert str(raised.value).endswith("allowed: auto, online, offline, disabled; give wandb.mode=offline")


@pytest.mark.parametrize(
    "words", [(), ("augment=deit", "pretrain=fractaldb_small"), ("dataset.subset_seed=3", "dataset.train_per_class=8")]
)
def test_another_seed_is_what_parse_makes_of_it(compose_config, words):
    first, other = compose_config(*words, "seed=0"), compose_config(*words, "seed=5")
    assert with_seed(first, 5) == other and with_seed(other, 0) == first
    for wrong in ("five", -1, 1.5):
        with pytest.raises(ConfigError, match="seed"):
            with_seed(first, wrong)
