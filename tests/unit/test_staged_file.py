"""Copies that are cut off, damaged or outdated are completed, repaired or made again; a disk that fails is named."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from staging_lab import birds, copied, draw_shards, noted, stage, total

from vitlab.config import ConfigError
from vitlab.core.errors import UserError
from vitlab.data.sources import index, staged_file, staging
from vitlab.data.sources.registry import build_source

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def shards(tmp_path, monkeypatch):
    return draw_shards(tmp_path, monkeypatch)


def test_a_disk_that_fills_while_copying(shards, tmp_path, monkeypatch):
    dataset, write, room = birds(shards, tmp_path / "disk"), staged_file._write, [9]

    def limited(descriptor, content, at):
        if len(content) > 8 and (room.append(room.pop() - 1) or room[0] < 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, content, at)

    monkeypatch.setattr(staged_file, "_write", limited)
    wanted = r"dataset\.stage: .*\.part could not be written \(No space left on device\); make room.*continued"
    with pytest.raises(ConfigError, match=wanted):
        stage(dataset)
    monkeypatch.setattr(staged_file, "_write", write)
    assert 0 < copied(dataset) <= total(shards) - 9 * 512


def test_a_changed_original_is_copied_again_and_nothing_old_is_kept(shards, tmp_path):
    dataset = birds(shards, tmp_path / "disk")
    stage(dataset)
    (folder,) = (tmp_path / "disk").iterdir()
    before = {file.name for file in folder.iterdir()}
    file = shards / "birds-train-0001.tar"
    os.utime(file, (1, 1))
    index._remembered.cache_clear()
    assert copied(dataset) == file.stat().st_size
    assert {file.name for file in folder.iterdir()} == before
    for file in list(shards.glob("*-0001.tar")):
        file.unlink()
    index._remembered.cache_clear()
    stage(dataset)
    assert {file.name for file in folder.iterdir()} == before, "what is whole is left alone"
    os.utime(shards / "birds-train-0000.tar", (2, 2))
    index._remembered.cache_clear()
    stage(dataset)
    assert len(list(folder.glob("*.tar"))) == 2 == len(list(folder.glob("*.sums")))


DAMAGE = {
    "a byte": lambda file: file.write_bytes(file.read_bytes()[:1500] + b"?" + file.read_bytes()[1501:]),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:1500]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"more"),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a part again": lambda file: file.rename(file.with_name(f"{file.name}.part")),
}
SUMS = {
    "gone": lambda file: file.unlink(),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "other sums": lambda file: file.write_bytes(file.read_bytes()[:-8] + b"\1\2\3\4\1\0\0\0"),
    "rubbish": lambda file: file.write_bytes(b"\xff" * 200),
}


@pytest.mark.parametrize("what", [*DAMAGE, *(f"sums {what}" for what in SUMS)])
def test_a_damaged_copy_is_repaired(what, shards, tmp_path):
    dataset = birds(shards, tmp_path / "disk")
    copies, _ = stage(dataset)
    original, made = next((o, made) for o, made in copies.items() if o.path.endswith("birds-train-0000.tar"))
    file = Path(made.path)
    if what.startswith("sums"):
        SUMS[what.removeprefix("sums ")](file.with_name(f"{file.name}.sums"))
    else:
        DAMAGE[what](file)
        if file.exists():
            os.utime(file, ns=(original.modified,) * 2)
    again, whole = copied(dataset), Path(original.path).read_bytes()
    assert file.read_bytes() == whole
    zeros = len(whole) % 1000  # a tar ends in zeros, as a file does that is made longer
    few = {"a byte": 1000, "longer": 0, "a part again": 0, "sums other sums": zeros, "empty": len(whole) - zeros,
           "gone": len(whole) - zeros, "cut short": len(whole) - 1000 - zeros}  # fmt: skip
    assert again == few.get(what, len(whole))
    assert stage(dataset)[0].keys() == copies.keys() and not list(file.parent.glob("*.part"))


def test_of_large_copies_a_sample_is_compared_or_all_of_it(shards, tmp_path, monkeypatch):
    dataset = birds(shards, tmp_path / "disk")
    copies, _ = stage(dataset)
    monkeypatch.setattr(staging, "LOOKS", 0)
    made = next(made for original, made in copies.items() if original.path.endswith("birds-train-0000.tar"))
    whole = Path(made.path).read_bytes()
    Path(made.path).write_bytes(b"?" + whole[1:])
    os.utime(made.path, ns=(made.modified, made.modified))
    assert copied(dataset) == 0
    assert copied(dataclasses.replace(dataset, verify="contents")) == 1000 and Path(made.path).read_bytes() == whole


def test_an_original_that_changes_while_it_is_copied(shards, tmp_path, monkeypatch):
    dataset, copy = birds(shards, tmp_path / "disk"), staged_file.StagedFile._copy
    monkeypatch.setattr(staged_file.StagedFile, "_copy", lambda self, b: (copy(self, b), os.utime(
        shards / "birds-train-0000.tar", (5, 5)))[0])  # fmt: skip
    with pytest.raises(UserError, match=r"birds-train-0000\.tar was replaced while it was copied; run the same"):
        stage(dataset)
    assert not list((tmp_path / "disk").rglob("*birds-train-0000.tar"))


def test_a_disk_that_does_not_keep_what_is_written(shards, tmp_path, monkeypatch):
    write = staged_file._write
    monkeypatch.setattr(staged_file, "_write", lambda fd, content, at: write(fd, b"?" + bytes(content)[1:], at))
    with pytest.raises(ConfigError, match=r"dataset\.stage: .* could not be read back; is the disk damaged"):
        stage(birds(shards, tmp_path / "disk"))


def test_a_copy_that_goes_while_it_is_read(shards, tmp_path, capfd):
    dataset = birds(shards, tmp_path / "disk")
    copies, _ = stage(dataset)
    source, images = build_source(dataset, "train", copies), build_source(dataset, "train")
    for made in copies.values():
        Path(made.path).unlink()
    assert all(np.array_equal(source.image(i), images.image(i)) for i in range(len(images)))
    assert "is gone or has changed: its original is read" in capfd.readouterr().err


COPIER = """
import os, sys, time
from vitlab.config import DatasetConfig
from vitlab.data.sources import staged_file
from vitlab.data.sources.staging import staged
root, stage, gate = sys.argv[1:]
staged_file.BLOCK = 1000
copy = staged_file.StagedFile._copy
done = []
def slow(self, block):
    while len(done) >= 12 and not os.path.exists(gate):
        time.sleep(0.01)
    copy(self, block)
    done.append(self._length(block))
staged_file.StagedFile._copy = slow
for report in staged(DatasetConfig("birds", "folder", root=root, stage=stage), ("train", "eval")):
    print(report.to, report.text, flush=True)
print("copied", sum(done), flush=True)
"""


def copier(shards, disk, gate):
    """A process that copies a dozen blocks, and the others once there is a file `gate`."""
    return subprocess.Popen([sys.executable, "-c", COPIER, str(shards), str(disk), str(gate)], text=True,
                            stdout=subprocess.PIPE, encoding="utf-8")  # fmt: skip


def test_a_killed_copy_is_continued(shards, tmp_path):
    disk = tmp_path / "disk"
    with copier(shards, disk, tmp_path / "gate") as process:
        while noted(disk) < 12 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    there = noted(disk)
    assert there >= 12 and process.returncode == -signal.SIGKILL and list(disk.rglob("*.part"))
    dataset = birds(shards, disk)
    assert 0 < copied(dataset) <= total(shards) - (there - 4) * 1000  # the last block of each file is shorter
    copies, _ = stage(dataset)
    assert all(Path(original.path).read_bytes() == Path(copy.path).read_bytes() for original, copy in copies.items())


def test_of_several_processes_one_copies_and_its_place_is_taken_where_it_is_killed(shards, tmp_path):
    disk, gate = tmp_path / "disk", tmp_path / "gate"
    with copier(shards, disk, gate) as first, copier(shards, disk, gate) as second:
        assert first.stdout and second.stdout
        said = [next(line for line in each.stdout if line.startswith("screen")) for each in (first, second)]
        waiter = [line.startswith("screen waiting for another process") for line in said].index(True)
        while noted(disk) < 12:
            time.sleep(0.02)
        (first, second)[1 - waiter].kill()
        gate.touch()
        rest = (first, second)[waiter].stdout.read().splitlines()
    assert any(line.startswith("screen copying") for line in rest)
    assert rest[-1].startswith("copied ") and 0 < int(rest[-1].split()[1]) < total(shards) - 8000
    assert copied(birds(shards, disk)) == 0
