"""Records: states, atomicity, locks, damage."""

import fcntl
import json
import multiprocessing as mp
import os
import shutil
import threading

import pytest

from vitlab.config import experiment
from vitlab.core.errors import UserError
from vitlab.core.files import DiskError
from vitlab.core.integrity import DamagedError
from vitlab.study.identity import SEMANTICS, identity
from vitlab.study.record import Record, records
from vitlab.study.studies import read_study, write_study


def test_states(tmp_path):
    record = Record(tmp_path / "c1")
    assert record.state() == "missing"
    with record.locked() as held:
        assert held
        record.write("config.yaml", {"schema_version": 1})
        assert Record(tmp_path / "c1").state() == "running"
    assert record.state() == "interrupted"
    record.write("failure.json", {"type": "E"})
    assert record.state() == "failed"
    record.write("result.json", {"schema_version": 1})
    assert record.state() == "finished"
    assert [r.id for r in records(tmp_path)] == ["c1"]


def _hold(folder, ready, release):
    with Record(folder).locked():
        ready.set()
        release.wait()


def test_a_lock_excludes_and_dies_with_its_holder(tmp_path):
    context = mp.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "c1", ready, release))
    process.start()
    assert ready.wait(60)
    record = Record(tmp_path / "c1")
    with record.locked() as held:
        assert not held
    assert record.is_locked()
    process.kill()
    process.join()
    assert not record.is_locked()
    with record.locked() as held:
        assert held


def test_rows_survive_a_torn_last_line(tmp_path):
    record = Record(tmp_path)
    for epoch in (1, 2, 3):
        record.append_row({"epoch": epoch})
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"epoch": 4, "tr')
    assert [r["epoch"] for r in record.rows()] == [1, 2, 3]
    record.keep_rows(2)
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == '{"epoch": 1}\n{"epoch": 2}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "damaged"), ("[1]", "no mapping"), ('{"schema_version": 99}', "newer vitlab.*schema 99")],
)
def test_a_damaged_or_newer_file_is_named(tmp_path, text, message):
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"result\.json: .*{message}"):
        Record(tmp_path).read("result.json")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    record = Record(tmp_path)
    record.write("result.json", {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"could not write .*result\.json.*No space left"):
        record.write("result.json", {"a": 2})
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["a"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_archiving_moves_all_but_the_lock(tmp_path):
    record = Record(tmp_path / "c1")
    record.write("config.yaml", {})
    record.write("result.json", {})
    target = record.archive()
    assert record.state() == "missing" and {p.name for p in target.iterdir()} == {"config.yaml", "result.json"}


def test_the_last_study_is_the_one_written_last(tmp_path):
    assert read_study(tmp_path) is None
    write_study(tmp_path, "one", {"cells": []})
    path = write_study(tmp_path, "two", {"cells": []})
    os.utime(path, ns=(1, 1))
    assert read_study(tmp_path)["name"] == "one" and read_study(tmp_path, "two")["name"] == "two"


def test_asking_for_a_state_does_not_keep_a_cell_from_being_trained(tmp_path):
    record = Record(tmp_path)
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open(encoding="utf-8") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not record.is_locked(), "those who ask do not see one another"
        timer = threading.Timer(0.15, fcntl.flock, (asking, fcntl.LOCK_UN))
        timer.start()
        with record.locked() as held:
            assert held
        timer.join()


def test_a_cell_in_training_is_not_archived(tmp_path):
    record = Record(tmp_path / "c1")
    record.write("result.json", {})
    with record.locked(), pytest.raises(UserError, match="another process is training this cell"):
        record.archive()
    first, second = record.archive(), record.archive()
    assert first != second and (first / "result.json").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    record = Record(tmp_path / "c1")
    record.write("config.yaml", {"a": 1})
    for name in (".last.pt.4711.0123abcd.part", ".config.yaml.12.89abcdef.part"):
        (record.folder / name).write_text("half", encoding="utf-8")
    (record.folder / ".keep").write_text("somebody's", encoding="utf-8")
    record.remove_temporaries()
    assert {p.name for p in record.folder.iterdir()} == {"config.yaml", ".keep"}


def test_a_file_of_another_cell_is_refused_and_named(tmp_path):
    one, two = Record(tmp_path / "c1"), Record(tmp_path / "c2")
    for record in (one, two):
        record.fail("E", "m")
    shutil.copy(one.folder / "failure.json", two.folder / "failure.json")
    with pytest.raises(DamagedError, match=r"c2/failure\.json: belongs to cell c1, .*study\.rerun='\[c2\]'"):
        two.read("failure.json")
    assert one.read("failure.json")["type"] == "E"


def configuration(record, cell):
    about = {"schema_version": 1, "id": record.id, "semantics": SEMANTICS, "name": "x"}
    return about | {"experiment": experiment(cell), "labels": {}, "runtime": {"devices": 1}}


def test_a_configuration_that_is_not_the_folders_is_refused(compose_config, tmp_path):
    cell, other = (compose_config(f"seed={s}").cell for s in (0, 1))
    record = Record(tmp_path / identity(cell))
    content = configuration(record, cell)
    record.write("config.yaml", content)
    assert record.read("config.yaml") == content
    record.write("config.yaml", content | {"experiment": experiment(other)})
    with pytest.raises(DamagedError, match=rf"config\.yaml: holds the configuration of cell {identity(other)}"):
        record.read("config.yaml")
    renamed = record.folder.rename(tmp_path / "backup")
    with pytest.raises(DamagedError, match=rf"belongs to cell {record.id}, and this is the folder of backup"):
        Record(renamed).read("config.yaml")


def test_every_experiments_configuration_is_its_identitys_after_a_round_trip(compose_config, tmp_path):
    for words in (["augment=deit", "recipe=deit"], ["pretrain=fractaldb"], ["dataset=cifar10_book", "recipe=book"]):
        cell = compose_config(*words, f"output_dir={tmp_path}").cell
        record = Record(tmp_path / identity(cell))
        record.write("config.yaml", configuration(record, cell))
        assert record.read("config.yaml")


def test_a_study_lists_itself_under_its_own_name(tmp_path):
    path = write_study(tmp_path, "one", {"cells": []})
    shutil.copy(path, path.with_name("two.json"))
    with pytest.raises(DamagedError, match=r"two\.json: is the list of study 'one'"):
        read_study(tmp_path, "two")
