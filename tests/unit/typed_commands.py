"""Commands typed in-process: up to the point where a study would be planned, and what the screen then says."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.vitlab_sweeper import StudySweeper, _Composer
from vitlab.cli.command_line import command_line
from vitlab.config import register_schemas
from vitlab.study.preflight import resolved

CONF = Path(__file__).parents[2] / "conf"
COMPOSERS: dict[tuple[str, ...], _Composer] = {}
"""Hydra's own overrides → what has composed the cells of commands with them, each combination of choices once."""


@contextlib.contextmanager
def composed(words: list[str], root: str):
    """Hydra's loader, and the configuration that it composes of a command's words, sweeps left out."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield loader, loader.load_configuration(root, overrides=words, run_mode=RunMode.MULTIRUN)


def sweeper_of(loader: Any, master: Any, launcher: Any = None) -> Any:
    """A StudySweeper as Hydra sets it up."""
    sweeper = object.__new__(StudySweeper)  # Hydra loads its plugins again, after which super() in them fails here
    sweeper.params, sweeper.overrides = dict(master.hydra.sweeper.params or {}), None
    sweeper.config, sweeper.hydra_context = master, SimpleNamespace(config_loader=loader)  # pyright: ignore
    sweeper.launcher = launcher
    if (own := tuple(master.hydra.overrides.hydra)) in COMPOSERS:
        sweeper._composer = COMPOSERS[own]
    return sweeper


def on_screen(*words: str, root: str = "config", carry_out: Any = resolved) -> str | None:
    """What `run.py WORDS` (or analyze.py's) prints where it refuses them; None where they are accepted.

    `carry_out` is given the requests, in place of the study; analyze.py's words are only read and composed.
    """
    argv, sys.argv = sys.argv, [{"config": "run.py", "analyze": "analyze.py"}[root], *words]
    try:
        with patch("vitlab.cli.command_line.prepare_output"), command_line(root):  # pytest holds the streams
            flags = [word for word in sys.argv[1:] if word.startswith("-")]
            typed = [word for word in sys.argv[1:] if word not in flags]
            with composed(typed, root) as (loader, master):
                if root == "config":
                    sweeper = sweeper_of(loader, master)
                    sweeper.carry_out = lambda requests: carry_out(requests) and 0
                    try:
                        sweeper.sweep(list(OmegaConf.to_container(master.hydra.overrides.task)))  # pyright: ignore
                    finally:
                        if composer := getattr(sweeper, "_composer", None):
                            COMPOSERS[tuple(master.hydra.overrides.hydra)] = composer
    except SystemExit as end:
        return None if end.code in (0, None) else str(end.code)
    finally:
        sys.argv = argv
    return None
