"""Misspelt words of a command line: named, with what is near; nothing that exists is refused."""

import pytest

from vitlab.cli.typos import mistakes_in_words
from vitlab.config import options, plain
from vitlab.config.choices import CONF


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("augment=mixupp", "augment=mixupp: there is no such choice. Did you mean 'mixup'?"),
        ("augment=none,randaugg", "augment=randaugg: there is no such choice. Did you mean 'randaug'?"),
        ("experiment=table3_4", "experiment=table3_4: there is no such choice. Did you mean 'table3_3'?"),
        ("datset=digits", "datset: there is no such key. Did you mean 'dataset'?"),
        ("recipe.epoch=3", "recipe.epoch: there is no such key. Did you mean 'epochs'?"),
        ("+augment.mixpu=0.2", "augment.mixpu: there is no such key. Did you mean 'mixup'?"),
        ("wandb.modee=offline", "wandb.modee: there is no such key. Did you mean 'mode'?"),
        ("preview.column=3", "preview.column: there is no such key. Did you mean 'columns'?"),
        ("explain.class_idx=3", "explain.class_idx: there is no such key. Did you mean 'class_index'?"),
        (
            "pretrain.dataset.fractal.instance=3",
            "pretrain.dataset.fractal.instance: there is no such key. Did you mean 'instances'?",
        ),
    ],
)
def test_a_misspelt_word_is_named_with_what_is_near(word, answer):
    assert mistakes_in_words(["-m", word, "seed=0,1"]) == [answer]


def test_where_nothing_is_near_the_choices_are_listed():
    (answer,) = mistakes_in_words(["model=resnet50"])
    assert all(name in answer for name in options("model")) and "schema" not in answer


def flat(tree, prefix=""):
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


@pytest.mark.parametrize("task", options("task"))
def test_every_key_that_exists_may_be_given(compose_config, task):
    file = str(CONF / "config.yaml")  # task=evaluate wants one; nobody reads it here
    checkpoint = [] if task == "train" else [f"checkpoint={file}"]
    config = plain(compose_config(f"task={task}", "pretrain=fractaldb_small", *checkpoint))
    keys = [*flat(config.pop("cell")), *(f"{task}.{key}" for key in flat(config.pop("options")))]
    del config["labels"]
    keys += flat(config)
    groups = ("model", "dataset", "augment", "pretrain", "recipe", "task", "explain")
    assert len(keys) > 90 and mistakes_in_words([f"{key}=1" for key in keys if key not in groups]) == []


def test_hydras_own_words_are_left_to_hydra():
    words = [
        "--cfg", "job", "-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "recipe@pretrain.recipe=book",
        "augment=choice(none,mixup)", "~augment", "experiment=null", "dataset.mean=[0.1,0.2,0.3]",
    ]  # fmt: skip
    assert mistakes_in_words(words) == []
    assert mistakes_in_words(["--config-dir=mine", "augment=own"]) == []


def test_analyze_has_keys_of_its_own():
    assert mistakes_in_words(["table=table3_3", "output_dir=x", "strict=true", "diff='[a,b]'"], "analyze") == []
    assert mistakes_in_words(["table=tabel3_3", "studdy=x"], "analyze") == [
        "table=tabel3_3: there is no such choice. Did you mean 'table3_3'?",
        "studdy: there is no such key. Did you mean 'study'?",
    ]
