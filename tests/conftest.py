"""What tests share: composing the real configuration in-process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def compose_config():
    """`compose_config("augment=mixup", "seed=3")` → the parsed `Config` of run.py with these overrides."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from vitlab.config import parse, register_schemas

    register_schemas()

    def composed(*overrides: str):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            tree = compose("config", overrides=list(overrides), return_hydra_config=True)
            labels = dict(tree.hydra.runtime.choices)
            values = OmegaConf.masked_copy(tree, [key for key in tree if key != "hydra"])
            return parse(OmegaConf.to_container(values, resolve=True), labels)  # pyright: ignore

    return composed


@pytest.fixture()
def requests_for(compose_config, tmp_path):
    """`requests_for(["seed=0"], ["seed=1"])` → the requests of these cells, recorded in `tmp_path`."""
    from vitlab.study.plan import Request

    def made(*lists, shared=()):
        return [Request((*o, *shared), compose_config(*o, *shared, f"output_dir={tmp_path}")) for o in lists]

    return made
