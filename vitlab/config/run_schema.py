"""The typed schema of a run: where and how its cells are trained and recorded. No identity holds any of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vitlab.config.schema import CellConfig, number


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: online where an API key is configured, else offline."""
    project: str = "vitlab"
    entity: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyConfig:
    """How a command handles its set of cells."""

    name: str | None = None
    """Null: the experiment's name, or one made from the sweep."""
    table: str | None = None
    cells: tuple[str, ...] = ()
    """An explicit list of cells, each a string of overrides, in place of the sweep's product or in addition to it."""
    part: Literal["cell", "pretraining"] = "cell"
    """Train the cell itself, or the pre-training that it starts from (set by the plan)."""
    dry_run: bool = False
    retry_failed: bool = False
    attempts: int = number(3, low=1)
    """Attempts in a row without progress (killed, out of memory, a lost node) after which a cell counts as failed."""
    replace: bool = False
    """Leave in the study's list what this command plans; false: cells that it does not plan stay in the list."""
    rerun: str | tuple[str, ...] | None = None
    """`all`, or a list of identities: archive their records and train again."""
    detach: bool = False
    status: bool = False
    """Print the state of every study below `output_dir`, and train nothing."""
    follow: bool = False
    """The same of one study, until none of its cells runs or waits."""
    cancel: bool = False
    """Have the cells of one study save and end, and take the waiting ones out of Slurm's queue."""
    code: Literal["frozen", "live"] = "frozen"
    """Train on a copy of the code (`output_dir/code`), each cell to its end on the one that it began with; or on the
    files as they are when a process starts."""
    cells_at_once: int | Literal["auto"] = number("auto", low=1)
    """Cells that train at once on this machine (hydra/launcher=local); auto: one per idle GPU, or per `threads` CPU
    cores."""
    cells_per_device: int | Literal["auto"] | None = number(None, low=1)
    """Cells that train at once on each device, each a process of its own; the CPU is one device. null: one on each GPU,
    and on the CPU as `cells_at_once`; auto: what a trial on the device finds (vitlab/study/capacity.py)."""
    share_loader: bool = True
    """Read images once for cells that train at once and see the same crops."""
    keep_evaluation: bool = False
    """Keep the images to evaluate on in memory, decoded once for all cells; the plan shows how much that takes."""
    cell_minutes: float | None = number(None, low=0)
    """End a cell that runs longer, as hung; null: never."""


@dataclass(frozen=True)
class Config:
    """A whole run: the cell, where and how to run it, and the options of the task that was chosen."""

    task: Literal["train", "evaluate", "explain", "fractaldb", "pack", "preview", "export"]
    cell: CellConfig
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = number(1, low=1)
    workers: int = number(0, low=0)
    threads: int = number(1, low=1)
    device_batch: int | None = number(None, low=1)
    """Samples per forward pass on one device; null: the largest that fits. The rest is gradient accumulation."""
    tune: bool = False
    """Try ways to run the step on this device before training, and take the fastest (vitlab/train/tuning.py)."""
    plugins: tuple[str, ...] = ()
    """Modules of the user's, imported in every process, that register policies, data sets, models or metrics."""
    output_dir: str = "runs"
    checkpoint: str | tuple[str, ...] | None = None
    weights: Literal["raw", "ema", "student"] = "raw"
    wandb: WandbConfig = WandbConfig()
    study: StudyConfig = StudyConfig()
    options: Mapping[str, Any] = field(default_factory=dict)
    """The task's own options, as composed under the task's name; the task parses them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Group → the option that was chosen. For people; never part of an identity."""
    typed: tuple[str, ...] = ()
    """The keys that the user gave values to, in dotted form."""
    idle: Mapping[str, str] = field(default_factory=dict)
    """Those of `typed` that cannot act in this cell → "acts only …" (vitlab/config/effects.py)."""

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The names in `checkpoint`: one, several or none."""
        return (self.checkpoint,) if isinstance(self.checkpoint, str) else self.checkpoint or ()
