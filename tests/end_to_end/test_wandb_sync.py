"""Cells that were trained without a network, uploaded from a machine that has one: `analyze.py sync=true`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import wandb
from commands import start
from wandb_stand_in import StandIn

from vitlab.config import ConfigError, WandbConfig
from vitlab.core.files import locked
from vitlab.study import sync as module
from vitlab.study.record import Record
from vitlab.study.sync import sync, sync_unasked
from vitlab.study.uploads import describe_uploads

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch, tmp_path):
    """No settings of whoever runs the tests, nor of the tests before."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_here):
    """A study of two cells, trained where W&B cannot be reached."""
    folder = tmp_path_factory.mktemp("trained") / "runs"
    words = ("recipe.epochs=3", "recipe.warmup_epochs=0", "dataset.train_per_class=8", "device=cpu", "study.name=s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        train_here("seed=0,1", *words, f"output_dir={folder}", "wandb.project=mine")
    return folder


@pytest.fixture
def runs(trained, tmp_path, nothing_configured):
    """A copy of it."""
    wandb.teardown()
    return shutil.copytree(trained, tmp_path / "runs")


@pytest.fixture
def server(runs, monkeypatch):
    with StandIn() as stand_in:
        monkeypatch.setenv("WANDB_BASE_URL", stand_in.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield stand_in


def cells(runs: Path) -> list[Record]:
    entries = json.loads((runs / "studies/s.json").read_text(encoding="utf-8"))["cells"]
    return [Record(runs / entry["id"]) for entry in entries]


def epochs(server, record: Record) -> list[int]:
    return [row["epoch"] for row in server.runs[record.id]["rows"]]


def test_what_is_missing_is_uploaded_once_and_while_a_study_runs(runs, server):
    first, second = cells(runs)
    whole = (second.folder / "metrics.jsonl").read_text(encoding="utf-8")
    result = second.folder / "result.json"  # as if its first epoch had just ended
    result.rename(runs.parent / "result.json")
    (second.folder / "metrics.jsonl").write_text(whole.splitlines()[0] + "\n", encoding="utf-8")
    (line,) = sync(runs, None, "me", "vitlab")
    assert line == f"W&B: {server.url}: 1 complete now, 1 up to date (s goes on) of 2 cells"
    assert epochs(server, first) == [1, 2, 3] and epochs(server, second) == [1]
    run = server.runs[first.id]
    about = run["config"]["vitlab"]["value"]
    assert run["group"] == "s" and run["tags"] == ["s"] and about["place"] == 0 and about["study"] == "s"
    top1 = (first.read("result.json") or {})["last"]["top1"]
    assert run["summary"]["last/top1"] == top1 and run["summary"]["hits"] and run["state"] == "finished"

    (second.folder / "metrics.jsonl").write_text(whole, encoding="utf-8")
    (runs.parent / "result.json").rename(result)
    (line,) = sync(runs, "s", "me", "vitlab")
    assert line.endswith("1 complete already, 1 complete now of 2 cells")
    assert epochs(server, second) == [1, 2, 3]
    asked = len(server.queries)
    (line,) = sync(runs, None, "me", "vitlab")
    assert line.endswith("2 complete already of 2 cells") and len(server.queries) == asked + 1, "is it there?"
    (line,) = describe_uploads(cells(runs), runs)
    assert line.startswith("W&B: 2 cells at "), line


def test_an_upload_that_is_cut_off_goes_on(runs, server, monkeypatch):
    first, second = cells(runs)
    summary_of = module.summary_of

    def cut(record, result):
        if record.id == second.id:
            raise OSError("the connection is gone")
        return summary_of(record, result)

    monkeypatch.setattr(module, "summary_of", cut)
    (line,) = sync(runs, None, "me", "vitlab")
    assert "the connection is gone; what is missing is uploaded by the same command" in line
    assert (first.folder / "synced.json").exists() and not (second.folder / "synced.json").exists()
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert sync(runs, None, "me", "vitlab")[0].endswith("1 complete already, 1 complete now of 2 cells")
    assert epochs(server, second) == [1, 2, 3] and server.runs[second.id]["summary"]["last/top1"]


def test_a_cell_that_another_command_uploads_is_left_to_it(runs, server):
    with locked(cells(runs)[0].folder / "sync.lock") as held:
        assert held
        assert sync(runs, None, "me", "vitlab")[0].endswith("1 left to another command, 1 complete now of 2 cells")


def test_a_command_that_watches_uploads_what_could_not_reach_the_server(runs, server):
    wandb_config = WandbConfig(entity="me")
    assert sync_unasked(runs, "s", wandb_config) == [], "the user asked for them to stay offline"
    for record in cells(runs):
        record.write("wandb.json", (record.read("wandb.json") or {}) | {"why": "no answer"})
    (line,) = sync_unasked(runs, "s", wandb_config)
    assert line.endswith("2 complete now of 2 cells") and sync_unasked(runs, "s", wandb_config) == []
    assert all(epochs(server, record) == [1, 2, 3] for record in cells(runs))
    assert sync_unasked(runs, "s", WandbConfig(mode="offline")) == []


@pytest.mark.slow
def test_two_commands_at_once_upload_each_cell_once(runs, server):
    words = ("analyze.py", "sync=true", "entity=me", f"output_dir={runs}")
    both = [start(*words, cwd=runs.parent, merged=True) for _ in range(2)]
    said = "".join(process.communicate(timeout=300)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0] and "complete now" in said, said
    assert all(epochs(server, record) == [1, 2, 3] for record in cells(runs))


def test_what_keeps_it_from_uploading_is_named(runs, server, monkeypatch):
    with pytest.raises(ConfigError, match="study: no study 'x' in"):
        sync(runs, "x", None, "vitlab")
    server.knows_key = False
    with pytest.raises(ConfigError, match=r"sync: http.* does not accept the key"):
        sync(runs, None, None, "vitlab")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"does not answer; nothing was uploaded, and nothing is lost"):
        sync(runs, None, None, "vitlab")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/nowhere")
    with pytest.raises(ConfigError, match="no key of W&B's is configured; type `wandb login`"):
        sync(runs, None, None, "vitlab")
