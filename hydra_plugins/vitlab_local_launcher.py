"""hydra/launcher=local: one process per cell on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

_NODE = {"_target_": "hydra_plugins.vitlab_local_launcher.LocalLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="local", node=_NODE, provider="vitlab")


class LocalLauncher(Launcher):
    """Hands the plan to vitlab.study.launch_local."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config = config

    @property
    def prove(self) -> Any:
        from vitlab.study.launch_local import prove_apart

        return prove_apart

    @property
    def run_plan(self) -> Any:
        from vitlab.study.launch_local import run_locally

        return run_locally

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        sys.exit("vitlab: hydra/launcher=local runs studies of hydra/sweeper=study; with another sweeper use basic")
