"""What a person sees of a study: a live table in a terminal, plain lines elsewhere, a plan before, a summary after."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitlab.core.metrics import figure
from vitlab.study.plan import Plan, PlannedCell, planned_steps
from vitlab.train.events import EpochEnded, Event, Progressed, Staged, Started

MARKS = {
    "finished": "✓",
    "failed": "✗",
    "damaged": "✗",
    "blocked": "⊘",
    "running": "▸",
    "waiting": "·",
    "not submitted": "·",
    "interrupted": "‖",
    "killed": "✗",
    "running elsewhere": "▹",
}
COLOURS = {
    "finished": "green",
    "failed": "red",
    "killed": "red",
    "damaged": "red",
    "blocked": "yellow",
    "running": "cyan",
}


@dataclass
class Progress:
    """Where one cell stands, from the events of its process."""

    cell: PlannedCell
    total_steps: int
    status: str = "waiting"
    epoch: int = 0
    step: int = 0
    rate: float = 0.0
    row: Mapping[str, Any] = field(default_factory=dict)
    started: float = 0.0
    """When training began; 0 while the process still starts, reads and builds."""
    first_step: int = 0
    note: str = ""
    loader: str = ""
    """Which loader it reads from: a shared one's mark, or its own; empty where there is no choice."""

    def update(self, event: Event) -> None:
        match event:
            case Staged(text, to):
                self.note = text if to == "view" else ""
            case Started(epoch, step, total_steps):
                self.status, self.note, self.started, self.first_step = "running", "", time.monotonic(), step
                self.epoch, self.step, self.total_steps = epoch, step, total_steps
            case Progressed(step, rate):
                self.step, self.rate = step, rate
            case EpochEnded(row):
                self.epoch, self.step, self.row, self.rate = row["epoch"], row["step"], row, row["images_per_second"]

    @property
    def epochs(self) -> int:
        content = self.cell.config.cell
        part = content.pretraining if self.cell.config.study.part == "pretraining" else content
        assert part is not None, "only planned where there is one"
        return part.recipe.epochs

    @property
    def shown_status(self) -> str:
        """`starting` until the first step."""
        return "starting" if self.status == "running" and not self.started else self.status

    @property
    def seconds_left(self) -> float | None:
        done = self.step - self.first_step
        if self.status != "running" or done <= 0:
            return None
        return (time.monotonic() - self.started) / done * (self.total_steps - self.step)


def line_of(event: Event, epochs: int) -> str | None:
    """What is printed of an event, on the screen and in the cell's log; None for one that is only shown live."""
    if isinstance(event, Staged):
        return None if event.to == "view" else event.text
    if isinstance(event, Started):
        return (
            f"continues after epoch {event.epoch}, step {event.step} of {event.total_steps}" if event.step else "starts"
        )
    if not isinstance(event, EpochEnded):
        return None
    row = event.row
    parts = [f"epoch {event.epoch}/{epochs}", f"loss {row['train/loss']:.3f}"]
    shown = figure()
    parts += [f"{shown.title} {shown.shown(row[shown.row_key])}"] if shown.row_key in row else []
    return "  ".join([*parts, f"{row['images_per_second']:.0f} img/s"])


class View:
    """Shows the progress of a study; use as a context manager."""

    def __init__(self, plan: Plan, stream: Any = None) -> None:
        self.stream = stream or sys.stdout
        self.cells = {cell.id: Progress(cell, planned_steps(cell)) for cell in plan.todo}
        self.before = Counter(
            c.state for c in plan.cells if not c.selected and c.state in ("finished", "failed", "damaged")
        )
        self.study, self.begun = plan.study, time.monotonic()
        self._live: Any = None

    def __enter__(self) -> View:
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream)
            self._live = Live(self.table(console.width), console=console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, identity: str, event: Event) -> None:
        progress = self.cells[identity]
        progress.update(event)
        if isinstance(event, Staged) and event.to == "screen":
            self.say(f"{progress.cell.name}: {event.text}")
        if self._live is None and isinstance(event, EpochEnded):
            left = progress.seconds_left
            until = f"  {duration(left)} left" if left else ""
            self.say(f"{progress.cell.name}: {line_of(event, progress.epochs)}{until}")
        self.refresh()

    def status(self, identity: str, status: str, note: str = "") -> None:
        progress = self.cells[identity]
        if (progress.status, progress.note) == (status, note):
            return
        progress.status, progress.note = status, note
        if status == "finished":
            progress.step = progress.total_steps  # whoever has trained it
        if self._live is None:
            self.say(
                f"{MARKS.get(status, ' ')} {progress.cell.name} ({identity}): {status}{': ' + note if note else ''}"
            )
        self.refresh()

    def loader(self, identity: str, mark: str) -> None:
        """Show from which loader a cell reads."""
        self.cells[identity].loader = mark

    def say(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self.stream, flush=True)

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self.table(self._live.console.width))

    def table(self, width: int = 120) -> Any:
        """The live view in `width` columns: a line on the whole study, a row per cell, and below what went wrong."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = 24 if width >= 120 else 12
        shown = self._shown()
        sharing = any(progress.loader for progress in shown)
        titles = [("loader", 6)] * sharing
        titles += [("epoch", 7), ("loss", 5), (figure().title, 6), ("img/s", 5), ("left", 11)]
        names = max(12, width - 2 - (bar + 1) - sum(size + 1 for _, size in titles))
        table = Table(box=None, pad_edge=False, expand=False, padding=(0, 1, 0, 0))
        table.add_column("", width=1, no_wrap=True)
        table.add_column("cell", no_wrap=True)
        table.add_column("progress", width=bar, no_wrap=True, overflow="ellipsis")
        for title, size in titles:
            table.add_column(title, justify="right", width=size, no_wrap=True)
        for progress in shown:
            row, status, left = progress.row, progress.shown_status, progress.seconds_left
            style = COLOURS.get(progress.status, "dim")
            moving = status in ("running", "finished", "interrupted")
            table.add_row(
                Text(MARKS.get(progress.status, " "), style=style),
                Text(shortened(progress.cell.name, names), style=style),
                ProgressBar(total=max(1, progress.total_steps), completed=progress.step, width=bar)
                if moving
                else Text("elsewhere" if status == "running elsewhere" else status, style=style),
                *([progress.loader if progress.status == "running" else ""] * sharing),
                f"{progress.epoch}/{progress.epochs}" if progress.epoch else "",
                f"{row['train/loss']:.3f}" if "train/loss" in row else "",
                figure().shown(row[figure().row_key]) if figure().row_key in row else "",
                f"{progress.rate:.0f}" if progress.status == "running" and progress.rate else "",
                duration(left) if left else "",
            )
        notes = [
            Text(
                f"{MARKS.get(p.status, ' ')} {shortened(p.cell.name, names)}: {p.note}",
                no_wrap=True,
                overflow="ellipsis",
            )
            for p in self.cells.values()
            if p.note
        ]
        hidden = len(self.cells) - len(shown)
        more = [Text(f"  … and {hidden} more", style="dim")] if hidden else []
        hint = Text("Ctrl-C saves and stops; the same command goes on", style="dim")
        return Group(Text(self.headline(), style="bold"), table, *more, *notes[-5:], hint)

    def _shown(self, most: int = 30) -> list[Progress]:
        """All cells of a small study; of a large one those that are running or have ended last."""
        cells = list(self.cells.values())
        if len(cells) <= most:
            return cells
        order = {"running": 0, "failed": 1, "killed": 1, "finished": 2}
        return sorted(cells, key=lambda p: (order.get(p.status, 3), -p.started))[:most]

    def headline(self) -> str:
        """How many cells are where, of the whole study; how long it has taken and is likely to take."""
        counts = Counter(p.status for p in self.cells.values()) + self.before
        order = dict.fromkeys(("finished", "running", "waiting", "failed", "killed", "blocked", *counts))
        parts = [f"{counts[status]} {status}" for status in order if counts[status]]
        alive = [p for p in self.cells.values() if p.status not in ("failed", "killed", "blocked")]
        todo = sum(p.total_steps - p.first_step for p in alive)
        done = sum(p.step - p.first_step for p in alive) / todo if todo else 0.0
        elapsed = time.monotonic() - self.begun
        eta = f", about {duration(elapsed / done * (1 - done))} left" if 0.02 < done < 1 else ""
        return f"{self.study}: {', '.join(parts)} of {counts.total()}; {duration(elapsed)} so far{eta}"


def shortened(text: str, most: int) -> str:
    """`text` in at most so many characters: its two ends, which tell cells apart, around an ellipsis."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def duration(seconds: float) -> str:
    """A length of time as people say it: 42 s, 3 min 20 s, 5 h 10 min, 12 d 3 h."""
    seconds = round(seconds)
    for size, unit, below, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            whole, rest = divmod(round(seconds / below), size // below)
            return f"{whole} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{seconds} s"
