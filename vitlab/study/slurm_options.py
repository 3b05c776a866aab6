"""The options of conf/hydra/launcher/slurm.yaml, validated, and converted to submitit's parameters.

They have the names of Hydra's submitit launcher, so that `hydra/launcher=submitit_slurm` and `slurm` are one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from vitlab.config import ConfigError

_OPTIONS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "nodes": "nodes",
    "gpus-per-node": "gpus_per_node", "gpus": "gpus_per_node", "gres": "gres", "gpus-per-task": "gpus_per_task",
    "comment": "comment", "exclude": "exclude", "cpus-per-gpu": "cpus_per_gpu", "mem-per-gpu": "mem_per_gpu",
    "mem-per-cpu": "mem_per_cpu", "ntasks-per-node": "tasks_per_node", "ntasks": "tasks_per_node",
    "cpus-per-task": "cpus_per_task", "mem": "mem_gb", "time": "timeout_min", "signal": "signal_delay_s",
}  # fmt: skip
"""A flag of sbatch → the option that sets it."""
_FLAGS = ("comment", "exclude", "cpus_per_gpu", "mem_per_gpu", "mem_per_cpu")
"""Options that are flags of sbatch as they are."""
_SET_HERE = {
    "submitit_folder": "what submitit writes lies in output_dir/slurm; give output_dir=FOLDER",
    "name": "jobs are named after the study and its cells; give study.name=NAME",
    "max_num_timeout": "a cell goes on in as many allocations as it takes",
    "stderr_to_stdout": "both go into the cell's own log.txt",
}
"""Options of submitit's launcher that this one decides, and what there is instead."""
_OURS = ("array", "job-name", "output", "error", "open-mode", "dependency", "requeue", "no-requeue", "parsable", "wrap")


@dataclass(frozen=True)
class SlurmOptions:
    """conf/hydra/launcher/slurm.yaml."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    comment: str | None = None
    exclude: str | None = None
    nodes: int = 1
    gpus_per_node: int | str | None = None
    gpus_per_task: int | None = None
    gres: str | None = None
    cpus_per_gpu: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    mem_per_gpu: str | int | None = None
    mem_per_cpu: str | int | None = None
    timeout_min: int = 1440
    signal_delay_s: int = 120
    array_parallelism: int | None = None
    cells_per_job: int | Literal["auto"] = 1
    setup: Sequence[str] = ()
    additional_parameters: Mapping[str, Any] = field(default_factory=dict)
    poll_seconds: float = 5

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> SlurmOptions:
        """The options that a launcher was given. Raises ConfigError for one that does not exist or cannot be."""
        known = [option.name for option in fields(cls)]
        for key, value in given.items():
            if key in _SET_HERE:
                if value is not None:
                    raise ConfigError(f"hydra.launcher.{key}", f"got {value!r}, and vitlab sets it: {_SET_HERE[key]}")
            elif key not in known:
                raise ConfigError(
                    f"hydra.launcher.{key}",
                    f"no such option; allowed: {', '.join(known)}; other flags of sbatch: "
                    f"+hydra.launcher.additional_parameters.{key}=…",
                )
        return cls(**{key: value for key, value in given.items() if key not in _SET_HERE})

    def __post_init__(self) -> None:
        numbers = ("nodes", "timeout_min", "signal_delay_s", "tasks_per_node", "array_parallelism", "cpus_per_task")
        for key in (*numbers, "cells_per_job"):
            value, or_auto = getattr(self, key), ", or auto" if key == "cells_per_job" else ""
            if or_auto and value == "auto":
                continue
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"hydra.launcher.{key}", f"got {value!r}, expected an integer of at least 1{or_auto}")
        if self.gpus_per_task not in (None, 1):
            raise ConfigError(
                "hydra.launcher.gpus_per_task",
                f"got {self.gpus_per_task!r}; every process of a cell trains on one GPU; give "
                "hydra.launcher.gpus_per_node, the number of both",
            )
        if (self.gpus_per_node is not None) + (self._gres_gpus is not None) + (self.gpus_per_task is not None) > 1:
            raise ConfigError(
                "hydra.launcher.gpus_per_node",
                "the GPUs of a node are given once: by gpus_per_node, by gres, or by gpus_per_task and tasks_per_node",
            )
        if self.tasks_per_node is not None and self.num_gpus and self.tasks_per_node != self.num_gpus:
            raise ConfigError(
                "hydra.launcher.tasks_per_node",
                f"{self.tasks_per_node} processes cannot use {'gres' if self._gres_gpus else 'gpus_per_node'}="
                f"{self.gres if self._gres_gpus else self.gpus_per_node}, one each; "
                "leave tasks_per_node out, or make the two equal",
            )
        if self.cells_per_job != 1 and self.tasks * self.nodes > 1:
            several = "several" if self.cells_per_job == "auto" else self.cells_per_job
            raise ConfigError(
                "hydra.launcher.cells_per_job",
                f"{several} cells share one device, and each job has {self.tasks * self.nodes} processes "
                "(tasks_per_node, or gpus_per_node, times nodes); give it one GPU, or one cell",
            )
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise ConfigError(
                "hydra.launcher.signal_delay_s",
                f"{self.signal_delay_s} s before a limit of {self.timeout_min} min "
                "leaves no time to train; raise timeout_min",
            )
        for key in self.additional_parameters:
            flag = str(key).replace("_", "-")
            if flag in _OPTIONS or flag in _OURS:
                instead = f"use hydra.launcher.{_OPTIONS[flag]}" if flag in _OPTIONS else "vitlab sets it itself"
                raise ConfigError(f"hydra.launcher.additional_parameters.{key}", instead)

    @property
    def num_gpus(self) -> int:
        """GPUs of a node, without their type."""
        count = str(self._gpus or 0).rpartition(":")[2]
        if not count.isdigit():
            raise ConfigError("hydra.launcher.gpus_per_node", f"got {self._gpus!r}; allowed: 8, or a100:8")
        return int(count)

    @property
    def _gpus(self) -> int | str | None:
        """GPUs of a node as `gpus_per_node` has them, however they were given."""
        if self.gpus_per_task is not None:
            return self.tasks_per_node or 1
        return self.gpus_per_node if self._gres_gpus is None else self._gres_gpus

    @property
    def _gres_gpus(self) -> str | None:
        """The GPUs of a `gres=gpu:…`: their number, with their type where it has one; None without."""
        kind, _, count = (self.gres or "").partition(":")
        return (count or "1") if kind == "gpu" else None

    @property
    def tasks(self) -> int:
        """Processes of one cell on one node."""
        return self.tasks_per_node or self.num_gpus or 1

    def parameters(self) -> dict[str, Any]:
        """What submitit's SlurmExecutor is told of every array."""
        flags = {str(key).replace("_", "-"): value for key, value in self.additional_parameters.items()}
        flags |= {key.replace("_", "-"): getattr(self, key) for key in _FLAGS}
        flags |= {"gres": self.gres} if self._gres_gpus is None else {}
        flags = {key: value for key, value in flags.items() if value is not None and value is not False}
        known = {
            "partition": self.partition, "account": self.account, "qos": self.qos, "constraint": self.constraint,
            "nodes": self.nodes, "gpus_per_node": self._gpus, "ntasks_per_node": self.tasks,
            "cpus_per_task": self.cpus_per_task, "mem": self.mem_gb and f"{round(self.mem_gb * 1024)}M",
            "time": self.timeout_min, "signal_delay_s": self.signal_delay_s,
        }  # fmt: skip
        always = {"requeue": True, "kill-on-invalid-dep": "yes"}
        return {k: v for k, v in known.items() if v is not None} | {"additional_parameters": flags | always}
