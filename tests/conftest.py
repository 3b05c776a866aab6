"""What tests share: the number of worker processes, and composing the real configuration in-process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

ROOT = Path(__file__).parents[1]
MOST_WORKERS = 8
"""A worker imports torch and collects every test, some 8 s: more of them than this gain nothing."""

COSTLY = {"swept", "cell", "cluster"}
"""Fixtures that take seconds to make. The tests of one such fixture run in one worker."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker per usable core; none for single files, which end sooner in one process."""
    if all(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in COSTLY.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{name}"))


@pytest.fixture(scope="session")
def compose_config():
    """`compose_config("augment=mixup", "seed=3")` → the parsed `Config` of run.py with these overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from vitlab.cli.typed import typed_keys
    from vitlab.config import parse, register_schemas

    register_schemas()

    def composed(*overrides: str):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            tree = compose("config", overrides=list(overrides), return_hydra_config=True)
            labels = dict(tree.hydra.runtime.choices)
            values = OmegaConf.masked_copy(tree, [key for key in tree if key != "hydra"])
            typed = typed_keys(OverridesParser.create().parse_overrides(list(overrides)))
            return parse(OmegaConf.to_container(values, resolve=True), labels, typed)  # pyright: ignore

    return composed


@pytest.fixture()
def requests_for(compose_config, tmp_path):
    """`requests_for(["seed=0"], ["seed=1"])` → the requests of these cells, recorded in `tmp_path`."""
    from vitlab.study.plan import Request

    def made(*lists, shared=()):
        return [Request((*o, *shared), compose_config(*o, *shared, f"output_dir={tmp_path}")) for o in lists]

    return made
