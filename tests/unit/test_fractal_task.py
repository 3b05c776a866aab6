"""`task=fractaldb` from its configuration."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vitlab.cli.fractal_task import run_fractaldb
from vitlab.config import ConfigError
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.train.loop import build_sources


def test_the_task_follows_its_configuration(compose_config, tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    config = compose_config(
        "task=fractaldb", "dataset=fractaldb60", "dataset.fractal.categories=2", "dataset.fractal.instances=30",
        "dataset.fractal.image_size=40", "dataset.fractal.num_points=3000", f"fractaldb.export={tmp_path / 'tree'}",
        "fractaldb.layout=published", f"fractaldb.preview={tmp_path / 'sheet.png'}", "recipe.batch_size=8",
    )  # fmt: skip
    lines = run_fractaldb(config)
    assert lines[0] == f"geometry of 2 categories in {tmp_path / 'cache' / 'fractal'}"
    assert lines[2].endswith(f"run.py dataset=fractaldb60 dataset.root={tmp_path / 'tree' / 'FractalDB-2'}")
    assert len(list((tmp_path / "tree" / "FractalDB-2").glob("*/*.png"))) == 60
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet).max() == 254


@pytest.mark.parametrize(("layout", "tree"), [("published", "FractalDB-2"), ("train", ".")])
def test_exported_files_are_a_data_set_of_their_own(compose_config, tmp_path, monkeypatch, layout, tree):
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    small = ["dataset=fractaldb60", "dataset.fractal.categories=2", "dataset.fractal.instances=6",
             "dataset.fractal.image_size=40", "dataset.fractal.num_points=3000", "recipe.batch_size=8"]  # fmt: skip
    run_fractaldb(
        compose_config("task=fractaldb", *small, f"fractaldb.export={tmp_path}/x", f"fractaldb.layout={layout}")
    )
    asked = compose_config(*small, f"dataset.root={tmp_path / 'x' / tree}").cell
    cell = dataclasses.replace(asked, dataset=resolve_class_list(asked.dataset, str(tmp_path / "runs")))
    files, held_out = build_sources(cell)
    online, _ = build_sources(compose_config(*small).cell)
    assert cell.dataset.name == "fractaldb60_files" and cell.dataset.mean == (0.5, 0.5, 0.5)
    assert held_out is None and files.classes == online.classes and len(files) == len(online) == 12
    for label in range(2):
        theirs, ours = ({s.image(i).tobytes() for i in np.flatnonzero(s.labels == label)} for s in (files, online))
        assert theirs == ours


def test_other_data_sets_are_refused(compose_config):
    with pytest.raises(ConfigError, match="digits is not generated; give dataset=fractaldb1k"):
        run_fractaldb(compose_config("task=fractaldb", "dataset=digits"))


def test_a_misspelt_option_is_named(compose_config):
    with pytest.raises(ConfigError, match=r"fractaldb\.layout: got 'flat', allowed: published, train"):
        run_fractaldb(compose_config("task=fractaldb", "fractaldb.layout=flat", "recipe.batch_size=8"))
