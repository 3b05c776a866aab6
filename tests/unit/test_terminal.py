"""What a command prints: UTF-8 whatever the locale, and no complaint where its reader has gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from vitlab.core.terminal import prepare_output
prepare_output()
try:
    for i in range({lines}):
        print("line", i, "✓", flush={flush})
except Exception as error:
    print("taken for a mistake:", error, file=sys.stderr)
"""


@pytest.fixture
def started(tmp_path):
    """`started(lines, flush, words, NAME=VALUE)` → a process that prints so many lines."""

    def start(lines, flush=False, words=(), **changes):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(root=str(ROOT), lines=lines, flush=flush), encoding="utf-8")
        command = [sys.executable, str(script), *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | changes)

    return start


@pytest.mark.parametrize(("lines", "flush", "code"), [(100_000, False, 141), (100_000, True, 141), (1, False, 0)])
def test_a_reader_that_goes_ends_a_command_silently(started, lines, flush, code):
    process = started(lines, flush)
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "line 0 ✓\n".encode()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(30) == code
    process.stderr.close()


def test_a_reader_that_never_was_ends_it_as_silently(started):
    """Nothing was written yet when it went: the interpreter's own last flush must not complain."""
    process = started(3)
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=30)[1] == b""


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "cp932"}])
def test_the_screen_is_utf_8_in_every_locale(started, locale):
    out, error = started(1, **locale).communicate(timeout=30)
    assert (out, error) == ("line 0 ✓\n".encode(), b"")


def test_words_that_the_locale_cannot_read_are_named(started):
    out, error = started(1, words=["dataset.name=手"], LC_ALL="C", PYTHONUTF8="0").communicate(timeout=30)
    assert not out and error.decode().startswith("vitlab: in this locale Python reads the command line as ascii")
    assert started(1, words=["dataset.name=手"]).communicate(timeout=30)[1] == b""
