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
