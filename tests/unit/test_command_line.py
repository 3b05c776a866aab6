"""The words of both commands before Hydra reads them: what is refused and how, and what is only spelt for Hydra."""

import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vitlab.cli.command_line import read_command
from vitlab.cli.flags import split_command
from vitlab.config.files import expanded
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
        ("hello", "hello: is no override; what to do is typed as key=value; python run.py --help lists the keys"),
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
        ("--foo", "--foo: there is no such flag; what to do is typed as key=value, as python run.py --help says"),
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
        ("dataset.mean=(0.1,0.2,0.3)", "'dataset.mean=(0.1,0.2,0.3)': a list stands in brackets; "
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
