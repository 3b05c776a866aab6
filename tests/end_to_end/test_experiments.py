"""Every published study, at toy size, through the code that a command runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.config import choice
from vitlab.study.identity import Request, identity
from vitlab.study.plan import build_plan
from vitlab.train.events import EpochEnded
from vitlab.train.loop import fit

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(f.stem for f in (CONF / "experiment").glob("*.yaml"))


def sweep(name):
    """The groups and seeds that an experiment's file sweeps."""
    from omegaconf import OmegaConf

    params = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").hydra.sweeper.params
    return {key: str(value).split(",") for key, value in params.items()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_whole_grid_is_planned(name, tmp_path, compose_config):
    """Every cell of the grid composes, parses and gets an identity; no data are there."""
    requests = []
    grid = [[]]
    for key, values in sweep(name).items():
        grid = [[*g, f"{key}={v}"] for g in grid for v in values]
    for overrides in grid[:14]:
        config = compose_config(f"experiment={name}", *overrides, f"output_dir={tmp_path}")
        requests.append(Request(tuple(overrides), config))
    plan = build_plan(requests, name)
    assert len(plan.cells) >= 6 and len({c.id for c in plan.cells}) == len(plan.cells)
    assert len((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()) <= 30
    if "leave_one_out" in name:
        (full,) = [c for c in plan.cells if "deit_no_jitter/s0" in (c.name, *c.aliases)]
        assert {full.name, *full.aliases} == {"deit/s0", "deit_no_jitter/s0"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for c in "abcd":
            folder = root / split / c
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return root


def first_cells(name):
    """One value of every swept key, and every value of the one that is the study's factor."""
    params = sweep(name)
    factor = "pretrain" if "pretrain" in params else "augment"
    rest = [f"{key}={values[0]}" for key, values in params.items() if key != factor]
    return [(name, [f"{factor}={value}", *rest]) for value in params[factor]]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [c for n in EXPERIMENTS for c in first_cells(n)],
    ids=lambda v: v if isinstance(v, str) else v[0],
)
def test_every_condition_trains_two_steps(name, overrides, tree, tmp_path, compose_config):
    """The experiment's own configuration with a two-block model, eight images per step and two steps."""
    config = compose_config(f"experiment={name}", *overrides)
    cell = config.cell
    dataset = dataclasses.replace(cell.dataset, train_per_class=None)
    if dataset.kind == "folder":
        dataset = dataclasses.replace(dataset, root=str(tree), num_classes=4, num_train=16, num_eval=8)
    else:
        dataset = dataclasses.replace(choice("dataset", "digits"), train_per_class=2)
    size = 32 if dataset.kind == "folder" else 16
    model = dataclasses.replace(cell.model, image_size=size, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    batch = 8
    recipe = dataclasses.replace(cell.recipe, epochs=1, batch_size=batch, warmup_epochs=0, precision="fp32")
    augment = dataclasses.replace(cell.augment, mix_group=8)
    start = cell.pretraining
    cell = dataclasses.replace(cell, model=model, dataset=dataset, recipe=recipe, augment=augment)
    checkpoint = None
    if start is not None:
        fractal = dataclasses.replace(start.dataset.fractal, categories=2, instances=8, image_size=32, num_points=2000)
        before = dataclasses.replace(start.dataset, fractal=fractal, num_classes=2, num_train=16)
        cell = dataclasses.replace(cell, pretrain=dataclasses.replace(cell.pretrain, dataset=before, recipe=recipe))
        (tmp_path / "before").mkdir()
        rows, _ = run(config, cell.pretraining, tmp_path / "before")
        assert rows[0]["step"] == 2 and "eval/top1" not in rows[0]
        checkpoint = tmp_path / "before" / "last.pt"
    (tmp_path / "cell").mkdir()
    rows, result = run(config, cell, tmp_path / "cell", checkpoint)
    assert rows[-1]["step"] >= 2 and np.isfinite(rows[-1]["train/loss"])
    assert 0 <= result["last"]["top1"] <= 100 and identity(cell)
    if checkpoint:
        assert "tensors loaded" in result["derived"]["pretrained"]


def run(config, cell, folder, start=None):
    rows = []
    generator = fit(dataclasses.replace(config, device="cpu", workers=0), cell, folder, start=start)
    try:
        while True:
            event = next(generator)
            if isinstance(event, EpochEnded):
                rows.append(event.row)
    except StopIteration as end:
        return rows, end.value
