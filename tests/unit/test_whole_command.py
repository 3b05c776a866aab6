"""Values that contradict one another: the commands in the message are accepted, and change first what was not typed."""

import shlex

import pytest
from typed_commands import on_screen

PAIRS = {
    "recipe.epochs=1": ["recipe.epochs=1 recipe.warmup_epochs=0", "recipe.epochs=2"],
    "recipe.warmup_epochs=30": ["recipe.warmup_epochs=30 recipe.epochs=30", "recipe.warmup_epochs=0"],
    "recipe.epochs=1 recipe.warmup_epochs=3": [
        "recipe.epochs=1 recipe.warmup_epochs=0", "recipe.epochs=3 recipe.warmup_epochs=3",
    ],
    "recipe.epochs=1,18 seed=0,1": ["recipe.epochs=1,18 seed=0,1 recipe.warmup_epochs=0"],
    "experiment=quick_table3_3 recipe.epochs=1": [
        "experiment=quick_table3_3 recipe.epochs=1 recipe.warmup_epochs=0", "experiment=quick_table3_3 recipe.epochs=2",
    ],
    "pretrain=fractaldb_small pretrain.recipe.epochs=1": [
        "pretrain=fractaldb_small pretrain.recipe.epochs=1 pretrain.recipe.warmup_epochs=0",
        "pretrain=fractaldb_small pretrain.recipe.epochs=2",
    ],
    "augment=mixup recipe.batch_size=48": [
        "augment=mixup recipe.batch_size=48 augment.mix_group=24", "augment=mixup recipe.batch_size=64",
    ],
    "augment=mixup recipe.batch_size=33": ["augment=mixup recipe.batch_size=32"],
    "augment=mixup recipe.batch_size=1": ["augment=mixup recipe.batch_size=32"],
    "augment=mixup augment.mix_group=7": ["augment=mixup augment.mix_group=4"],
    "augment=mixup augment.mix_group=12": [
        "augment=mixup augment.mix_group=12 recipe.batch_size=36", "augment=mixup augment.mix_group=8",
    ],
    "augment=mixup augment.mix_group=7 recipe.batch_size=35": [
        "augment=mixup augment.mix_group=2 recipe.batch_size=36",
    ],
    "recipe.batch_size=2000": ["recipe.batch_size=1024"],
    "dataset.train_per_class=2": ["dataset.train_per_class=2 recipe.batch_size=16", "dataset.train_per_class=4"],
    "dataset.train_per_class=2 augment=mixup": [
        "dataset.train_per_class=2 augment=mixup recipe.batch_size=16 augment.mix_group=16",
        "dataset.train_per_class=4 augment=mixup",
    ],
    "model.image_size=30": ["model.image_size=30 model.patch_size=3", "model.image_size=32"],
    "model.patch_size=5": ["model.patch_size=5 model.image_size=15", "model.patch_size=4"],
    "model.embed_dim=66": ["model.embed_dim=66 model.num_heads=3", "model.embed_dim=68"],
    "model.num_heads=5": ["model.num_heads=5 model.embed_dim=65", "model.num_heads=4"],
    "devices=3": ["devices=3 recipe.batch_size=33", "devices=2"],
    "devices=3 augment=mixup": ["devices=3 augment=mixup recipe.batch_size=96", "devices=1 augment=mixup"],
    "augment=cutmix devices=2": [
        "augment=cutmix devices=2 augment.mix_group=16", "augment=cutmix devices=2 recipe.batch_size=64",
    ],
    "device_batch=5": ["device_batch=5 recipe.batch_size=30", "device_batch=4"],
    "device_batch=16 augment=mixup": [
        "device_batch=16 augment=mixup augment.mix_group=16", "device_batch=32 augment=mixup",
    ],
    "pretrain=fractaldb_small pretrain.weights=ema": [
        "pretrain=fractaldb_small pretrain.weights=ema pretrain.recipe.ema_decay=0.999",
        "pretrain=fractaldb_small pretrain.weights=raw",
    ],
    "study.cells=['recipe.epochs=1','seed=3']": ["study.cells=['recipe.epochs=1','seed=3'] recipe.warmup_epochs=0"],
    # several at once: the command is searched until nothing contradicts anything
    "augment=mixup recipe.batch_size=48 recipe.epochs=1": [
        "augment=mixup recipe.batch_size=48 recipe.epochs=1 augment.mix_group=24 recipe.warmup_epochs=0",
        "augment=mixup recipe.batch_size=64 recipe.epochs=1 recipe.warmup_epochs=0",
    ],
    "seed=0..2 recipe.epochs=1": ["seed=0,1,2 recipe.epochs=1 recipe.warmup_epochs=0"],
}  # fmt: skip
"""What is typed → the commands that the message gives."""


def commands_in(line: str) -> list[list[str]]:
    """The words of the commands after `; type`."""
    text = line.partition("; type ")[2]
    return [shlex.split(command)[2:] for command in text.split(", or ")] if text else []


@pytest.mark.parametrize("typed", PAIRS, ids=str)
def test_a_contradiction_gives_commands_that_work(typed):
    line = on_screen(*typed.split())
    assert line is not None and line.startswith("vitlab: ") and "\n" not in line
    given = commands_in(line)
    assert given == [command.split() for command in PAIRS[typed]]
    for words in given:
        assert on_screen(*words) is None, words


def test_nothing_is_lowered_without_being_asked():
    """The message only suggests: the cell that was typed is not trained with other values."""
    assert on_screen("recipe.epochs=1") is not None


def test_a_sweep_is_not_lost_in_a_suggestion():
    line = on_screen("augment=mixup", "recipe.batch_size=32,33")
    assert line is not None and "give recipe.batch_size=32" in line and "in the cell recipe.batch_size=33" in line
    assert commands_in(line) == []


def test_flags_and_hydras_own_overrides_stay_in_the_command():
    line = on_screen("-m", "hydra/launcher=basic", "recipe.epochs=1")
    assert (
        line is not None and "type python run.py -m hydra/launcher=basic recipe.epochs=1 recipe.warmup_epochs=0" in line
    )
