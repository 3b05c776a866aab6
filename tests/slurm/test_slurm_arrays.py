"""A study that is larger than the cluster's limits, on the real daemons.

The batch script puts a record where a training would leave it: forty imports of torch would take minutes.
"""

from __future__ import annotations

import sys

import pytest
from lab import ROOT, Lab

pytestmark = pytest.mark.slow

LEAVE_RECORD = """
import json, sys
from pathlib import Path
from vitlab.study.record import Record
from vitlab.study.studies import read_study

record = Record(Path(sys.argv[1]))
(entry,) = [e for e in read_study(record.folder.parent, "forty")["cells"] if e["id"] == record.id]
content = {"schema_version": 1, "id": record.id, "name": entry["name"], "experiment": entry["experiment"]}
record.write("config.yaml", content | {"labels": entry["labels"], "runtime": {"devices": 1}})
record.write("provenance.json", {"id": record.id, "device_name": "x86_64 CPU"})
figures = {"epoch": 1, "top1": 90.0, "top5": 99.0, "loss": 0.3}
row = {"epoch": 1, "step": 10, "train/loss": 1.0, "train/lr": 0.001, "images_per_second": 320.0, "seconds": 1.0}
record.append_row(row | {f"eval/{key}": value for key, value in figures.items() if key != "epoch"})
record.finish({
    "last": figures, "best": figures, "num_train": 320, "num_eval": 360, "num_parameters": 155018, "wall_seconds": 1.0,
    "device_seconds": 1.0, "images_per_second": 320.0,
})
with Path("trained.txt").open("a") as stream:
    stream.write(record.id + "\\n")
"""


@pytest.fixture
def limited(cluster, lab):
    """A `Lab` whose user may have 15 jobs; arrays are of 11 at most."""
    cluster.ask("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=15")
    script = lab.folder / "leave_record.py"
    script.write_text(LEAVE_RECORD, encoding="utf-8")
    yield lab
    cluster.ask("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")


def words_for(lab: Lab) -> list[str]:
    line = f"PYTHONPATH={ROOT} {sys.executable} {lab.folder}/leave_record.py {lab.runs}/$cell; exit $?"
    seeds = ",".join(map(str, range(40)))
    return [f"seed={seeds}", "recipe.epochs=1", "study.name=forty", f'hydra.launcher.setup=["{line}"]']


def check_all_once(lab: Lab) -> None:
    trained = (lab.folder / "trained.txt").read_text(encoding="utf-8").split()
    assert len(trained) == len(set(trained)) == 40
    sizes = [
        len((folder / "names.txt").read_text(encoding="utf-8").splitlines())
        for folder in lab.runs.glob("slurm/forty-*")
    ]
    assert sum(sizes) == 40 and max(sizes) <= 11


def test_forty_cells_are_submitted_as_places_become_free(limited):
    code, output = limited.run(*words_for(limited))
    assert code == 0, output
    assert "25 cells more than Slurm takes from you now (15 jobs at once, MaxSubmitJobs)" in output
    assert output.count("  finished  top-1 90.00") == 40
    check_all_once(limited)


def test_a_detached_study_is_submitted_by_typing_it_again(limited):
    for _ in range(6):
        code, output = limited.run(*words_for(limited), "study.detach=true")
        assert code == 0, output
        if "nothing to train" in output:
            break
        limited.until(lambda: not limited.queue())
    check_all_once(limited)
