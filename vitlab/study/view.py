"""What a person sees of a study: a live table in a terminal, plain lines elsewhere, a plan before, a summary after."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from vitlab.study.plan import Plan, PlannedCell

MARKS = {
    "finished": "✓",
    "failed": "✗",
    "blocked": "⊘",
    "running": "▸",
    "waiting": "·",
    "interrupted": "‖",
    "killed": "✗",
}


@dataclass
class Progress:
    """Where one cell stands, from the events of its process."""

    cell: PlannedCell
    status: str = "waiting"
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    rate: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    first_step: int = 0
    note: str = ""

    def update(self, event: dict[str, Any]) -> None:
        if "start" in event:
            start = event["start"]
            self.status, self.started, self.first_step = "running", time.monotonic(), start["step"]
            self.epoch, self.step, self.total_steps = start["epoch"], start["step"], start["derived"]["total_steps"]
        elif "progress" in event:
            self.step, self.rate = event["progress"]["step"], event["progress"]["images_per_second"]
        elif "epoch" in event:
            self.epoch, self.step, self.row, self.rate = (
                event["epoch"],
                event["step"],
                event,
                event["images_per_second"],
            )

    @property
    def seconds_left(self) -> float | None:
        done = self.step - self.first_step
        if self.status != "running" or done <= 0:
            return None
        return (time.monotonic() - self.started) / done * (self.total_steps - self.step)

    def metrics(self) -> str:
        parts = [f"loss {self.row['train/loss']:.3f}"] if "train/loss" in self.row else []
        if "eval/top1" in self.row:
            parts.append(f"top-1 {self.row['eval/top1']:.2f}")
        return "  ".join(parts)


class View:
    """Shows the progress of a study; use as a context manager."""

    def __init__(self, plan: Plan, stream: Any = None) -> None:
        self.stream = stream or sys.stdout
        self.cells = {cell.id: Progress(cell) for cell in plan.todo}
        self.study, self.begun = plan.study, time.monotonic()
        self._live: Any = None

    def __enter__(self) -> View:
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self.table(), console=Console(file=self.stream), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, identity: str, event: dict[str, Any]) -> None:
        progress = self.cells[identity]
        progress.update(event)
        if self._live is None and "epoch" in event:
            left = progress.seconds_left
            epochs = progress.cell.config.study.part == "cell" and progress.cell.config.cell.recipe.epochs
            of = f"/{epochs}" if epochs else ""
            until = f"  {duration(left)} left" if left else ""
            rate = f"{progress.rate:.0f} img/s"
            self.say(f"{progress.cell.name}: epoch {event['epoch']}{of}  {progress.metrics()}  {rate}{until}")
        self.refresh()

    def status(self, identity: str, status: str, note: str = "") -> None:
        progress = self.cells[identity]
        if (progress.status, progress.note) == (status, note):
            return
        progress.status, progress.note = status, note
        if self._live is None:
            self.say(
                f"{MARKS.get(status, ' ')} {progress.cell.name} ({identity}): {status}{': ' + note if note else ''}"
            )
        self.refresh()

    def say(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self.stream, flush=True)

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self.table())

    def table(self) -> Any:
        """The live view: a line on the whole study, one row per cell, and what went wrong below."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, expand=False)
        table.add_column("", min_width=1, no_wrap=True)
        table.add_column("cell", overflow="ellipsis")  # the one that gives way where the terminal is narrow
        table.add_column("progress", width=24, no_wrap=True, overflow="ellipsis")
        for title, width in (("epoch", 5), ("loss", 5), ("top-1", 5), ("img/s", 5), ("left", 10)):
            table.add_column(title, justify="right", min_width=width, no_wrap=True)
        colours = {"finished": "green", "failed": "red", "killed": "red", "blocked": "yellow", "running": "cyan"}
        for progress in self._shown():
            row = progress.row
            bar = ProgressBar(total=max(1, progress.total_steps), completed=progress.step, width=24)
            left = progress.seconds_left
            table.add_row(
                Text(MARKS.get(progress.status, " "), style=colours.get(progress.status, "dim")),
                Text(progress.cell.name, style=colours.get(progress.status, "dim")),
                bar
                if progress.status in ("running", "finished")
                else Text(progress.status, style=colours.get(progress.status, "dim")),
                str(progress.epoch) if progress.epoch else "",
                f"{row['train/loss']:.3f}" if "train/loss" in row else "",
                f"{row['eval/top1']:.2f}" if "eval/top1" in row else "",
                f"{progress.rate:.0f}" if progress.status == "running" and progress.rate else "",
                duration(left) if left else "",
            )
        notes = [
            Text(f"{MARKS.get(p.status, ' ')} {p.cell.name}: {p.note}", no_wrap=True, overflow="ellipsis")
            for p in self.cells.values()
            if p.note
        ]
        return Group(Text(self.headline(), style="bold"), table, *notes[-5:])

    def _shown(self, most: int = 30) -> list[Progress]:
        """All cells of a small study; of a large one those that are running or have ended last."""
        cells = list(self.cells.values())
        if len(cells) <= most:
            return cells
        order = {"running": 0, "failed": 1, "killed": 1, "finished": 2}
        return sorted(cells, key=lambda p: (order.get(p.status, 3), -p.started))[:most]

    def headline(self) -> str:
        counts: dict[str, int] = {}
        for progress in self.cells.values():
            counts[progress.status] = counts.get(progress.status, 0) + 1
        parts = [
            f"{counts[s]} {s}" for s in ("finished", "running", "waiting", "failed", "killed", "blocked") if s in counts
        ]
        alive = [p for p in self.cells.values() if p.status not in ("failed", "killed", "blocked")]
        done = sum(p.step / p.total_steps if p.total_steps else 0.0 for p in alive)
        elapsed = time.monotonic() - self.begun
        eta = f", {duration(elapsed / done * (len(alive) - done))} left" if 0.05 < done < len(alive) else ""
        return f"{self.study}: {', '.join(parts)} of {len(self.cells)}; {duration(elapsed)} so far{eta}"


def duration(seconds: float) -> str:
    """A length of time as people say it: 42 s, 3 min 20 s, 5 h 10 min, 12 d 3 h."""
    for size, unit, below, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = round(seconds % size / below)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{seconds:.0f} s"
