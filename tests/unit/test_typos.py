"""Misspelt words of a command line: named, with what is near; nothing that exists is refused."""

import pytest

from vitlab.cli.typos import mistakes_in_words
from vitlab.config import GROUPS, options, plain
from vitlab.config.choices import CONF


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("augment=mixupp", "augment=mixupp: there is no such choice. Did you mean augment=mixup?"),
        ("augment=none,randaugg", "augment=randaugg: there is no such choice. Did you mean augment=randaug?"),
        ("experiment=table3_4", "experiment=table3_4: there is no such choice. Did you mean experiment=table3_3?"),
        ("datset=digits", "datset: there is no such key. Did you mean dataset=digits?"),
        ("recipe.epoch=3", "recipe.epoch: there is no such key. Did you mean recipe.epochs=3?"),
        ("+augment.mixpu=0.2", "augment.mixpu: there is no such key. Did you mean augment.mixup=0.2?"),
        ("wandb.modee=offline", "wandb.modee: there is no such key. Did you mean wandb.mode=offline?"),
        ("preview.column=3", "preview.column: there is no such key. Did you mean preview.columns=3?"),
        ("explain.class_idx=3", "explain.class_idx: there is no such key. Did you mean explain.class_index=3?"),
        (
            "pretrain.dataset.fractal.instance=3",
            "pretrain.dataset.fractal.instance: there is no such key. "
            "Did you mean pretrain.dataset.fractal.instances=3?",
        ),
    ],
)
def test_a_misspelt_word_is_named_with_what_is_near(word, answer):
    assert mistakes_in_words(["-m", word, "seed=0,1"]) == [answer]


def test_where_nothing_is_near_the_choices_are_listed():
    (answer,) = mistakes_in_words(["model=zzzz"])
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
    for made in ("labels", "typed", "idle"):
        del config[made]
    keys += flat(config)
    groups = (*GROUPS, "task", "explain", "wandb", "study")
    assert len(keys) > 90 and mistakes_in_words([f"{key}=1" for key in keys if key not in groups]) == []


def test_hydras_own_words_are_left_to_hydra():
    words = [
        "--cfg", "job", "-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "recipe@pretrain.recipe=book",
        "augment=choice(none,mixup)", "~augment", "dataset.mean=[0.1,0.2,0.3]",
    ]  # fmt: skip
    assert mistakes_in_words(words) == []


@pytest.mark.parametrize(
    "flags", [["--config-dir={}"], ["--config-dir", "{}"], ["hydra.searchpath=[file://{}]"], ["hydra.searchpath=[{}]"]]
)
def test_choices_in_folders_of_the_users_own(tmp_path, flags):
    (tmp_path / "augment").mkdir()
    (tmp_path / "augment/mine.yaml").write_text("defaults: [schema, _self_]\nerase: 0.5\n", encoding="utf-8")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/ImageNet.yaml").write_text("defaults: [imagenet1k]\n", encoding="utf-8")
    flags = [flag.format(tmp_path) for flag in flags]
    assert mistakes_in_words([*flags, "augment=none,mine", "dataset=ImageNet"]) == []
    (answer,) = mistakes_in_words([*flags, "augment=minee"])
    assert "Did you mean augment=mine?" in answer


def test_another_root_file_has_keys_of_its_own():
    assert mistakes_in_words(["--config-name=other", "foo=3", "augment=own"]) == []


def test_analyze_has_keys_of_its_own():
    assert mistakes_in_words(["table=table3_3", "output_dir=x", "strict=true", "diff='[a,b]'"], "analyze") == []
    assert mistakes_in_words(["table=tabel3_3", "studdy=x"], "analyze") == [
        "table=tabel3_3: there is no such choice. Did you mean table=table3_3?",
        "studdy: there is no such key. Did you mean study=x?",
    ]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("epochs=5", "epochs: there is no such key; type recipe.epochs=5"),
        ("lr=1e-3", "lr: there is no such key; type recipe.lr=1e-3"),
        ("batch_size=64", "batch_size: there is no such key; type recipe.batch_size=64"),
        ("optimizer=sgd", "optimizer: there is no such key; type recipe.optimizer=sgd"),
        ("precision=bf16", "precision: there is no such key; type recipe.precision=bf16"),
        ("mixup=0.8", "mixup: there is no such key; type augment.mixup=0.8"),
        ("mixup=0.2,0.8", "mixup: there is no such key; type augment.mixup=0.2,0.8"),
        ("batch=64", "batch: there is no such key; type recipe.batch_size=64"),
        ("image_size=96", "image_size: there is no such key; type model.image_size=96"),
        ("epoch=5", "epoch: there is no such key. Did you mean recipe.epochs=5?"),
        ("data=cifar10", "data: there is no such key; type dataset=cifar10"),
        ("name=mine", "name: there is no such key; type study.name=mine"),
        ("wandb=offline", "wandb: holds keys of its own and takes no value; type wandb.mode=offline"),
        ("study=mine", "study: holds keys of its own and takes no value; type study.name=mine"),
        ("seed.x=1", "seed.x: there is no such key, as seed holds no others"),
        ("recipe.epochs.x=1", "recipe.epochs.x: there is no such key, as recipe.epochs holds no others"),
        ("finetune=x.pth", "finetune: there is no such key; type pretrain=checkpoint pretrain.path=FILE "
                           "(docs/from_the_book.md)"),
        ("tables_dir=x", "tables_dir: is a key of analyze.py, not of run.py; "),
        ("=3", "=3: a key is missing; type key=value"),
    ],
)  # fmt: skip
def test_a_bare_name_gets_its_full_key(word, answer):
    (line,) = mistakes_in_words([word])
    assert line.startswith(answer)


@pytest.mark.parametrize(
    ("root", "word", "words"),
    [
        ("config", "resume=x.pt", ["the same command again continues", "task=evaluate checkpoint=FILE"]),
        ("config", "table=table3_3", ["python analyze.py table=TABLE", "experiment=TABLE"]),
        ("analyze", "experiment=table3_3", ["python analyze.py table=TABLE"]),
        ("analyze", "checkpoint=x.pt", ["python run.py task=evaluate checkpoint=FILE"]),
        ("analyze", "augment=none", ["a key of run.py, not of analyze.py"]),
        ("analyze", "epochs=3", ["a key of run.py, not of analyze.py"]),
    ],
)
def test_what_is_done_in_another_way_is_explained(root, word, words):
    (line,) = mistakes_in_words([word], root)
    assert all(w in line for w in words)


@pytest.mark.parametrize(
    "group", ["model", "dataset", "augment", "pretrain", "recipe", "experiment", "task", "explain"]
)
def test_a_list_in_a_group_is_refused(group):
    one, other = options(group)[:2]
    (line,) = mistakes_in_words([f"{group}=[{one},{other}]"])
    assert line == f"'{group}=[{one},{other}]': one choice; a sweep is {group}={one},{other}"


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("augment=", "augment: a choice is missing; type augment=none, or another of "),
        ("augment=none,", "augment=none,: a choice is missing next to a comma; type augment=none"),
        ("augment=none,,mixup", "augment=none,,mixup: a choice is missing next to a comma; type augment=none,mixup"),
        ("augment=cutmix+mixup", "augment=cutmix+mixup: one choice; all of them in one cell are "
                                 "augment=mixup augment.cutmix=1.0; a sweep is augment=cutmix,mixup"),
        ("augment=erase|deit_no_erase", "'augment=erase|deit_no_erase': one choice; a sweep is "
                                        "augment=erase,deit_no_erase"),
        ("augment=autoaug+randaug", "augment=autoaug+randaug: one choice; a sweep is augment=autoaug,randaug"),
        ("recipe=quick+deit", "recipe=quick+deit: one choice; a sweep is recipe=quick,deit"),
        ("augment=interval(0,1)", "'augment=interval(0,1)': augment has choices, not an interval; "
                                  "a sweep is augment="),
        ("augment=glob(zzz*)", "'augment=glob(zzz*)': no choice fits; there are "),
        ("augment=choice(none,mixupp)", "augment=mixupp: there is no such choice. Did you mean augment=mixup?"),
        ("augment=null", "augment=null: there is no such choice. "),
        ("experiment=null", "experiment=null: to choose none, leave experiment out"),
        ("augment=None", "augment=None: there is no such choice. Did you mean augment=none?"),
        ("dataset=/data/imagenet", "dataset=/data/imagenet: there is no such choice; type dataset=folder "
                                   "dataset.root=/data/imagenet"),
        ("pretrain=~/x.pth", "'pretrain=~/x.pth': there is no such choice; type pretrain=checkpoint "
                             "'pretrain.path=~/x.pth'"),
        ("model=vit_small_patch8_224", "model=vit_small_patch8_224: there is no such choice; a ViT of timm's is "
                                       "model.name=vit_small_patch8_224"),
        ("dataset=ImageNet", "dataset=ImageNet is dataset=imagenet1k here (docs/from_the_book.md)"),
    ],
)  # fmt: skip
def test_a_value_that_is_no_choice(word, answer):
    (line,) = mistakes_in_words([word])
    assert line.startswith(answer)
