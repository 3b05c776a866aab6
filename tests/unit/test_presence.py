"""Missing data are said before anything trains."""

import pytest

from vitlab.cli.train_task import run_study
from vitlab.config import ConfigError
from vitlab.data.sources.presence import require_data
from vitlab.study.launch_local import run_locally
from vitlab.study.naming import Request
from vitlab.study.plan import build_plan
from vitlab.study.preflight import prove


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=imagenet1k"], "imagenet1k needs a folder that holds train/ and val/"),
        (["dataset=imagenet1k", "dataset.root=/nowhere"], "there is no folder '/nowhere'"),
        (["dataset=fashion_mnist", "dataset.root=/nowhere"], "no Fashion-MNIST in /nowhere"),
        (["dataset=cifar100", "dataset.root=/nowhere"], "no folder cifar-100-python in '/nowhere'"),
    ],
)
def test_what_is_looked_for_is_named(compose_config, words, said):
    with pytest.raises(ConfigError, match=said):
        require_data(compose_config(*words).cell.dataset)


@pytest.mark.parametrize("below", ["", "CIFAR10"])
def test_data_that_are_there_pass(compose_config, tmp_path, below):
    (tmp_path / below / "cifar-10-batches-py").mkdir(parents=True)
    for folder in ("train/a", "val/a"):
        (tmp_path / folder).mkdir(parents=True)
    for words in (["dataset=cifar10"], ["dataset=imagenet1k"]):
        require_data(compose_config(*words, f"dataset.root={tmp_path}").cell.dataset)
    require_data(compose_config("dataset=digits").cell.dataset)
    require_data(compose_config("dataset=fractaldb1k").cell.dataset)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["pretrain=fractaldb_small", "dataset=cifar10", "dataset.root=/nowhere"],
            r"dataset\.root: no folder cifar-10",
        ),
        (
            ["pretrain=fractaldb_small", "dataset@pretrain.dataset=imagenet1k", "pretrain.dataset.fractal=null"],
            r"pretrain\.dataset\.root: imagenet1k needs",
        ),
    ],
)
def test_no_pretraining_starts_for_a_cell_without_data(compose_config, tmp_path, words, said):
    config = compose_config(*words, f"output_dir={tmp_path / 'runs'}")
    plan = build_plan([Request((), config)], "s")
    assert [cell.config.study.part for cell in plan.todo] == ["pretraining", "cell"]
    with pytest.raises(ConfigError, match=said):
        prove([(cell.name, cell.config) for cell in plan.todo])
    assert not list(tmp_path.glob("runs/c*"))


def test_a_tree_to_pretrain_on_is_named_as_such(compose_config, tmp_path):
    config = compose_config(
        "pretrain=fractaldb_small", "pretrain.dataset.root=/nowhere", f"output_dir={tmp_path / 'runs'}"
    )
    with pytest.raises(ConfigError, match=r"^pretrain\.dataset\.root: '/nowhere' is no folder"):
        run_study([Request((), config)], run_locally)
