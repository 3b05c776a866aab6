"""The geometry on disk: the same bytes however it was made, and one clear word where it cannot be."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fractal_by_definition import search_categories, unpack
from vitlab.config import ConfigError, FractalConfig
from vitlab.core import files
from vitlab.core.files import DiskError
from vitlab.data.formula.cache import GeometryCache, StaleError, fingerprint, geometry_key, read_sealed, write_sealed
from vitlab.data.formula.geometry import build_geometry

ROOT = Path(__file__).parents[2]
SPEC = FractalConfig(categories=4, instances=3, image_size=33, num_points=2000)


def contents(folder: Path) -> dict[str, bytes]:
    """Relative name → bytes of every file below a folder, but the lock."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def prepared(folder: Path, spec: FractalConfig = SPEC, threads: int = 2) -> GeometryCache:
    cache = GeometryCache(spec, folder)
    cache.prepare(threads)
    return cache


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    prepared(folder)
    return folder


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def geometry_file(folder: Path, category: int = 1) -> Path:
    return folder / "fractal" / geometry_key(SPEC) / f"{category:05}.geometry"


def test_it_holds_the_geometry(made):
    cache = GeometryCache(SPEC, made)
    for number, category in enumerate(search_categories(4)):
        expected = build_geometry(category, image_size=33, num_points=2000)
        np.testing.assert_array_equal(unpack(cache.codes(number), 33), expected)
    assert not cache.codes(0).flags.writeable


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_do_not_matter(made, tmp_path, threads):
    prepared(tmp_path, threads=threads)
    assert contents(tmp_path) == contents(made)


def test_a_small_set_is_the_beginning_of_a_large_one(made, tmp_path):
    prepared(tmp_path, replace(SPEC, categories=2))
    small = contents(tmp_path)
    assert len(small) == 3
    prepared(tmp_path)
    assert contents(tmp_path) == contents(made)
    prepared(tmp_path, replace(SPEC, categories=1))
    assert contents(tmp_path) == contents(made)


def test_what_shapes_the_geometry_has_its_own_folder():
    others = [
        {"image_size": 34},
        {"num_points": 2001},
        {"threshold": 0.1},
        {"degenerate": "resample"},
        {"search_seed": 2},
    ]
    keys = {geometry_key(replace(SPEC, **other)) for other in others}
    assert len(keys | {geometry_key(SPEC)}) == 6
    for same in ({"categories": 9}, {"instances": 9}, {"mask_seed": 9}, {"fresh_masks": True}):
        assert geometry_key(replace(SPEC, **same)) == geometry_key(SPEC)
        assert fingerprint(replace(SPEC, **same)) != fingerprint(SPEC)


def test_nothing_is_done_twice(copy, monkeypatch):
    monkeypatch.setattr(GeometryCache, "_compute", lambda *_: pytest.fail("computed again"))
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    prepared(copy)
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def scribble(file: Path) -> None:
    file.write_bytes(b"\0" * 999)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes(content)


def age(file: Path) -> None:
    header, payload = read_sealed(file, {})
    for given in ("bytes", "crc32"):
        header.pop(given)
    write_sealed(file, header | {"version": 0}, np.frombuffer(payload, np.uint8).copy())


def cut_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:30])


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (cut, "truncated"),
        (empty, "not a file of this cache, or cut short"),
        (scribble, "not a file of this cache, or cut short"),
        (cut_the_header, "not a file of this cache, or cut short"),
        (flip_a_bit, "damaged"),
        (age, "version is 0, not 1"),
    ],
)
@pytest.mark.parametrize("kind", ["geometry", "search"])
def test_a_file_that_is_not_whole_is_made_anew(copy, made, capsys, harm, word, kind):
    file = geometry_file(copy)
    if kind == "search":
        file.unlink()
        (file,) = copy.rglob("*.search")
    harm(file)
    prepared(copy)
    said = capsys.readouterr().err
    assert said.count(f"{file}: {word}") == 1 and "again" in said
    assert contents(copy) == contents(made)


def test_a_cache_cut_after_it_was_opened_says_so(copy):
    cache = GeometryCache(SPEC, copy)
    cut(geometry_file(copy))
    with pytest.raises(StaleError, match="truncated"):
        cache.codes(1)


def test_left_overs_of_a_killed_writer_go(copy):
    left_over = geometry_file(copy).with_name(".00001.geometry.4711.0123abcd.part")
    left_over.write_bytes(b"half")
    geometry_file(copy).unlink()
    prepared(copy)
    assert not left_over.exists()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def refuse(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(DiskError, match=r"could not write .*fractal/.*: No space left .*make room.*VITLAB_CACHE"):
        prepared(tmp_path)


def test_a_disk_that_will_be_too_small_is_told_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskError, match=r"are needed and 10\.0 KB are free"):
        prepared(tmp_path)


def test_half_a_write_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DiskError, match="No space"):
        write_sealed(tmp_path / "x", {}, np.zeros(9, np.uint8))
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "fractal").write_text("in the way", encoding="utf-8")
    with pytest.raises(DiskError, match=r"fractal: no folder can be made there .*VITLAB_CACHE"):
        prepared(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 1}, r"dataset\.fractal\.image_size: got 1, allowed: between 16 and 2048"),
        ({"image_size": 5000}, r"dataset\.fractal\.image_size: got 5000"),
        ({"num_points": 1}, r"dataset\.fractal\.num_points: got 1, allowed: between 1000"),
        ({"search_seed": -1}, r"dataset\.fractal\.search_seed: got -1"),
        ({"mask_seed": -1}, r"dataset\.fractal\.mask_seed: got -1"),
        ({"categories": 0}, r"dataset\.fractal\.categories: got 0"),
        ({"threshold": 0.9}, r"dataset\.fractal\.threshold: got 0\.9, allowed: between 0 and 0\.38"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        prepared(tmp_path, replace(SPEC, **change))


def test_the_smallest_images_work(tmp_path):
    cache = prepared(tmp_path, replace(SPEC, categories=1, image_size=16))
    assert cache.codes(0).shape == (25, 16, 8)


def writer(folder: Path, **changes: int) -> subprocess.Popen:
    """Another process that prepares a cache."""
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from vitlab.config import FractalConfig; from vitlab.data.formula.cache import GeometryCache\n"
        f"GeometryCache(replace({SPEC!r}, **{changes!r}), Path(sys.argv[1])).prepare(1)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=ROOT, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def test_two_writers_at_once(made, tmp_path):
    both = [writer(tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("FractalDB: geometry" in words for words in said) == 1, "computed once"
    assert contents(tmp_path) == contents(made)


def test_a_killed_writer_is_resumed_to_the_same_bytes(tmp_path):
    size = {"categories": 12, "image_size": 362, "num_points": 200_000}
    process = writer(tmp_path / "killed", **size)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.rglob("*.geometry"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(list(tmp_path.rglob("*.geometry"))) < 12, "killed too late to mean anything"
    spec = replace(SPEC, **size)
    prepared(tmp_path / "killed", spec)
    prepared(tmp_path / "whole", spec)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
