"""`task=fractaldb` from its configuration."""

import numpy as np
import pytest
from PIL import Image

from vitlab.config import ConfigError
from vitlab.data.fractal_task import run_fractaldb


def test_the_task_follows_its_configuration(compose_config, tmp_path, monkeypatch):
    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    config = compose_config(
        "task=fractaldb", "dataset=fractaldb60", "dataset.fractal.categories=2", "dataset.fractal.instances=30",
        "dataset.fractal.image_size=40", "dataset.fractal.num_points=3000", f"fractaldb.export={tmp_path / 'tree'}",
        "fractaldb.layout=published", f"fractaldb.preview={tmp_path / 'sheet.png'}", "recipe.batch_size=8",
    )  # fmt: skip
    lines = run_fractaldb(config)
    assert lines[0] == f"geometry of 2 categories in {tmp_path / 'cache' / 'fractal'}"
    assert len(list((tmp_path / "tree" / "FractalDB-2").glob("*/*.png"))) == 60
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet).max() == 254


def test_other_data_sets_are_refused(compose_config):
    with pytest.raises(ConfigError, match="digits is not generated; give dataset=fractaldb1k"):
        run_fractaldb(compose_config("task=fractaldb", "dataset=digits"))


def test_a_misspelt_option_is_named(compose_config):
    with pytest.raises(ConfigError, match=r"fractaldb\.layout: got 'flat', allowed: published, train"):
        run_fractaldb(compose_config("task=fractaldb", "fractaldb.layout=flat", "recipe.batch_size=8"))
