"""Output of commands: UTF-8 in every locale, a silent end where the reader has gone (`… | head -1`), progress bars."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

READER_GONE = 141
"""The exit code of a command whose reader has gone: that of a program ended by SIGPIPE."""


class _Stream(io.TextIOWrapper):
    """A standard stream that raises SystemExit in place of BrokenPipeError, so that nothing takes it for a mistake.

    What is written after that disappears: cells can still be asked to save.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise self._end() from None

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise self._end() from None

    def _end(self) -> SystemExit:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return SystemExit(READER_GONE)


def prepare_output() -> None:
    """Make stdout and stderr UTF-8, and let the command end silently where their reader has gone.

    Bytes of file names that are no text in the locale are written as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or not hasattr(stream, "buffer"):  # closed, or replaced by a test
            continue
        stream.flush()
        by_line = stream.line_buffering
        setattr(sys, name, _Stream(stream.detach(), "utf-8", "surrogateescape", line_buffering=by_line))
    atexit.register(_flush)
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not all(word.isascii() for word in sys.argv):
        sys.exit(
            f"vitlab: in this locale Python reads the command line as {encoding}, and the command has other letters; "
            "unset PYTHONUTF8, or set PYTHONUTF8=1"
        )


def _flush() -> None:
    """Write what is buffered before the interpreter does, which would print an exception for a broken pipe."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(SystemExit, ValueError, AttributeError, OSError):
            stream.flush()


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, a line elsewhere; yields the function that advances it by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{label}: {total}", file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
