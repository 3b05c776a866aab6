"""hydra/launcher=slurm: Hydra's submitit launcher, with a plan instead of a list of overrides."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as SubmititSlurmLauncher


class SlurmLauncher(SubmititSlurmLauncher):
    """Hands the plan to vitlab.study.launch_slurm, with the options of conf/hydra/launcher/slurm.yaml.

    The stock `launch` ends at the first cell that is killed and reports cells that raised as completed.
    """

    def run_plan(self, plan: Any, view: Any) -> dict[str, str]:
        from vitlab.study.launch_slurm import run_on_slurm
        from vitlab.study.slurm_options import SlurmOptions

        return run_on_slurm(plan, view, SlurmOptions.of(self.params))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        sys.exit("vitlab: hydra/launcher=slurm runs studies of hydra/sweeper=study; with another sweeper use basic")
