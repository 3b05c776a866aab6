"""A file is written whole or not at all; a lock ends with its holder; asking for a lock's state takes nothing."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vitlab.config import ConfigError
from vitlab.core import archives, files
from vitlab.core.files import MOST_BYTES, DiskError, clean_name, in_units, is_locked, locked, require_name, text_of

WRITERS = {
    "text": lambda path: files.write_text(path, "new 新しい\n"),
    "bytes": lambda path: files.write_bytes(path, bytes(range(256))),
    "array": lambda path: archives.save_array(path, np.arange(1000)),
    "arrays": lambda path: archives.save_arrays(path, a=np.arange(1000)),
    "tensors": lambda path: archives.save_tensors(path, {"a": torch.arange(1000)}),
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


GOOD = ["birds", "手の写真", "हिन्दी", "คำ", "e\u0301te\u0301", "a b", "007", "v1.2_x-3", "x" * 100, "手" * 33, ".a"]
BAD = {
    "a/b": "'/' is none of these; for instance study.name=a_b",
    "..": "that is a folder; for instance study.name=new",
    ".": "that is a folder",
    "": "it is empty",
    "   ": "it is empty",
    " a": "it begins or ends with a space; for instance study.name=a",
    "x" * 300: "it has 300 bytes",
    "手" * 34: "it has 102 bytes",
    "../../evil": "for instance study.name=evil",
    "a\0b": r"'\\x00' is none of these",
    "a\nb": r"'\\n' is none of these",
    "a:b": "':' is none of these",
    "💥": "'💥' is none of these; for instance study.name=new",
    "/null": "for instance study.name=new",
    "7/7": "for instance study.name=new",
    "\udce9t": "is none of these",
}


@pytest.mark.parametrize("name", GOOD)
def test_names_of_any_script_are_accepted(name):
    require_name("study.name", name)
    assert clean_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_file_everywhere_is_refused(name):
    with pytest.raises(ConfigError, match=rf"study\.name: got .*{BAD[name]}"):
        require_name("study.name", name)


@pytest.mark.parametrize("name", [*GOOD, *BAD, "///", ". .", "x/" * 200])
def test_a_cleaned_name_is_accepted(name):
    require_name("study.name", clean_name(name))


def test_long_names_that_begin_alike_stay_apart():
    first, second = (clean_name("x" * 200 + end) for end in "ab")
    assert first != second and len(first.encode()) <= MOST_BYTES


@pytest.mark.parametrize("key", ["study.name", "study.table", "dataset.name", "pretrain.dataset.name"])
@pytest.mark.parametrize("name", ["a/b", "..", "../../evil", "x" * 300])
def test_every_key_refuses_them_and_its_suggestion_is_accepted(compose_config, key, name):
    words = ["pretrain=fractaldb"] if key.startswith("pretrain") else []
    with pytest.raises(ConfigError) as raised:
        compose_config(*words, f"{key}='{name}'")
    error = str(raised.value)
    assert error.startswith(f"{key}: got")
    compose_config(*words, error.rpartition("for instance ")[2])


@pytest.mark.parametrize("key", ["project", "entity"])
@pytest.mark.parametrize("name", ["a/b", "", "x" * 129, "50%"])
def test_names_that_wandb_refuses(compose_config, key, name):
    with pytest.raises(ConfigError, match=rf"wandb\.{key}: got .* for instance wandb\.{key}=vitlab"):
        compose_config(f"wandb.{key}='{name}'")


def test_a_folder_of_any_name_gives_a_data_set_one(compose_config, tmp_path):
    (tmp_path / "birds (1) + more").mkdir()
    found = compose_config("dataset=folder", f"dataset.root='{tmp_path}/birds (1) + more'")
    assert found.cell.dataset.name == "birds _1_ _ more"


def test_a_long_sweep_gets_a_short_name(requests_for):
    from vitlab.study.identity import study_name

    keys = [
        "recipe.weight_decay",
        "recipe.warmup_epochs",
        "recipe.warmup_lr",
        "augment.color_jitter",
        "augment.smoothing",
    ]
    keys += ["recipe.repeated_augmentation", "dataset.train_per_class", "dataset.val_fraction", "recipe.lr_base_batch"]
    lists = [[f"{key}={value}" for key, value in zip(keys, values, strict=True)]
             for values in ((0, 1, 0.1, 0, 0, 1, 20, 0, 256), (0.1, 2, 0.2, 0.1, 0.1, 2, 30, 0.1, 512))]  # fmt: skip
    requests = requests_for(*lists)
    require_name("study.name", study_name(requests[0].config, requests))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (55_296, "55.3 KB"), (999_949, "999.9 KB"),
     (999_950, "1.0 MB"), (154_140_672, "154.1 MB"), (7.5e9, "7.5 GB"), (3.4e11, "340.0 GB"), (2.5e12, "2,500.0 GB")],
)  # fmt: skip
def test_bytes_in_units_that_show_them(count, text):
    assert in_units(count) == text


def test_names_of_files_become_text():
    assert text_of("手") == "手" and text_of(os.fsdecode(b"h\xe5nd")) == "h\\xe5nd"
    assert text_of("手", "ascii") == "\\xe6\\x89\\x8b"
