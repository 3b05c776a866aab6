"""The table of when a field acts is true: every field is changed and trained, and compared with the table."""

import dataclasses
import functools
import typing

import pytest

from vitlab.config import FractalConfig, choice
from vitlab.config.effects import CLAIMS, NAMES, RULES, idle_fields, require_effect, settle, settle_group
from vitlab.config.schema import GROUPS, CellConfig
from vitlab.core.errors import UserError
from vitlab.study.identity import identity
from vitlab.train.events import EpochEnded
from vitlab.train.loop import fit

TINY = (
    "model.patch_size=8", "model.embed_dim=16", "model.depth=1", "model.num_heads=2", "dataset.val_fraction=0.02",
    "dataset.train_per_class=2", "recipe.batch_size=4", "recipe.epochs=2", "recipe.warmup_epochs=1", "device=cpu",
)  # fmt: skip
FRACTAL = (
    *(word for word in TINY if not word.startswith("dataset.")), "dataset=fractaldb60", "dataset.fractal.categories=2",
    "dataset.fractal.instances=8", "dataset.fractal.image_size=64", "dataset.fractal.num_points=2000",
)  # fmt: skip
OTHER = {
    "model.name": "deit3_small_patch16_224", "model.image_size": 24, "model.num_heads": 4, "model.embed_dim": 32,
    "model.patch_size": 4,
    "dataset.mean": (0.4, 0.5, 0.6), "dataset.std": (0.4, 0.5, 0.6), "dataset.crop_scale": (0.2, 0.5),
    "dataset.crop_ratio": (0.5, 0.6), "dataset.pad": 2, "dataset.eval_crop": 0.5, "dataset.train_per_class": 3,
    "dataset.subset_seed": 5, "dataset.num_classes": 12, "dataset.num_train": 500, "dataset.num_eval": 100,
    "dataset.image_size": 12,
    "augment.auto_augment": "original", "augment.mix_group": 4, "recipe.epochs": 3, "recipe.batch_size": 8,
    "recipe.lr_base_batch": 8, "recipe.betas": (0.5, 0.9), "recipe.eps": 1e-3, "recipe.weight_decay": 20.0,
    "recipe.min_lr": 1e-3, "recipe.warmup_lr": 1e-3, "recipe.clip_grad": 0.01, "recipe.repeated_augmentation": 2,
    "recipe.optimizer": "sgd",
    "recipe.warmup_epochs": 0.0, "dataset.fractal.num_points": 4000, "dataset.fractal.image_size": 96,
    "dataset.fractal.threshold": 0.05, "dataset.fractal.categories": 3, "dataset.fractal.instances": 12,
}  # fmt: skip
"""Field → another valid value, where none can be made from the field's type and value."""
MIXING = {"augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.mix_group": 2}
ON = {
    "dataset.pad": {"dataset.train_crop": "pad"},
    "augment.mixup": {"augment.mix_group": 2},
    "augment.cutmix": {"augment.mix_group": 2},
    "augment.mixup_prob": MIXING,
    "augment.mixup_switch_prob": MIXING,
    "augment.mix_group": MIXING,
    "recipe.lr_base_batch": {"recipe.lr_rule": "linear"},
    "recipe.momentum": {"recipe.optimizer": "sgd"},
    "recipe.ema_warmup": {"recipe.ema_decay": 0.9},
    "recipe.train_mode": {"recipe.drop_path": 0.5, "model.depth": 2},
    "recipe.drop_path": {"model.depth": 2},
}
"""Field → what makes it act, where it does not act by default."""
OFF = {
    "dataset.crop_scale": {"dataset.train_crop": "resize"},
    "dataset.crop_ratio": {"dataset.train_crop": "pad", "dataset.pad": 2},
    "dataset.subset_seed": {"dataset.train_per_class": None, "recipe.batch_size": 64},
    "augment.mixup": MIXING | {"augment.mixup": 0.0, "augment.mixup_prob": 0.0},
    "augment.cutmix": MIXING | {"augment.cutmix": 0.0, "augment.mixup_switch_prob": 0.0},
    "augment.mixup_switch_prob": MIXING | {"augment.mixup": 0.0},
    "augment.interpolation": {"model.image_size": 8, "model.patch_size": 4, "dataset.train_crop": "pad"},
    "recipe.betas": {"recipe.optimizer": "sgd"},
    "recipe.eps": {"recipe.optimizer": "sgd"},
    "recipe.min_lr": {"recipe.schedule": "constant"},
    "recipe.warmup_lr": {"recipe.warmup_epochs": 0.0},
    "recipe.schedule_by": {"recipe.schedule": "constant", "recipe.warmup_epochs": 0.0},
    "recipe.drop_path": {"recipe.train_mode": "eval", "model.depth": 2},
    "dataset.eval_crop": {"dataset.val_fraction": 0.0, "dataset.num_eval": 0},
    "dataset.eval_interpolation": {"model.image_size": 8, "model.patch_size": 4},
    "recipe.eval_every": {"dataset.val_fraction": 0.0, "dataset.num_eval": 0},
}
"""Field → what keeps it from acting, where it acts by default."""
ELSEWHERE = {
    "dataset.kind": "another kind is another data set (test_sources.py)",
    "dataset.bad_images": "acts on damaged files (test_loader.py)",
    "dataset.grey16": "acts on files of more than 8 bits (test_decode_grey.py)",
    "dataset.eval_split": "acts where there are several splits to evaluate on (test_layouts.py)",
    "dataset.exif": "acts on photos that say how they were held (test_decode_exif.py)",
    "dataset.pack_id": "the digest of a pack (test_pack.py)",
    "dataset.fractal.degenerate": "acts on degenerate variants (test_formula_cache.py)",
    "pretrain.kind": "another start (test_experiments.py)",
    "pretrain.digest": "the digest of a checkpoint (test_weights.py)",
    "pretrain.weights": "needs a start; below", "pretrain.keep_head": "needs a start; below",
    "pretrain.seed": "another pre-training (test_identity.py)",
}  # fmt: skip
"""Fields that no two tiny trainings can show → what does."""


def leaves(cls, prefix):
    """The keys of a schema that are part of an identity; a pre-training's own parts are cells like any other."""
    for entry in dataclasses.fields(cls):
        if entry.name == "fractal":
            yield from leaves(FractalConfig, f"{prefix}fractal.")
        elif entry.metadata.get("identity", True) and entry.name not in ("dataset", "augment", "recipe"):
            yield prefix + entry.name


FIELDS = [key for group, cls in GROUPS.items() for key in leaves(cls, f"{group}.")] + ["seed"]
TRAINED = [key for key in FIELDS if key not in ELSEWHERE]


def field_of(key):
    *parents, name = key.split(".")
    cls = FractalConfig if "fractal" in parents else GROUPS[parents[0]] if parents else CellConfig
    return cls, next(f for f in dataclasses.fields(cls) if f.name == name)


def get(value, key):
    return functools.reduce(getattr, key.split("."), value)


def with_value(value, key, new):
    first, _, rest = key.partition(".")
    return dataclasses.replace(value, **{first: with_value(getattr(value, first), rest, new) if rest else new})


def another(key, value):
    """Another value of a field, so that one which is added to the schema is tested without being listed here."""
    if key in OTHER and OTHER[key] != value:
        return OTHER[key]
    cls, entry = field_of(key)
    hint = typing.get_type_hints(cls)[entry.name]
    if options := [v for v in typing.get_args(hint) if isinstance(v, str)]:
        return next(v for v in options if v != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or min(0.5, entry.metadata.get("high") or 0.5)
    return f"{value}x"


@pytest.fixture(scope="module")
def figures(tmp_path_factory, compose_config):
    """`figures(cell)` → every loss and accuracy of a training of it, each trained once."""

    @functools.cache
    def trained(cell):
        folder = tmp_path_factory.mktemp("cell")
        config = dataclasses.replace(compose_config(*TINY), workers=0)
        events = list(fit(config, cell, folder))
        rows = [event.row for event in events if isinstance(event, EpochEnded)]
        return [{k: v for k, v in row.items() if "loss" in k or "top" in k} for row in rows]

    return trained


@pytest.mark.parametrize("key", TRAINED)
def test_a_field_acts_or_the_table_says_when(key, compose_config, figures):
    default = compose_config(*TINY).cell
    if key.startswith("dataset.fractal."):  # its counts follow from these fields
        default = with_values(compose_config(*FRACTAL).cell, {"dataset.num_classes": None, "dataset.num_train": None})
    ruled = key in {rule.key for rule in RULES}
    base = with_values(default, ON.get(key, {}) if ruled else {})
    changed = with_value(base, key, another(key, get(base, key)))
    if key in NAMES or key in CLAIMS:
        assert identity(changed) != identity(base)
        return
    assert figures(changed) != figures(base), "it changes no figure: give it a rule in vitlab/config/effects.py"
    assert identity(settle(changed)) != identity(settle(base))
    if not ruled:
        return
    assert key in ON or key in OFF, "a rule needs a case here in which the field does not act"
    base = with_values(default, OFF.get(key, {}))
    changed = with_value(base, key, another(key, get(base, key)))
    assert key in idle_fields(changed) and settle(changed) == settle(base)
    settled = figures(settle(base))
    if key in ("augment.mixup", "augment.cutmix"):  # targets that are distributions round differently
        settled = [{name: pytest.approx(value, rel=1e-4) for name, value in row.items()} for row in settled]
    assert figures(changed) == settled and figures(base) == settled, "the table says that it does not act"


def with_values(cell, values):
    for key, value in values.items():
        cell = with_value(cell, key, value)
    return cell


def test_what_a_start_has_to_say_acts_where_there_is_a_start(compose_config, tmp_path):
    config = dataclasses.replace(compose_config(*TINY), workers=0)
    list(fit(config, with_value(config.cell, "recipe.ema_decay", 0.5), tmp_path))
    start = with_value(config.cell, "pretrain.kind", "checkpoint")

    def loss(number, start_from, **changes):
        (tmp_path / str(number)).mkdir()
        cell = dataclasses.replace(start, pretrain=dataclasses.replace(start.pretrain, **changes))
        events = list(fit(config, cell, tmp_path / str(number), start=start_from))
        return [event.row["train/loss"] for event in events if isinstance(event, EpochEnded)]

    settings = ({}, {"weights": "ema"}, {"keep_head": True})
    begun = [loss(n, tmp_path / "last.pt", **changes) for n, changes in enumerate(settings)]
    assert begun[0] != begun[1] and begun[0] != begun[2]
    fresh = [loss(n, None, **changes) for n, changes in enumerate(settings, 3)]
    assert fresh[0] == fresh[1] == fresh[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["augment.mix_group=16"], "augment.mix_group acts only with mixup or cutmix: it changes nothing here"),
        (["augment.mixup_prob=0.5"], "augment.mixup_prob acts only with mixup or cutmix"),
        (["augment=mixup", "augment.mixup_switch_prob=0.2"], "mixup_switch_prob acts only with both mixup and cutmix"),
        (["augment.mixup=0.8", "augment.mixup_prob=0"], "augment.mixup acts only with augment.mixup_prob above 0"),
        (["recipe.momentum=0.8"], "recipe.momentum acts only with recipe.optimizer=sgd"),
        (["recipe.optimizer=sgd", "recipe.betas=[0.9,0.95]"], "recipe.betas acts only with recipe.optimizer=adamw"),
        (["recipe.optimizer=sgd", "recipe.eps=1e-6"], "recipe.eps acts only with recipe.optimizer=adamw"),
        (["recipe.lr_base_batch=256"], "recipe.lr_base_batch acts only with recipe.lr_rule=linear"),
        (["recipe.ema_warmup=false"], "recipe.ema_warmup acts only with recipe.ema_decay above 0"),
        (["recipe.train_mode=eval"], "recipe.train_mode acts only with recipe.drop_path above 0"),
        (["recipe=finetune", "recipe.drop_path=0.1"], "recipe.drop_path acts only with recipe.train_mode=train"),
        (["dataset.pad=4"], "dataset.pad acts only with dataset.train_crop=pad"),
        (["dataset=cifar10_book", "dataset.crop_scale=[0.5,1]"], "dataset.crop_scale acts only with"),
        (["pretrain.seed=3"], "pretrain.seed acts only with a pre-training"),
        (["pretrain.keep_head=true"], "pretrain.keep_head acts only with a start"),
        (["pretrain=fractaldb_small", "pretrain.keep_head=true"], "has as many classes as the data set"),
        (["pretrain.weights=ema"], "pretrain.weights acts only with a start"),
        (["pretrain.path=x.pt"], "pretrain.path acts only with pretrain=checkpoint"),
        (["dataset.root=/data"], "dataset.root acts only with a data set that is read from files, such as"),
        (["weights=ema"], "weights acts only with task=evaluate"),
        (["pretrain=fractaldb_small", "pretrain.augment.mix_group=4"], "pretrain.augment.mix_group acts only"),
        (["+recipe={momentum: 0.8, eps: 1e-6}"], "recipe.momentum acts only"),
        (["recipe.momentum=0.8", "dataset.pad=4"], "they change nothing here; leave them out"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_what_was_typed_and_cannot_act_is_refused(compose_config, words, message):
    with pytest.raises(UserError) as error:
        require_effect([compose_config(*words)])
    assert message in str(error.value)


def test_what_acts_in_some_cells_is_left_out_of_the_others(compose_config):
    sweep = [compose_config(f"augment={a}", f"augment.mix_group={g}") for a in ("none", "mixup") for g in (16, 8)]
    require_effect(sweep)
    ids = [identity(config.cell) for config in sweep]
    assert ids[0] == ids[1] == identity(compose_config("augment=none").cell) and len(set(ids)) == 3
    own_words = [compose_config("augment=none", "augment.mix_group=16"), compose_config("augment=mixup")]
    with pytest.raises(UserError, match=r"augment\.mix_group"):
        require_effect(own_words)  # typed for one cell, and it does not act in that


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["recipe.clip_grad=0"], []),
        (["recipe.lr_base_batch=256"], []),
        (["recipe=book_finetune", "recipe.drop_path=0"], ["recipe=book"]),
        (["recipe=deit", "recipe.train_mode=eval"], ["recipe=deit", "recipe.drop_path=0"]),
        (["augment=mixup", "augment.mixup_prob=0"], []),
        (["augment=deit", "augment.mixup_switch_prob=0", "augment.mix_group=16"],
         ["augment=deit_no_cutmix", "augment.mix_group=16"]),
        (["pretrain=fractaldb_small", "pretrain.recipe.eval_every=3"], ["pretrain=fractaldb_small"]),
    ],
    ids=lambda v: " ".join(v),
)  # fmt: skip
def test_two_spellings_of_one_experiment_are_one_cell(compose_config, one, other):
    assert compose_config(*one).cell == compose_config(*other).cell


def test_a_choice_by_itself_is_settled_as_its_cells_are(compose_config):
    for group, name in (
        ("recipe", "book_finetune"),
        ("recipe", "finetune"),
        ("augment", "deit"),
        ("pretrain", "scratch"),
    ):
        settled = settle_group(group, choice(group, name))
        assert settled == getattr(compose_config(f"{group}={name}").cell, group)
