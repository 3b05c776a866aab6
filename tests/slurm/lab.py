"""Commands in a folder of their own against the cluster of the tests, and what they leave there."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trained_cells import rows

from vitlab.core.integrity import read_mapping

ROOT = Path(__file__).parents[2]
TINY = ["recipe.warmup_epochs=0", "dataset.train_per_class=32", "wandb.mode=disabled", "device=cpu"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.poll_seconds=0.5"]


class Lab:
    """Commands in a folder of their own, against the cluster."""

    def __init__(self, cluster, folder: Path, train_here: Callable[..., None]) -> None:
        self.cluster, self.folder, self.train_here = cluster, folder, train_here
        self.runs = folder / "runs"
        self.commands: list[subprocess.Popen] = []

    def start(self, *words: str, launcher: Sequence[str] = SLURM) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "-m", *launcher, *TINY, *words], cwd=self.folder,
            env=self.cluster.environment | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8"
        )  # fmt: skip
        self.commands.append(process)
        return process

    def run(self, *words: str, launcher: Sequence[str] = SLURM) -> tuple[int, str]:
        return self.end(self.start(*words, launcher=launcher))

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        """The exit code and the output of a command that comes to its end."""
        output = process.communicate(timeout=600)[0]
        return process.returncode, output

    def close(self) -> None:
        for process in self.commands:
            process.kill()
            process.communicate()
        self.cluster.clear()

    def cells(self) -> list[Path]:
        return sorted(p.parent for p in self.runs.glob("*/config.yaml"))

    def undisturbed(self, *words: str) -> list[dict]:
        """The metrics of the same cell, trained in this process without Slurm."""
        alone = self.folder / "alone" / str(len(list(self.folder.glob("alone/*"))))
        self.train_here(*TINY, *words, f"output_dir={alone}")
        (cell,) = [file.parent for file in alone.glob("*/config.yaml")]
        return rows(cell)

    def jobs(self) -> dict[str, str]:
        """Identity → job of everything that was submitted from this folder."""
        found: dict[str, str] = {}
        for file in sorted(self.runs.glob("slurm/*/jobs.json")):
            found |= read_mapping(file, "") or {}
        return found

    def queue(self) -> str:
        return self.cluster.ask("squeue", "-h", "-r", "-o", "%i %T %j")

    def sacct(self, job: str) -> str:
        """The state in accounting, which lags by seconds."""
        end = time.monotonic() + 30
        while True:
            said = self.cluster.ask("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", job).strip()
            if (said and said.split("|")[0] not in ("RUNNING", "COMPLETING", "PENDING")) or time.monotonic() > end:
                return said
            time.sleep(0.3)

    def until(self, true, seconds: float = 480) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.queue() + "".join(
                p.read_text(encoding="utf-8") for p in self.runs.glob("*/log.txt")
            )
            time.sleep(0.1)

    def until_epoch(self, count: int) -> Path:
        """Wait until the only cell has `count` rows; returns its folder."""
        self.until(lambda: any(len(rows(cell)) >= count for cell in self.cells()))
        (cell,) = self.cells()
        return cell
