"""study.status, study.follow and study.cancel: the state of an output_dir's studies, shown, followed or cancelled from
outside.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from vitlab.cli.page_writer import PageWriter
from vitlab.config import Config, ConfigError
from vitlab.study.status import StudyStatus, cancel, status

POLL_SECONDS = 2.0


def run_status(config: Config) -> int:
    """Show, follow or cancel the studies below `output_dir`, or the one that `study.name` names; returns the exit code.

    Raises ConfigError where there is no such study, or where several could be meant.
    """
    key = next(k for k in ("cancel", "follow", "status") if getattr(config.study, k))
    found = _found(config)
    if key == "status":
        print("\n".join(line for study in found for line in study.lines()))
        return 0
    alive = [study for study in found if study.is_going_on]
    if len(found) > 1 and len(alive) > 1:
        names = ", ".join(study.name for study in alive)
        raise ConfigError(f"study.{key}", f"several studies are running or queued ({names}); add study.name=NAME")
    one = (alive or found)[-1]
    if key == "cancel":
        print("\n".join(cancel(one)))
        return 0
    with PageWriter(Path(config.output_dir), one.name, config.plugins, goes_on=one.is_going_on) as page:
        return _follow(Path(config.output_dir), one, page)


def _found(config: Config) -> list[StudyStatus]:
    folder = Path(config.output_dir)
    found = status(folder, config.study.name)
    if not found and config.study.name is not None:
        names = ", ".join(study.name for study in status(folder)) or "none"
        raise ConfigError("study.name", f"no study {config.study.name!r} in {folder}/; its studies: {names}")
    if not found:
        raise ConfigError("output_dir", f"no study in {folder}/; a study is listed there when it begins")
    return found


def _follow(folder: Path, study: StudyStatus, page: PageWriter) -> int:
    """Show a study until none of its cells runs or waits in the queue; Ctrl-C leaves it alone."""
    shown: list[str] = []
    try:
        with _Screen() as screen, page.saying(screen.say):
            while True:
                (study,) = status(folder, study.name)
                screen.show(study.lines(), shown)
                shown = study.lines()
                if not study.is_going_on:
                    break
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"{study.name} goes on; to look again: study.follow=true study.name={study.name}")
        return 0
    return 0 if all(cell.state == "finished" for cell in study.cells) else 1


class _Screen:
    """Lines that are drawn over in a terminal, and elsewhere are printed where they have changed."""

    def __enter__(self) -> _Screen:
        self._live = None
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Show a line above those that are drawn over."""
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(line, highlight=False, markup=False)

    def show(self, lines: list[str], before: list[str]) -> None:
        if self._live is None:
            for line in lines:
                if line not in before:
                    print(line, flush=True)
        else:
            from rich.text import Text

            self._live.update(Text("\n".join(lines)), refresh=True)
