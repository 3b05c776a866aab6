"""What cannot start on this machine is refused once, by name, before anything trains."""

import pytest
import torch

from vitlab.config import ConfigError
from vitlab.study.preflight import prove


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=vit_foo"], "model.name: timm knows no model 'vit_foo'"),
        (["dataset=imagenet1k", "model=vit_tiny_16_224", "recipe=deit"], "dataset.root: imagenet1k needs a folder"),
        (["dataset=fashion_mnist", "dataset.root=/nowhere"], "dataset.root: no Fashion-MNIST in /nowhere"),
        (["dataset=cifar10", "dataset.root=/nowhere"], "dataset.root: no folder cifar-10-batches-py"),
        (["dataset.train_per_class=1000"], "dataset.train_per_class: 1000 were asked for"),
        (["dataset.pack=/nowhere", "dataset.pack_id=p0"], "/nowhere"),
    ],
    ids=["model", "folder", "fashion", "cifar", "class", "pack"],
)
def test_what_is_missing_is_named_with_the_cell(compose_config, overrides, message):
    named = [("well", compose_config("seed=1")), ("ill/s0", compose_config(*overrides))]
    with pytest.raises(ConfigError) as caught:
        prove(named)
    told = str(caught.value)
    assert message in told and "(in the cell ill/s0); nothing was started" in told


def test_an_absent_device_is_named(compose_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device: cuda was asked for and this machine has none.*nothing was started"):
        prove([("none/s0", compose_config("device=cuda"))])


def test_what_can_start_passes_and_each_thing_is_looked_for_once(compose_config, monkeypatch):
    from vitlab.data.sources import registry

    built = []
    build = registry.build_source
    monkeypatch.setattr(registry, "build_source", lambda data, split: built.append(split) or build(data, split))
    prove([(f"s{seed}", compose_config(f"seed={seed}")) for seed in range(3)])
    assert built == ["train", "eval"]
