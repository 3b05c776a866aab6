"""A file is written whole or not at all; a lock ends with its holder; asking for a lock's state takes nothing."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vitlab.core import files
from vitlab.core.files import DiskError, is_locked, locked

WRITERS = {
    "text": lambda path: files.write_text(path, "new 新しい\n"),
    "bytes": lambda path: files.write_bytes(path, bytes(range(256))),
    "array": lambda path: files.save_array(path, np.arange(1000)),
    "arrays": lambda path: files.save_arrays(path, a=np.arange(1000)),
    "tensors": lambda path: files.save_tensors(path, {"a": torch.arange(1000)}),
}
HOLDER = """
import sys
from pathlib import Path
from vitlab.core.files import locked
with locked(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""
KILLED = """
import os, sys
from pathlib import Path
from vitlab.core.files import written_whole
with written_whole(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), 9)
"""


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(write, moment, tmp_path, monkeypatch):
    path = tmp_path / "ü result"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(moment, full_disk)
        with pytest.raises(DiskError, match=r"could not write .*ü result: .* before is intact; make room"):
            write(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write(path)
    assert path.read_bytes() != b"old" and list(tmp_path.iterdir()) == [path]


def test_a_bug_while_writing_leaves_the_old_file_and_is_raised_as_it_is(tmp_path):
    path = tmp_path / "result"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.written_whole(path) as stream:
        stream.write(b"half of the new cont")
        stream.write(bytes([1 // 0]))
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "result"
    files.write_text(path, "old")
    with files.written_whole(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")]).returncode == -9
    (tmp_path / ".hidden").touch()
    assert len(list(tmp_path.iterdir())) == 2 and not (tmp_path / "a").exists()
    files.remove_parts(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / ".hidden"]


def test_a_folder_or_lock_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="file/below: no folder can be made there"):
        files.make_folder(tmp_path / "file" / "below")
    with pytest.raises(DiskError, match=r"\.lock: cannot be locked"), locked(tmp_path / "file" / ".lock"):
        pass


def test_a_lock_is_free_after_its_holder_was_killed(tmp_path):
    lock, said = tmp_path / ".lock", []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert is_locked(lock)
        with locked(lock, wait=0.1, say=lambda: said.append("waiting")) as held:
            assert not held and said == ["waiting"]
        assert is_locked(lock), "who asked in vain took nothing away"
        holder.kill()
    assert not is_locked(lock)
    with locked(lock, say=lambda: said.append("again")) as held:
        assert held and said == ["waiting"]


def test_asking_takes_nothing_and_makes_nothing(tmp_path):
    lock = tmp_path / ".lock"
    assert not is_locked(lock) and not is_locked(tmp_path / "no" / ".lock") and not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(lock, wait=0) as held:
        assert held and is_locked(lock) and is_locked(lock)
    assert not is_locked(lock)
    asking = os.open(lock, os.O_RDONLY)
    try:
        assert not is_locked(lock)
        with locked(lock, wait=0) as held:
            assert held, "one that only has the file open is in nobody's way"
    finally:
        os.close(asking)
