"""Values of the wrong type: what may have been meant is offered only where the schema takes it."""

import pytest

from vitlab.core.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "ways"),
    [
        ("seed=0..4", ["seed=0,1,2,3,4"]),
        ("seed=0-4", ["seed=0,1,2,3,4"]),
        ("seed=0:4", ["seed=0,1,2,3,4"]),
        ("seed=0..99", ["seed=range(0,100)"]),
        ("seed='0 1 2'", ["seed=0,1,2"]),
        ("seed='0;1'", ["seed=0,1"]),
        ("seed=[0,1]", ["seed=0,1"]),
        ("seed=None", ["seed=0,1,2,3,4"]),
        ("seed=null", ["seed=0,1,2,3,4"]),
        ("seed=random", ["seed=0,1,2,3,4"]),
        ("seed=007", ["seed=7"]),
        ("recipe.epochs=5.0", ["recipe.epochs=5"]),
        ("recipe.epochs=1e2", ["recipe.epochs=100"]),
        ("recipe.epochs='5'", ["recipe.epochs=5"]),
        ("recipe.epochs=2.5", []),
        ("recipe.epochs='-5'", []),  # out of range: not offered
        ("recipe.epochs=None", []),
        ("recipe.lr='1e-3'", ["recipe.lr=0.001"]),
        ("recipe.lr=[1e-3,1e-2]", ["recipe.lr=0.001,0.01"]),
        ("recipe.clip_grad=None", ["recipe.clip_grad=null"]),
        ("device_batch=none", ["device_batch=null"]),
        ("study.dry_run=yes", ["study.dry_run=true"]),
        ("study.dry_run=1", ["study.dry_run=true"]),
        ("study.retry_failed=off", ["study.retry_failed=false"]),
        ("recipe.precision=BF16", ["recipe.precision=bf16"]),
        ("recipe.optimizer=admaw", ["recipe.optimizer=adamw"]),
        ("recipe.optimizer=newton", []),
        ("recipe.schedule=linear", []),
        ("device=gpu", ["device=cuda"]),
        ("dataset.mean=0.5", ["dataset.mean=[0.5,0.5,0.5]"]),
        ("dataset.mean='0.1,0.2,0.3'", ["dataset.mean=[0.1,0.2,0.3]"]),
        ("dataset.mean=[0.5,0.5]", []),
        ("wandb.tags=paper", ["wandb.tags=[paper]"]),
        ("study.cells='augment=none seed=1'", ["study.cells=['augment=none seed=1']"]),
    ],
)
def test_what_may_have_been_meant(compose_config, override, ways):
    with pytest.raises(ConfigError) as error:
        compose_config(override)
    assert list(error.value.ways) == ways
    for way in ways:
        if "," not in way or "[" in way:
            compose_config(way)


def test_the_list_of_what_is_allowed_is_printed_once(compose_config):
    with pytest.raises(ConfigError) as error:
        compose_config("recipe.schedule=linear")
    assert str(error.value) == "recipe.schedule: got 'linear', allowed: cosine, constant"
