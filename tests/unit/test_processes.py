import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from commands import ROOT
from PIL import Image

LOADER = """
import multiprocessing, sys, torch
from pathlib import Path
from forms import dataset_of
from vitlab.data.loader import EvalLoader
from vitlab.data.sources.registry import build_source

def main():
    multiprocessing.set_start_method("START")  # a cell's processes come from a fork server
    dataset = dataset_of(Path(sys.argv[1]))
    batches = iter(EvalLoader(build_source(dataset, "eval"), dataset, image_size=8, rank=0, world=1, batch=1,
                              device=torch.device("cpu"), workers=2))
    sys.batches = batches  # what an error keeps, so that no loader is closed before the interpreter ends
    for _ in batches:
        print("reading", flush=True)
        input()
        raise SystemExit(3)

if __name__ == "__main__":
    main()
"""
POOL = """
import time
from vitlab.core.processes import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        pool.submit(abs, 1).result()
        pool.submit(time.sleep, 600)
        print("reading", flush=True)
        input()
"""


def processes_with(marker):
    """The processes whose environment had `marker` when they began: a command and all that come from it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as stream:
                found += [int(pid)] if marker.encode() in stream.read() else []
        except OSError:  # it has ended
            continue
    return found


def left_of(marker, seconds=30):
    """The processes with `marker` that do not end by themselves."""
    end = time.monotonic() + seconds
    while (left := processes_with(marker)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("program", "killed"),
    [(LOADER.replace("START", start), killed) for start in ("fork", "forkserver") for killed in (True, False)]
    + [(POOL, True)],
    ids=["fork-killed", "fork-ends", "server-killed", "server-ends", "pool-killed"],
)
def test_no_process_outlives_the_one_that_started_it(program, killed, tmp_path):
    """Also where that is killed, and where its children come from a fork server, which is then their parent.

    Where it ends by itself in the middle of an epoch, it waits for them, and not for long.
    """
    for split in ("train", "val"):
        (tmp_path / "tree" / split / "a").mkdir(parents=True)
        for number in range(9):
            Image.new("RGB", (9, 9)).save(tmp_path / "tree" / split / "a" / f"{number}.png")
    (script := tmp_path / "program.py").write_text(program, encoding="utf-8")
    marker, path = uuid.uuid4().hex, os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "tree")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        encoding="utf-8", env=os.environ | {"PYTHONPATH": path, "VITLAB_MARKER": marker, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout.readline() == "reading\n"
    assert len(processes_with(marker)) >= 3
    if killed:
        process.kill()
    else:
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait(60) == (-signal.SIGKILL if killed else 3)
    process.stdin.close()
    process.stdout.close()
    assert left_of(marker) == []
