"""The two classes of the user's mistakes: they know their key, and survive a pipe between processes."""

import pickle

from vitlab.config import ConfigError as FromConfig
from vitlab.core.errors import ConfigError, UserError


def test_a_config_error_knows_its_key():
    error = ConfigError("recipe.epochs", "got 0, allowed: at least 1")
    assert (str(error), error.key, error.text) == (
        "recipe.epochs: got 0, allowed: at least 1", "recipe.epochs", "got 0, allowed: at least 1",
    )  # fmt: skip
    assert str(error.under("pretrain")) == "pretrain.recipe.epochs: got 0, allowed: at least 1"
    inside = error.under("pretrain").in_cell("seed=1").extended("; nothing was started")
    assert str(inside) == "pretrain.recipe.epochs: got 0, allowed: at least 1 (in the cell seed=1); nothing was started"
    assert str(error) == "recipe.epochs: got 0, allowed: at least 1"
    assert FromConfig is ConfigError
    assert issubclass(ConfigError, UserError)
    assert not issubclass(UserError, ValueError)


def test_errors_travel_between_processes():
    for error in (UserError("no room").in_cell("a"), ConfigError("device", "got tpu").under("pretrain").in_cell("b")):
        other = pickle.loads(pickle.dumps(error))
        assert type(other) is type(error)
        assert (str(other), other.text, other.args) == (str(error), error.text, error.args)
        assert str(other.in_cell("c")) == f"{error} (in the cell c)"


def test_ways_are_named_at_the_end_and_give_way_to_whole_commands():
    error = ConfigError(
        "recipe.warmup_epochs", "2 is more than recipe.epochs=1", ["recipe.warmup_epochs=0", "a.b=c d.e=f"]
    )
    assert error.text == "2 is more than recipe.epochs=1; give recipe.warmup_epochs=0 or a.b=c d.e=f"
    whole = error.in_cell("seed=1").instead(["python run.py x=1", "python run.py y=2"])
    assert (
        whole.text
        == "2 is more than recipe.epochs=1 (in the cell seed=1); type python run.py x=1, or python run.py y=2"
    )
    assert ConfigError("dataset.mean", "got 3", ["dataset.mean=[3,3]"]).text == "got 3; give 'dataset.mean=[3,3]'"


def test_the_keys_of_a_pretraining_are_named_in_full():
    error = ConfigError(
        "recipe.warmup_epochs", "2 is more than recipe.epochs=1; see /data/recipe.txt", ["recipe.epochs=2"]
    )
    below = error.under("pretrain")
    assert str(below) == (
        "pretrain.recipe.warmup_epochs: 2 is more than pretrain.recipe.epochs=1; see /data/recipe.txt; "
        "give pretrain.recipe.epochs=2"
    )
    assert below.ways == ("pretrain.recipe.epochs=2",)
    assert pickle.loads(pickle.dumps(below)).ways == below.ways
    assert ConfigError("start_layer", "got 9, dataset.name is x").under("explain").text == "got 9, dataset.name is x"
