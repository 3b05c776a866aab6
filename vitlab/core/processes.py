"""Processes of one machine: memory without a name, locks that end with their holders, children that end with them."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import multiprocessing as mp
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

_LOCKS = 1 << 40
"""Where the bytes lie that are locked: behind all content, so that they are never read or written."""


class SharedMemory:
    """`size` bytes that this process shares with those that it is handed to as an argument of their start.

    It has no name in any file system: the kernel frees it with the last process that knows it, however that ends. Each
    of its numbered locks is one process's at a time, until that process gives it back or ends. Raises OSError where
    the machine has not so much memory.
    """

    def __init__(self, size: int, file: int | None = None) -> None:
        self.size = size
        self.file = _make(size) if file is None else file
        self.content = mmap.mmap(self.file, size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self.size, DupFd(self.file))

    def array(self, at: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """`shape` values of `dtype` from byte `at` on, shared."""
        return np.ndarray(shape, dtype, self.content, at)

    def hold(self, number: int, *, wait: bool = False) -> bool:
        """Take a lock, or say that another process has it; the process that has it already keeps it."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _LOCKS + number)
        except BlockingIOError:
            return False
        return True

    def release(self, number: int) -> None:
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, _LOCKS + number)

    def is_held(self, number: int) -> bool:
        """Whether another process has this lock."""
        if self.hold(number):
            self.release(number)
            return False
        return True

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[None]:
        """Inside, this process has the lock."""
        self.hold(number, wait=True)
        try:
            yield
        finally:
            self.release(number)


def _attach(size: int, duplicate: Any) -> SharedMemory:
    return SharedMemory(size, duplicate.detach())


def _make(size: int) -> int:
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("vitlab")
    else:
        with tempfile.TemporaryFile() as stream:
            file = os.dup(stream.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)  # now, while its lack is an error and not the end of the process
        else:
            os.ftruncate(file, size)
    except OSError:
        os.close(file)
        raise
    return file


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Signal this process when the one that started it has died."""
    parent = mp.parent_process()
    assert parent is not None, "only called in child processes"

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """`workers` processes for the tasks that are submitted inside; what has not begun is dropped where one fails.

    They end with this process, also where it is killed.
    """
    context = mp.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent, initargs=(signal.SIGKILL,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def answer_of(*command: str, seconds: float = 60) -> str | None:
    """What a command prints; None where it is not on this machine, fails, or takes more than so many seconds."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, encoding="utf-8", errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
