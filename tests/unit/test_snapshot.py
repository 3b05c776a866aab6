"""The copy of a study's code: what it holds, what is wrong with it, who runs it, and when it is removed."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planned import begin

from vitlab.cli.train_task import run_study
from vitlab.core.errors import UserError
from vitlab.core.files import DiskError, locked
from vitlab.core.plugins import import_plugins
from vitlab.study import provenance, snapshot
from vitlab.study.plan import build_plan, study_content
from vitlab.study.studies import write_study

ROOT = Path(__file__).parents[2]


@pytest.fixture
def code(tmp_path):
    """A snapshot of this code."""
    return snapshot.take_snapshot(snapshot.make_folder(tmp_path / "code"), ())


def edit(file: Path, text: str = "# edited\n") -> None:
    file.chmod(0o644)
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_equal_code_is_one_copy_that_nobody_writes_to(code, tmp_path):
    assert snapshot.take_snapshot(tmp_path / "code", ()) == code and snapshot.damage(code) == ""
    assert [entry.name for entry in (tmp_path / "code").iterdir() if entry.is_dir()] == [code.name]
    copied = {file.relative_to(code).as_posix() for file in code.rglob("*") if file.is_file()}
    ours = {file.relative_to(ROOT).as_posix() for file in (ROOT / "vitlab").rglob("*.py")}
    assert ours | {"run.py", "conf/config.yaml", "hydra_plugins/vitlab_sweeper.py"} <= copied
    assert not any(entry.stat().st_mode & 0o222 for entry in (code, *code.rglob("*")))
    assert provenance.code_fingerprint(code) == provenance.code_fingerprint()
    assert snapshot.version_of(code) == {"code": provenance.code_fingerprint(), **provenance.code_version()}


def test_a_process_runs_the_copy_from_wherever_it_starts(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    program = (
        "import vitlab.config, hydra_plugins.vitlab_sweeper as s; from vitlab.study import provenance as p;"
        "print(vitlab.__path__[0], s.__file__, p.snapshot_here(), p.code_version()['commit'])"
    )
    before = sys.path.copy(), dict(os.environ)
    with snapshot.importing_from(code):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert (sys.path, dict(os.environ)) == before
    package, plugin, name, commit = done.stdout.split()
    assert Path(package) == code / "vitlab" and Path(plugin).parent == code / "hydra_plugins" and name == code.name
    assert commit == str(provenance.code_version()["commit"])


def test_libraries_stay_where_vitlab_is_installed_among_them(code, monkeypatch):
    libraries = Path(os.__file__).parent
    monkeypatch.setattr(snapshot, "_LIBRARIES", (libraries,))
    monkeypatch.setattr(snapshot, "ROOT", libraries)
    monkeypatch.setattr(sys, "path", [str(libraries), "/elsewhere"])
    with snapshot.importing_from(code):
        assert sys.path == [str(code), str(libraries), "/elsewhere"]


def test_other_code_than_the_one_that_was_meant_is_refused(code, monkeypatch):
    monkeypatch.setenv(provenance.EXPECTED, code.name)
    with pytest.raises(UserError, match=f"{code.name}, is gone; nothing was trained on other code"):
        snapshot.require_expected_code()
    monkeypatch.delenv(provenance.EXPECTED)
    snapshot.require_expected_code()


def test_damage_is_named_and_made_good_by_code_that_is_the_same(code, tmp_path):
    edit(code / "vitlab/train/loop.py")
    assert snapshot.damage(code) == "is damaged (vitlab/train/loop.py has changed)"
    assert snapshot.take_snapshot(tmp_path / "code", ()) == code and snapshot.damage(code) == ""
    edit(code / snapshot.MANIFEST)
    assert snapshot.damage(code) == "is damaged (files.sha256 has changed)"
    snapshot._remove(code)
    assert snapshot.damage(code) == "is gone"


def test_plugins_are_copied_with_their_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "frozen_package"
    package.mkdir()
    for name, text in (("__init__", ""), ("mine", "from frozen_package import other\n"), ("other", "X = 1\n")):
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "frozen_single.py").write_text("Y = 1\n", encoding="utf-8")
    plugins = ("frozen_package.mine", "frozen_single", "timm")
    import_plugins(plugins)
    code = snapshot.take_snapshot(snapshot.make_folder(tmp_path / "runs/code"), plugins)
    assert (code / "frozen_package/other.py").is_file() and (code / "frozen_single.py").is_file()
    assert not (code / "timm").exists(), "an installed library"
    edit(package / "other.py")
    assert snapshot.take_snapshot(tmp_path / "runs/code", plugins) != code


def test_a_full_disk_leaves_nothing_half_made(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot.shutil, "copy2", full)
    with pytest.raises(DiskError, match=r"code/\w{16}: No space left on device.*make room"):
        snapshot.take_snapshot(snapshot.make_folder(tmp_path / "code"), ())
    assert not list((tmp_path / "code").iterdir())


def test_a_cell_that_has_begun_goes_on_with_its_code(requests_for, tmp_path, code):
    requests = requests_for(["seed=0"], ["seed=1"])
    record = begin(tmp_path, requests[0].config)
    record.write("provenance.json", {"id": record.id, "from_step": 0, "snapshot": code.name, "packages": {}})

    def planned():
        return build_plan(requests, "s", frozen=True)

    assert planned().cells[0].code is None, "without a checkpoint nothing has been trained"
    (record.folder / "last.pt").write_bytes(b"")
    assert [cell.code for cell in planned().cells] == [code.name, None]
    assert not any("code" in note for note in planned().notes), "it is today's"
    edit(code / provenance.ORIGIN, "")
    (code / provenance.ORIGIN).write_text(json.dumps({"code": "of another day", "commit": None}), encoding="utf-8")
    (note,) = [note for note in planned().notes if note.startswith("the code has changed")]
    assert note.startswith("the code has changed: none/s0 goes on with") and code.name in note
    with snapshot.frozen(planned()) as plan:
        assert plan.code_of(plan.cells[0]) == code and study_content(plan, requests[0].config)["cells"][0]["code"]
    assert build_plan(requests, "s").cells[0].code is None, "study.code=live"


def test_the_code_of_a_cell_that_is_gone_is_refused_before_anything_starts(requests_for, tmp_path, monkeypatch):
    requests = requests_for(["seed=0"], shared=("study.name=s",))
    monkeypatch.setattr("vitlab.study.plan.begun_on", lambda *_: "0123456789abcdef")

    def never(*_):
        raise AssertionError("nothing may start")

    with pytest.raises(UserError, match=r"code/0123456789abcdef: the code that none/s0.*is gone.*study\.code=live"):
        run_study(requests, never, never, freezes=True)
    assert not list((tmp_path / "code").glob("[0-9a-f]*")) and not (tmp_path / "studies").exists()
    assert run_study(requests_for(["seed=0"], shared=("study.code=live",)), lambda *_: {}, freezes=True) == 0


def test_a_copy_is_removed_with_the_last_unfinished_cell_that_names_it(requests_for, tmp_path, code):
    plan = build_plan(requests_for(["seed=0"], ["seed=1"]), "s")
    with snapshot.frozen(plan) as frozen:
        assert frozen.code_of(frozen.cells[0]) == code
        assert snapshot.remove_unused(tmp_path) == [], "a running command holds it"
        write_study(tmp_path, "s", study_content(frozen, plan.cells[0].config))
    assert code.is_dir(), "its cells are not finished"
    for cell in plan.cells:
        assert code.is_dir()
        record = plan.record(cell)
        record.folder.mkdir()
        (record.folder / "result.json").write_text("{}", encoding="utf-8")
        snapshot.remove_unused(tmp_path)
    assert not code.exists()


def test_queued_jobs_keep_their_copy(tmp_path, code):
    batch = tmp_path / "slurm/s-1"
    batch.mkdir(parents=True)
    (batch / "code").write_text(code.name, encoding="utf-8")
    (batch / "jobs.json").write_text(json.dumps({"c1": "12_0", "digest": "…"}), encoding="utf-8")
    assert snapshot.remove_unused(tmp_path) == [] and code.is_dir()
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1/result.json").write_text("{}", encoding="utf-8")
    assert snapshot.remove_unused(tmp_path) == [code.name] and not code.exists()


def test_a_dead_command_holds_nothing(tmp_path, code):
    user = tmp_path / "code/1.user"
    with locked(user):
        user.write_text(code.name, encoding="utf-8")
        assert snapshot.remove_unused(tmp_path) == []
    user.write_text(code.name, encoding="utf-8")
    assert snapshot.remove_unused(tmp_path) == [code.name] and not user.exists()
