"""hydra/launcher=slurm: cells as Slurm job arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf


class SlurmLauncher(Launcher):
    """Hands the plan to vitlab.study.slurm, with the options of conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **options: Any) -> None:
        self.options = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()}

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.config = config

    def run_plan(self, plan: Any, view: Any) -> dict[str, str]:
        from vitlab.study.slurm import SlurmOptions, run_on_slurm

        options: dict[str, Any] = dict(self.options)
        return run_on_slurm(plan, view, SlurmOptions(**options))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ValueError("hydra/launcher=slurm runs studies of hydra/sweeper=study; with another sweeper use basic")
