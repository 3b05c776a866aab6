"""What tests share: the number of worker processes; composing and training in this process."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import re
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

ROOT = Path(__file__).parents[1]
MOST_WORKERS = 8
"""A worker collects every test, some 5 s: more of them than this gain nothing."""

SLOW_SECONDS = 1200

WHOLE = ("tests/slurm/", "tests/unit/test_missing_data.py")
"""Where tests share what takes seconds to make: these run in one worker, as each file of tests/end_to_end does."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests have more time than pyproject.toml gives to others."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than there are usable cores, as many tests wait; none for single files, which end sooner in one
    process."""
    if all(Path(argument.partition("::")[0]).is_file() for argument in config.args):
        return 0
    from vitlab.core.device import usable_cores

    return min(usable_cores() + 1, MOST_WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    """Serve commands to the tests of all workers, from the process that starts these; and the workers themselves."""
    if not hasattr(config, "workerinput"):
        from commands import WORKER, served

        serving = served()
        serving.__enter__()
        config.add_cleanup(lambda: serving.__exit__(None, None, None))
        config.option.tx = [WORKER if start == "popen" else start for start in getattr(config.option, "tx", ())]


def pytest_collection_finish() -> None:
    """Half a million objects of libraries and tests stay to the end: the garbage collector need not look at them."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out test by test, but what shares by folder or file; xdist's own, if the command names one with --dist."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith("tests/end_to_end/"):
                return nodeid.partition("::")[0]
            return next((whole for whole in WHOLE if nodeid.startswith(whole)), nodeid)

    return Scheduler(config, log)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache directory of the test's own, and no index of an earlier test's in memory."""
    from vitlab.data.sources import index

    monkeypatch.setenv("VITLAB_CACHE", str(tmp_path / "cache"))
    index._remembered.cache_clear()


@pytest.fixture(scope="session")
def compose_config():
    """`compose_config("augment=mixup", "seed=3")` → the parsed `Config` of run.py with these overrides.

    As the sweeper composes (tests/unit/test_sweeper.py holds it to Hydra): once per combination of choices, 0.1 s each.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    from hydra_plugins.vitlab_sweeper import _Composer
    from vitlab.config import register_schemas

    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", overrides=[], run_mode=RunMode.MULTIRUN)
    composer = _Composer(loader, master, OverridesParser.create(config_loader=loader))
    return lambda *overrides: composer.compose(list(overrides))


@pytest.fixture()
def requests_for(compose_config, tmp_path):
    """`requests_for(["seed=0"], ["seed=1"])` → the requests of these cells, recorded in `tmp_path`."""
    from vitlab.study.identity import Request

    def made(*lists, shared=()):
        return [Request((*o, *shared), compose_config(*o, *shared, f"output_dir={tmp_path}")) for o in lists]

    return made


@pytest.fixture(scope="session")
def train_here(compose_config):
    """`train_here("augment=none,mixup", "output_dir=…")`: run.py's study with its cells in this process.

    A start of run.py costs 8 s of processor time, most of it for torch. Commas sweep, but inside brackets.
    """
    from vitlab.cli.train_task import run_study
    from vitlab.study.cell import run_cell
    from vitlab.study.identity import Request

    def cells(plan, _view):
        return {c.id: run_cell(c.config, study=plan.study, name=c.name) for c in plan.todo}

    def trained(*words: str) -> None:
        swept = [
            [word] if "[" in word else re.sub(",", f"\n{word.partition('=')[0]}=", word).split("\n") for word in words
        ]
        requests = [Request(overrides, compose_config(*overrides)) for overrides in itertools.product(*swept)]
        assert run_study(requests, cells) == 0

    return trained


@pytest.fixture
def read(compose_config):
    """What `task=explain explain=position checkpoint=FILE` restores: nothing else is asked for."""

    from vitlab.models.restore import restore

    def restored(file: Path, *words: str):
        config = compose_config("task=explain", "explain=position", f"checkpoint={file}", *words)
        return restore(config, str(file))

    return restored


@pytest.fixture
def no_inductor(monkeypatch):
    """torch.compile traces, and its graphs run on PyTorch's own kernels: nothing waits for a C++ compiler."""
    import torch

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
