"""The words of both commands before Hydra reads them: what is refused and how, and what is only spelt for Hydra."""

import os
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from typed_commands import on_screen

from vitlab.cli.command_line import read_command
from vitlab.cli.flags import split_command
from vitlab.config.paths import expanded
from vitlab.core.errors import UserError


def refused(*words, root="config"):
    with pytest.raises(UserError) as error:
        read_command(list(words), root)
    assert "HYDRA" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("train", "train: is no override; python run.py trains, without it"),
        ("help", "help: is no override; type python run.py --help"),
        ("evaluate", "evaluate: is no override; type task=evaluate"),
        ("mixup", "mixup: is no override; type augment=mixup"),
        ("deit", "deit: is no override; type augment=deit or recipe=deit"),
        ("quick_table3_3", "quick_table3_3: is no override; type experiment=quick_table3_3"),
        ("dry_run", "dry_run: is no override; type study.dry_run=true"),
        ("c0123456789a", "c0123456789a: is no override; type task=evaluate checkpoint=c0123456789a"),
        ("hello", "hello: is no override; options are typed as key=value; python run.py --help lists the keys"),
        ("seed = 0", "seed = 0: an override has no spaces in it; type seed=0"),
        ("seed =0", "seed =0: an override has no spaces in it; type seed=0"),
        ("seed= 0 augment=none", "seed= 0: an override has no spaces in it; type seed=0"),
        ("seed: 0", "seed: 0: an override has no spaces in it; type seed=0"),
        ("seed=0, 1 ,2", "seed=0, 1 ,2: an override has no spaces in it; type seed=0,1,2"),
        ("seed＝0，1", "seed＝0，1: is no override; type seed=0,1, with the half-width ="),
        ("—multirun seed=0,1", "—multirun: is no override; type --multirun, with the hyphen of the keyboard"),
        ("–m seed=0,1", "–m: is no override; type -m, with the hyphen of the keyboard"),
        ("seed=0 seed=1 seed=2", "seed: given 3 times, and only the last would count; a sweep is seed=0,1,2"),
        ("--experimental-rerun x.pickle", "--experimental-rerun: type the command itself again; "),
        ("--foo", "--foo: there is no such flag; options are typed as key=value: python run.py --help lists them"),
        ("--recipe.lr 0.1", "--recipe.lr: keys are typed without dashes; type recipe.lr=0.1"),
        ("-seed=3", "-seed: keys are typed without dashes; type seed=3"),
        ("--cfg foo", "--cfg/-c: invalid choice: 'foo'"),
        ("-m --cfg job", "--multirun, --run, --cfg and --info: give one of them"),
        ("--resolve", "--resolve: goes with --cfg; type --cfg job --resolve"),
        ("hydra/sweeper=basic", "hydra/sweeper=basic: vitlab plans every sweep by itself"),
        ("seed=interval(0,1)", "'seed=interval(0,1)': a study has a list of cells, not an interval; type seed=0,1"),
        ("recipe.lr=interval(1e-4,1e-2)", "'recipe.lr=interval(1e-4,1e-2)': a study has a list of "
                                          "cells, not an interval; type recipe.lr=0.0001,0.01"),
        ("seed=range(5,0)", "'seed=range(5,0)': the range is empty; "),
        ("seed=0,", "seed=0,: a value is missing next to a comma; type seed=0"),
        ("seed==3", "seed==3: one = is enough; type seed=3"),
        ("seed=(0,1)", "'seed=(0,1)': a sweep needs no brackets; type seed=0,1"),
        ("seed={0,1}", "'seed={0,1}': a sweep needs no brackets; type seed=0,1"),
        ("dataset.mean=(0.1,0.2,0.3)", "'dataset.mean=(0.1,0.2,0.3)': a list needs brackets; "
                                       "type 'dataset.mean=[0.1,0.2,0.3]'"),
        ("dataset.mean=0.1,0.2,0.3", "dataset.mean=0.1,0.2,0.3: it is one list, in brackets; "
                                     "type 'dataset.mean=[0.1,0.2,0.3]'"),
        ("study.rerun=c1,c2", "study.rerun=c1,c2: it is one list, in brackets; type 'study.rerun=[c1,c2]'"),
        ("task=evaluate checkpoint=a.pt,b.pt", "checkpoint=a.pt,b.pt: it is one list, in brackets; "
                                               "type 'checkpoint=[a.pt,b.pt]'"),
        ("seed=\"0", "seed: got \"0, in which a quote is not closed; type seed=0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [[], ["-m"]], ids=["", "-m"])
def test_run_refuses_what_cannot_be_meant(words, answer, before):
    multirun = [] if words.startswith("-") else before
    assert refused(*multirun, *words.split()).startswith(answer)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("table3_3", "table3_3: is no override; type table=table3_3"),
        ("help", "help: is no override; type python analyze.py --help"),
        ("study=a,b", "study=a,b: analyze.py makes one table at a time; type study=a"),
        ("table=table3_2,table3_3", "table=table3_2,table3_3: analyze.py makes one table at a time; "
                                     "type table=table3_2"),
        ("-m study=a", "--multirun: analyze.py makes one table at a time; "),
        ("table=[table3_2]", "'table=[table3_2]': one choice; "),
        ("diff=c1,c2", "diff=c1,c2: it is one list, in brackets; type 'diff=[c1,c2]'"),
        ("pairs=mixup,cutmix", "pairs=mixup,cutmix: it is one list, in brackets; type 'pairs=[[mixup,cutmix]]'"),
        ("logs=a/log.txt,b/log.txt", "logs=a/log.txt,b/log.txt: it is one list, in brackets; "
                                     "type 'logs=[a/log.txt,b/log.txt]'"),
        ("study=interval(0,1)", "'study=interval(0,1)': "),
        ("--experimental-rerun x.pickle", "--experimental-rerun: "),
        ("table=", "table: a choice is missing; "),
        ("study = a", "study = a: an override has no spaces in it; type study=a"),
    ],
)  # fmt: skip
def test_analyze_refuses_what_cannot_be_meant(words, answer):
    assert refused(*words.split(), root="analyze").startswith(answer)


def test_every_mistake_of_a_command_has_its_line():
    assert refused("agment=none", "help", "seed=interval(0,1)").count("\n") == 2


@pytest.mark.parametrize(
    ("word", "read", "value"),
    [
        ("dataset.root=~/imagenet", "dataset.root={home}/imagenet", "{home}/imagenet"),
        ("dataset.root=$HOME/imagenet", "dataset.root={home}/imagenet", "{home}/imagenet"),
        ("dataset.root='~/my data'", "dataset.root={home}/my data", "{home}/my data"),
        ("checkpoint=[~/a.pt,$HOME/b.pt]", "checkpoint=[{home}/a.pt,{home}/b.pt]", ["{home}/a.pt", "{home}/b.pt"]),
        ("output_dir=~", "output_dir={home}", "{home}"),
        ("checkpoint=runs/lr=0.1/last.pt", 'checkpoint="runs/lr=0.1/last.pt"', "runs/lr=0.1/last.pt"),
        ("dataset.root=/data/birds (copy)", 'dataset.root="/data/birds (copy)"', "/data/birds (copy)"),
        ("dataset.root=/data/写真", 'dataset.root="/data/写真"', "/data/写真"),
        ("study.name=実験1", 'study.name="実験1"', "実験1"),
        ("explain.images=[猫.jpg,dog.jpg]", 'explain.images=["猫.jpg",dog.jpg]', ["猫.jpg", "dog.jpg"]),
        ("explain.class_name=bird's nest", 'explain.class_name="bird\'s nest"', "bird's nest"),
        ("study.cells=[augment=none seed=1,seed=2]", 'study.cells=["augment=none seed=1","seed=2"]',
         ["augment=none seed=1", "seed=2"]),
        ("study.name=~/imagenet", 'study.name="~/imagenet"', "~/imagenet"),  # no path: nothing is expanded
        ("hydra.searchpath=[file://~/conf]", "hydra.searchpath=[file://{home}/conf]", ["file://{home}/conf"]),
    ],
)  # fmt: skip
def test_values_are_spelt_so_that_hydra_reads_them(word, read, value, monkeypatch, tmp_path):
    home = str(tmp_path / "home")
    monkeypatch.setenv("HOME", home)
    (got,) = read_command([word], "config")
    assert got == read.format(home=home)
    expected = [v.format(home=home) for v in value] if isinstance(value, list) else value.format(home=home)
    assert OverridesParser.create().parse_override(got).value() == expected


def test_a_sweep_over_paths_stays_a_sweep(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (got,) = read_command(["dataset.root=~/a,~/ü"], "config")
    assert got == 'dataset.root=/home/me/a,"/home/me/ü"'
    values = OverridesParser.create().parse_override(got).sweep_string_iterator()
    assert list(values) == ["/home/me/a", '"/home/me/ü"']


def test_an_unknown_variable_in_a_path_is_refused(monkeypatch):
    monkeypatch.delenv("SCRATCH", raising=False)
    line = refused("dataset.root=$SCRATCH/imagenet")
    assert line.startswith("dataset.root: got '$SCRATCH/imagenet', and the environment has no variable SCRATCH")


def test_what_hydra_reads_is_left_as_it_was_typed():
    words = [
        "-m", "seed=0,1,2", "augment=choice(none,mixup)", "recipe.lr=range(1,5)", "dataset.std=[0.1,0.2,0.3]",
        "dataset.mean=[0.1,0.2,0.3],[0.5,0.5,0.5]", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "~seed",
        "study.cells=['augment=none seed=1','augment=mixup']", "pretrain.recipe={epochs: 7, lr: 0.3}", "study.name=",
        "recipe.warmup_epochs=${seed}", "+recipe@pretrain.recipe=book", "study.rerun=all",
    ]  # fmt: skip
    assert read_command(words, "config") == words


def test_flags_and_overrides_may_be_mixed():
    assert split_command(["seed=0", "-m", "--config-dir", "mine", "augment=none"]) == (
        ["-m", "--config-dir", "mine"], ["seed=0", "augment=none"],
    )  # fmt: skip
    assert read_command(["seed=0,1", "-m", "augment=none"], "config") == ["-m", "seed=0,1", "augment=none"]


def test_a_configuration_folder_behind_an_equals_sign_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "conf/augment").mkdir(parents=True)
    (tmp_path / "conf/augment/mine.yaml").write_text("defaults: [schema]\n", encoding="utf-8")
    assert read_command(["--config-dir=~/conf", "augment=mine"], "config")[0] == f"--config-dir={tmp_path}/conf"


def test_paths_are_expanded_wherever_they_are_written(compose_config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compose_config(
        "dataset=folder", "dataset.root='~/digits'", "output_dir='$HOME/runs'", "task=preview", "preview.file='~/x.png'"
    )
    assert config.cell.dataset.root == f"{tmp_path}/digits" and config.output_dir == f"{tmp_path}/runs"
    assert config.options["file"] == f"{tmp_path}/x.png"
    assert expanded("a~b") == "a~b" and expanded(os.devnull) == os.devnull


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
