"""Names that last: the identities of every published cell and the neutral value of every field, written down."""

import dataclasses
import functools
import itertools
import json
import random
import typing
from pathlib import Path

import pytest

from vitlab.config import CellConfig, FractalConfig, experiment, plain
from vitlab.config.effects import settle
from vitlab.config.schema import GROUPS, AugmentConfig, neutral_value
from vitlab.core import plugins
from vitlab.study import identity as module
from vitlab.study.identity import deviations, identity, older_identity, plugins_of, recorded_identity
from vitlab.study.plan import build_plan

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parent / "identities.json").read_text(encoding="utf-8"))
EXPERIMENTS = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))


@functools.cache
def cells_of(name, compose_config):
    """(Overrides, the cell) for every cell of an experiment's grid, with seeds 0 and 1."""
    from omegaconf import OmegaConf

    params = OmegaConf.load(ROOT / "conf" / "experiment" / f"{name}.yaml").hydra.sweeper.params
    keys = {key: str(value).split(",") for key, value in params.items()} | {"seed": ["0", "1"]}
    grid = [[f"{k}={v}" for k, v in zip(keys, values, strict=True)] for values in itertools.product(*keys.values())]
    return [(" ".join(words), compose_config(f"experiment={name}", *words).cell) for words in grid]


def named(name, compose_config):
    found = {}
    for words, cell in cells_of(name, compose_config):
        found[words] = identity(cell)
        if cell.pretraining is not None:
            found[f"{words} (its pre-training)"] = identity(cell.pretraining)
    return found


def neutral_values():
    classes = {**GROUPS, "dataset.fractal": FractalConfig, "": CellConfig}
    return {
        f"{group}.{field.name}".lstrip("."): plain(neutral_value(cls, field.name))
        for group, cls in classes.items()
        for field in dataclasses.fields(cls)
        if field.metadata.get("identity", True) and neutral_value(cls, field.name) is not dataclasses.MISSING
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_identities_of_published_cells_are_for_good(name, compose_config):
    """A change here orphans every record: raise SEMANTICS, say why, and write the list again."""
    assert named(name, compose_config) == GOLDEN["identities"][name]


def test_neutral_values_are_for_good():
    """Another default needs `neutral=` the old one, which names go on leaving out; a new field is added to the list."""
    assert neutral_values() == GOLDEN["neutral"]


def test_a_new_field_that_is_off_changes_no_identity(compose_config, monkeypatch):
    cells = {words: cell for name in EXPERIMENTS for words, cell in cells_of(name, compose_config)}
    before = {words: identity(cell) for words, cell in cells.items()}
    fields = [("greyscale", float, dataclasses.field(default=0.0))]
    grown = dataclasses.make_dataclass("AugmentConfig", fields, bases=(AugmentConfig,), frozen=True)
    hints = typing.get_type_hints(CellConfig) | {"augment": grown}
    monkeypatch.setattr(module.typing, "get_type_hints", lambda cls: hints if cls is CellConfig else REAL(cls))
    module._schema.cache_clear()
    for words, cell in cells.items():
        off = grown(**{f.name: getattr(cell.augment, f.name) for f in dataclasses.fields(cell.augment)})
        assert identity(dataclasses.replace(cell, augment=off)) == before[words]
        on = dataclasses.replace(off, greyscale=0.2)
        assert identity(dataclasses.replace(cell, augment=on)) != before[words]
    monkeypatch.undo()
    module._schema.cache_clear()


REAL = typing.get_type_hints


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_cells_that_differ_share_no_name(compose_config, count):
    """Each differs from every other in some field that matters; two that are equal have one name."""
    rng = random.Random(0)
    base = experiment(compose_config("pretrain=fractaldb_small", "augment=deit").cell)
    choices = {
        ("seed",): range(50), ("augment", "mixup"): [0.0, 0.2, 0.8, 1.0], ("augment", "cutmix"): [0.0, 0.5, 1.0],
        ("augment", "erase"): [0.0, 0.25], ("augment", "auto_augment"): [None, "original", "rand-m9-mstd0.5-inc1"],
        ("augment", "mix_group"): [16, 32], ("recipe", "lr"): [1e-4, 1e-3, 2e-3, 0.01],
        ("recipe", "epochs"): [1, 18, 300], ("recipe", "clip_grad"): [None, 1.0], ("recipe", "drop_path"): [0.0, 0.1],
        ("model", "depth"): [None, 3, 12], ("dataset", "train_fraction"): [0.5, 0.1],
        ("pretrain", "seed"): [0, 1], ("pretrain", "recipe", "epochs"): [18, 30],
        ("pretrain", "dataset", "fractal", "mask_seed"): [0, 1], ("pretrain", "augment", "erase"): [0.0, 0.25],
    }  # fmt: skip
    names: dict[str, str] = {}
    while len(names) < count:
        cell = json.loads(json.dumps(base))
        for path, values in choices.items():
            node = cell
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = rng.choice(values)
        name = recorded_identity(cell, module.SEMANTICS)
        assert names.setdefault(name, json.dumps(cell, sort_keys=True)) == json.dumps(cell, sort_keys=True)


def test_only_what_differs_is_hashed_and_numbers_are_numbers():
    values = {"name": "x", "image_size": 224, "depth": 3, "later": 1}
    assert deviations(values, GROUPS["model"]) == {"name": "x", "depth": 3, "later": 1}
    assert deviations({"warmup_epochs": 5.0, "betas": [0.9, 0.999]}, GROUPS["recipe"]) == {"warmup_epochs": 5}


def test_a_record_named_by_the_older_rule_is_found(requests_for, tmp_path, compose_config):
    from planned import finish

    requests = requests_for(["augment=mixup"])
    assert older_identity(compose_config().cell) == "c5c01f5eb1bd", "the default cell's name of before"
    old = older_identity(requests[0].config.cell)
    record = finish(tmp_path, requests[0].config)
    record.folder.rename(tmp_path / old)
    for name in ("config.yaml", "result.json"):
        text = (tmp_path / old / name).read_text(encoding="utf-8")
        (tmp_path / old / name).write_text(text.replace(record.id, old), encoding="utf-8")
    plan = build_plan(requests, "s")
    assert [(c.id, c.selected) for c in plan.cells] == [(old, False)]


def test_a_plugins_file_is_part_of_the_name_of_the_cells_that_use_it(compose_config, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from vitlab.core.plugins import register_policy\n@register_policy('mine_too')\ndef mine(o, d): ...\n"
    monkeypatch.setattr(plugins.POLICIES, "_entries", dict(plugins.POLICIES._entries))
    (tmp_path / "mine_too.py").write_text(source, encoding="utf-8")
    cell = compose_config("plugins=[mine_too]", "augment.auto_augment=mine_too").cell
    first = identity(cell)
    assert list(plugins_of(cell)) == ["mine_too"] and plugins_of(compose_config().cell) == {}
    (tmp_path / "mine_too.py").write_text(source + "# changed\n", encoding="utf-8")
    assert identity(cell) != first and settle(cell) == cell
