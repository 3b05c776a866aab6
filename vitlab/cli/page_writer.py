"""A process that keeps the page of a study current while a command trains it, or looks on.

It is a process of its own, of the lowest priority, so that nothing that happens to it concerns the training, and so
that the command needs none of what tables are made with.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vitlab.study.provenance import EXPECTED, ROOT
from vitlab.study.studies import FOLDER

WAIT_SECONDS = 5.0
"""A study that is over before gets no page, unless it has one."""
END_SECONDS = 20.0
"""How long a command waits at its end for the last page; a longer one is completed without it."""


class PageWriter:
    """Keeps the page current inside; use as a context manager."""

    def __init__(self, output_dir: Path, study: str, plugins: Sequence[str], *, goes_on: bool = True) -> None:
        self._say = _print
        self._about = {"output_dir": str(output_dir), "study": study, "plugins": list(plugins), "path": sys.path}
        self._process: subprocess.Popen[str] | None = None
        self._lock, self._ended = threading.Lock(), False
        is_old = _is_unfinished(output_dir / FOLDER / f"{study}.html")
        self._timer = threading.Timer(0.0 if is_old else WAIT_SECONDS, self._begin) if goes_on or is_old else None
        self._at_once = is_old and not goes_on

    def __enter__(self) -> PageWriter:
        if self._at_once:
            self._begin()
        elif self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._ended = True
        if (process := self._process) is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
                self._reader.join(END_SECONDS)

    @contextlib.contextmanager
    def saying(self, say: Callable[[str], None]) -> Iterator[None]:
        """Inside, `say` shows what there is to say."""
        self._say = say
        try:
            yield
        finally:
            self._say = _print

    def _begin(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != EXPECTED}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "vitlab.cli.page_writer", json.dumps(self._about)]
        with self._lock:
            if self._ended:
                return
            try:
                # A group of its own, which a terminal's signals do not reach; not a session of its own, which Linux
                # gives as much of the processors as the session of the cells, whatever the priority inside
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    encoding="utf-8", errors="replace", env=environment, process_group=0,
                )  # fmt: skip
            except OSError as error:
                self._say(f"page: no process can be started for it ({error.strerror})")
                return
            self._reader = threading.Thread(target=self._pass_on, daemon=True)
            self._reader.start()

    def _pass_on(self) -> None:
        """Show what the process has to say, and that it has died."""
        process = self._process
        assert process is not None and process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with contextlib.suppress(OSError):  # whoever reads the command's output may have ended
                    self._say(line.rstrip("\n"))
        if (code := process.wait()) and not self._ended:
            self._say(f"page: no longer written (its process ended with exit code {code}); the study goes on")


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # the command that reads it may have ended
        print(line, flush=True)


def _is_unfinished(page: Path) -> bool:
    """Whether a page is that of a study that was not finished."""
    with contextlib.suppress(OSError), page.open(encoding="utf-8", errors="replace") as stream:
        return 'http-equiv="refresh"' in stream.read(2000)
    return False


def main() -> None:
    """The process: writes until its standard input ends, as it does with the command that has started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # where memory or processors are short, this is what gives way
        os.nice(19)
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    about = json.loads(sys.argv[1])
    sys.path += [entry for entry in about["path"] if entry not in sys.path]
    from vitlab.cli.analyze import AnalyzeConfig
    from vitlab.cli.live_page import LivePage, keep_current
    from vitlab.core.errors import as_user_error
    from vitlab.core.plugins import import_plugins

    def ends(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], seconds)[0])

    try:
        import_plugins(about["plugins"])
        config = AnalyzeConfig(output_dir=about["output_dir"], plugins=tuple(about["plugins"]))
        keep_current(LivePage(config, about["study"]), _print, ends)
    except Exception as error:
        if (mistake := as_user_error(error)) is None:
            raise
        _print(f"page: {mistake}")


if __name__ == "__main__":
    main()
