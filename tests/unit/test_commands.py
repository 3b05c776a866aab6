"""The process that serves commands to tests."""

from __future__ import annotations

import subprocess
import sys

import commands


def test_a_server_that_does_not_end_is_ended(monkeypatch):
    start, started = subprocess.Popen, []

    def hangs(_command, **options):
        started.append(start([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return started[0]

    monkeypatch.setenv(commands.PLACE, "")  # `served` removes its own
    monkeypatch.setattr(commands.subprocess, "Popen", hangs)
    monkeypatch.setattr(commands, "END_SECONDS", 0.1)
    with commands.served():
        assert started[0].poll() is None
    assert started[0].returncode == -9


def test_a_worker_is_a_fork_that_has_its_own_words_and_streams(tmp_path):
    """As execnet starts it: the code reads a line, and the libraries are there."""
    words = commands.WORKER.removeprefix("popen//python=").split()
    code = "import sys; print(sys.argv, 'torch' in sys.modules, 'hydra' in sys.modules, sys.stdin.readline().strip())"
    done = subprocess.run(
        [*words, "-u", "-c", code], cwd=tmp_path, input="a line\n", capture_output=True, encoding="utf-8", timeout=240
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['-c'] True False a line\n", "")
    failed = subprocess.run([*words, "-u", "-c", "raise SystemExit(3)"], stdin=subprocess.DEVNULL, timeout=240)
    assert failed.returncode == 3
