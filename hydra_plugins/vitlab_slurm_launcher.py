"""hydra/launcher=slurm, or submitit_slurm: Hydra's submitit launcher, with a plan instead of a list of overrides."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititSlurmLauncher


class SlurmLauncher(SubmititSlurmLauncher):
    """Hands the plan to vitlab.study.launch_slurm, with the options of conf/hydra/launcher/slurm.yaml.

    The stock `launch` ends at the first cell that is killed and reports cells that raised as completed.
    """

    @classmethod
    def in_place_of(cls, stock: SubmititSlurmLauncher, typed: Collection[str]) -> SlurmLauncher:
        """This launcher with the options that the stock one was given; `typed` are the user's overrides of Hydra's own.

        What has the stock launcher's default and was not typed has ours.
        """
        defaults = {option.name: option.default for option in dataclasses.fields(SlurmQueueConf)}
        named = {word.lstrip("+").partition("=")[0].removeprefix("hydra.launcher.").partition(".")[0] for word in typed}
        apart = {"submitit_folder", "name"}  # their defaults name other keys
        given = {
            key: value
            for key, value in stock.params.items()
            if key in named or (key not in apart and value and value != defaults.get(key))
        }
        launcher = cls(**given)
        launcher.config = stock.config
        return launcher

    def run_plan(self, plan: Any, view: Any) -> dict[str, str]:
        from vitlab.study.launch_slurm import run_on_slurm
        from vitlab.study.slurm_options import SlurmOptions

        return run_on_slurm(plan, view, SlurmOptions.of(self.params))

    def about_plan(self, plan: Any) -> list[str]:
        """Further lines of a plan. Raises ConfigError for options that cannot be, before anything is written."""
        from vitlab.study.launch_slurm import plan_on_slurm
        from vitlab.study.slurm_options import SlurmOptions

        return plan_on_slurm(plan, SlurmOptions.of(self.params))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        sys.exit("vitlab: hydra/launcher=slurm runs studies of hydra/sweeper=study; with another sweeper use basic")
