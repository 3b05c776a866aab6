"""The GPU's benchmark: what is a rate of several cells, and that no part takes the others' time or rows."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import bench_gpu, gpu_parts
from benchmarks.bench_gpu import PARTS, Size
from benchmarks.images import make_tree
from benchmarks.measure import ROOT, Row

CPU = Size(device="cpu", small=True, batch=16)


def test_the_rate_of_cells_is_that_while_all_of_them_train():
    steady = [(float(second), 10 * second) for second in range(1, 12)]
    assert gpu_parts.rate_together([steady], batch=4) == pytest.approx(40)
    late = [(second + 5.5, step) for second, step in steady]
    assert gpu_parts.rate_together([steady, late], batch=4) == pytest.approx(80)
    slower_together = [(1.0, 10), (2.0, 20), (6.0, 40), (10.0, 60), (11.0, 70)]
    assert gpu_parts.rate_together([slower_together, late], batch=1) == pytest.approx(5 + 10)
    after = [(second + 10.0, step) for second, step in steady]
    with pytest.raises(RuntimeError, match="did not train at the same time"):
        gpu_parts.rate_together([steady, after], batch=4)


@pytest.fixture
def part_of(monkeypatch, tmp_path):
    """Makes bench_gpu's parts run a script in place of gpu_parts."""
    own = subprocess.Popen

    def chosen(script):
        file = tmp_path / "part.py"
        file.write_text("import json, os, subprocess, sys, time\n" + script, encoding="utf-8")

        def started(command, **options):
            return own([sys.executable, str(file), *command[3:]], **options)

        monkeypatch.setattr(bench_gpu.subprocess, "Popen", started)

    return chosen


ROW = dataclasses.asdict(Row("a", 2.0, 1.0, "images/s", 2.0, 1.1))


def test_what_a_part_finds_is_known_to_those_after_it(part_of):
    part_of(
        f"print('a line of a library')\nprint(json.dumps(['row', {ROW}]), flush=True)\n"
        "known = json.loads(sys.argv[3])\n"
        "print(json.dumps(['known', {'rates': {sys.argv[1]: known.get('rates')}}]))\n"
    )
    known = {}
    assert list(bench_gpu.apart("step", CPU, known, 20)) == [Row(**ROW)] and known == {"rates": {"step": None}}
    list(bench_gpu.apart("pack", CPU, known, 20))
    assert known == {"rates": {"pack": {"step": None}}}


def test_a_part_that_dies_or_hangs_takes_no_other_down(part_of, tmp_path):
    part_of("print('boom', file=sys.stderr)\nos._exit(7)\n")
    assert list(bench_gpu.apart("step", CPU, {}, 20)) == ["step: failed, exit code 7: boom\n"]
    part_of(
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"print(json.dumps(['row', {ROW}]), flush=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w', encoding='utf-8').write(str(child.pid))\ntime.sleep(60)\n"
    )
    began = time.monotonic()
    row, line = bench_gpu.apart("step", CPU, {}, 2)
    assert row == Row(**ROW) and line.startswith("step: killed, it was given 2 s") and time.monotonic() - began < 30
    child = int((tmp_path / "pid").read_text(encoding="utf-8"))
    for _ in range(100):  # killed, and then waited for by whoever inherits it
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        status = (ROOT.anchor + f"proc/{child}/stat", "Z")
        with open(status[0], encoding="utf-8") as stream:
            if stream.read().rpartition(")")[2].split()[0] == "Z":
                break
        time.sleep(0.05)
    else:
        raise AssertionError("a descendant of the part lives on")


def test_each_part_is_begun_where_there_is_room_and_leaves_the_others_theirs(monkeypatch):
    given = {}

    def apart(part, size, known, seconds):
        given[part] = seconds
        yield f"{part}: failed, as it may"

    monkeypatch.setattr(bench_gpu, "apart", apart)
    size = Size(all=True)
    found = list(bench_gpu.rows(size))
    assert list(given) == ["step", "jpeg", "cells", "pack", "augment"] and len(found) == 5
    assert given["step"] == pytest.approx(540 - sum(PARTS[part] for part in list(given)[1:]), abs=1)
    assert sum(PARTS[part] for part in given) <= size.budget < 560, "all of --all, in under nine minutes"
    given.clear()
    found = list(bench_gpu.rows(Size(all=True, budget=120)))
    assert (
        list(given) == ["jpeg", "cells", "pack", "augment"] and "step: not measured, 120 s of 120 are left" in found[0]
    )
    with pytest.raises(SystemExit, match="allowed: step, jpeg"):
        list(bench_gpu.rows(Size(parts="jpg")))


def test_a_size_reaches_the_process_of_a_part(tmp_path):
    size = Size(all=True, tree=tmp_path, timm=tmp_path / "train.py", budget=7)
    assert Size.of(size.words()) == size
    run = gpu_parts.Run(size, json.loads(json.dumps({"speed": {"compile": "default", "attention": "cudnn"}})))
    assert run.speed.rounding == "compile=default attention=cudnn" and run.known["speed"]["attention"] == "cudnn"
    assert all(hasattr(run, part) for part in PARTS)


def test_what_is_missing_is_said_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(bench_gpu.importlib.util, "find_spec", lambda name: None if name == "hydra" else name)
    with pytest.raises(SystemExit, match=r"not installed here: hydra-core\. Without a network"):
        bench_gpu.require_machine(CPU)
    monkeypatch.undo()
    bench_gpu.require_machine(CPU)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU that torch can use; --small"):
        bench_gpu.require_machine(Size())


def test_further_names_of_an_image_are_the_image(tmp_path):
    make_tree(tmp_path, train=6, val=2, classes=2, distinct=4)
    files = sorted((tmp_path / "train").rglob("*.jpg"), key=lambda file: file.name)
    assert len(files) == 6 and files[5].samefile(files[1]) and not files[3].samefile(files[1])
    assert make_tree(tmp_path, train=6, val=2, classes=2, distinct=4) == 0.0
