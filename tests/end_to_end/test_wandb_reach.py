"""W&B with and without a key, with and without a server: what is refused, what is waited for, what is said."""

import json
import os
import socket
import subprocess
import sys
import time

import commands
import pytest
import wandb
from wandb_stand_in import StandIn

from vitlab.config import ConfigError, WandbConfig
from vitlab.core import wandb as reach
from vitlab.core.wandb import choose_mode, has_key, require_accepted_key, require_key
from vitlab.study.record import Record
from vitlab.study.studies import write_study
from vitlab.study.uploads import CellRun, describe_uploads, tag_runs

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch, tmp_path):
    """No key, no server, no settings of whoever runs the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    wandb.teardown()  # what earlier tests' settings left
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch):
    with StandIn() as stand_in:
        monkeypatch.setenv("WANDB_BASE_URL", stand_in.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield stand_in


@pytest.fixture
def silent(monkeypatch):
    """A server that takes connections and never says a word, as behind many a firewall."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield


def logged(tmp_path, mode="auto", name="c0123456789a"):
    """A run with one row, from its beginning to its end; returns its record."""
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    config = {"a": 1, "vitlab": {"study": "s"}}
    with CellRun(WandbConfig(mode=mode), identity=name, name="none/s0", study="s", folder=folder, config=config) as run:
        run.log({"epoch": 1, "step": 3, "eval/top1": 50.0})
        run.finish({"last/top1": 50.0})
    return Record(folder)


def line(record):
    (only,) = describe_uploads([record], record.folder.parent)
    return only.replace(str(record.folder.parent), "runs")


def test_online_without_a_key_is_refused_by_name(monkeypatch):
    with pytest.raises(ConfigError, match=r"wandb\.mode: online needs a key.*`wandb login`.*wandb\.mode=offline"):
        require_key("online")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match=r"online \(WANDB_MODE\) needs a key"):
        require_key("auto")
    for mode in ("offline", "disabled"):
        require_key(mode)


def test_a_key_is_found_where_the_sdk_looks(monkeypatch, tmp_path):
    assert not has_key()
    file = tmp_path / "home" / ".netrc"
    file.write_text(
        f"machine example.org login me password x\nmachine my.host login user password {KEY}\n", encoding="utf-8"
    )
    file.chmod(0o600)
    assert not has_key(), "of another server"
    monkeypatch.setenv("WANDB_BASE_URL", "https://my.host")
    assert has_key()
    monkeypatch.delenv("WANDB_BASE_URL")
    file.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n", encoding="utf-8")
    assert has_key()
    file.write_text("machine api.wandb.ai login", encoding="utf-8")
    assert not has_key(), "a damaged file is none"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    require_key("online")


def test_without_a_key_a_run_is_kept_for_later(tmp_path):
    record = logged(tmp_path)
    (kept,) = record.folder.glob("wandb/offline-run-*/run-*.wandb")
    assert b"eval/top1" in kept.read_bytes()
    assert line(record) == (
        "W&B: 1 cell logged offline, since no key is configured (to have one: wandb login); to upload: "
        "wandb sync runs/c0123456789a/wandb/offline-run-*"
    )


def test_what_the_user_asks_for_is_said(tmp_path):
    assert line(logged(tmp_path, "disabled", "c1")) == "W&B: off (wandb.mode=disabled)"
    assert "1 cell logged offline, as asked" in line(logged(tmp_path, "offline", "c2"))


def test_a_server_that_answers_gets_the_run(server, tmp_path):
    record = logged(tmp_path)
    run = server.runs["c0123456789a"]
    assert run["state"] == "finished" and run["summary"]["last/top1"] == 50.0 and run["config"]["a"]["value"] == 1
    assert line(record).startswith("W&B: 1 cell at ") and "/me/vitlab" in line(record)


def test_a_cell_of_two_studies_has_both_names_as_tags(server, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs"
    entry = {"id": "c0123456789a", "name": "none/s0", "part": "cell", "labels": {}, "aliases": []}
    write_study(folder, "other", {"cells": [entry]})
    record = logged(tmp_path)
    assert server.runs[record.id]["tags"] == ["s", "other"], "known when it is trained"
    before = len(server.queries)
    tag_runs([record], "other")
    assert len(server.queries) == before, "it has the tag"
    write_study(folder, "third", {"cells": [entry | {"id": "c1"}, entry]})
    tag_runs([record], "third")
    config = server.runs[record.id]["config"]
    assert (
        config["vitlab"]["value"] == {"study": "s", "studies": {"other": 0, "third": 1}} and config["a"]["value"] == 1
    )
    assert server.runs[record.id]["tags"] == ["s", "other", "third"] and capsys.readouterr().out == ""
    assert record.read("wandb.json")["studies"] == ["s", "other", "third"]
    server.__exit__()
    monkeypatch.setattr("vitlab.study.uploads.TAG_SECONDS", 1)
    tag_runs([record], "fourth")
    assert "could not be given the tag 'fourth'" in capsys.readouterr().out


def test_a_silent_server_is_not_waited_for(silent, tmp_path, monkeypatch):
    monkeypatch.setattr(reach, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(reach.ask_server, "__defaults__", (0.5,))
    began = time.monotonic()
    assert choose_mode("auto").why == "no answer"
    assert time.monotonic() - began < 5
    said = line(logged(tmp_path, "online"))
    assert "did not answer, so 1 cell logged offline; to upload: wandb sync" in said


def test_a_run_kept_for_later_is_uploaded_and_then_said_to_be(silent, tmp_path, monkeypatch):
    monkeypatch.setattr(reach.ask_server, "__defaults__", (0.5,))
    record = logged(tmp_path)
    with StandIn() as back:
        folders = [str(f) for f in record.folder.glob("wandb/offline-run-*")]
        command = [sys.executable, "-m", "wandb", "sync", "--project", "vitlab", "--entity", "me", *folders]
        env = os.environ | {"WANDB_BASE_URL": back.url}
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=240, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert back.runs["c0123456789a"]["summary"]["last/top1"] == 50.0
    assert line(record) == "W&B: 1 cell logged offline and uploaded since"


def test_a_key_that_the_server_does_not_accept(server, tmp_path):
    server.knows_key = False
    with pytest.raises(ConfigError, match=r"wandb\.mode: http.* does not accept the key.*`wandb login --relogin`"):
        require_accepted_key("online")
    require_accepted_key("auto")
    assert "does not accept the key (another one: wandb login --relogin), so 1 cell" in line(logged(tmp_path))


def test_a_server_that_goes_away_costs_no_more_than_the_limit(server, tmp_path, monkeypatch):
    monkeypatch.setattr(reach, "FINISH_SECONDS", 3.0)
    folder = tmp_path / "runs" / "c1"
    folder.mkdir(parents=True)
    with CellRun(WandbConfig(), identity="c1", name="n", study="s", folder=folder, config={}) as run:
        server.__exit__()
        run.log({"epoch": 1, "step": 3, "eval/top1": 50.0})
        run.finish({"last/top1": 50.0})
    (kept,) = folder.glob("wandb/run-*/run-*.wandb")
    assert b"eval/top1" in kept.read_bytes(), "wandb sync has something to upload"
    said = line(Record(folder))
    assert "did not take all of 1 cell" in said and said.endswith("to upload: wandb sync runs/c1/wandb/run-*")


def test_cells_of_one_outcome_share_a_line(tmp_path):
    records = [logged(tmp_path, "offline", f"c{i}") for i in range(3)]
    (only,) = describe_uploads(records, tmp_path / "runs")
    assert only.startswith("W&B: 3 cells logged offline") and only.endswith("/runs/*/wandb/offline-run-*")


def test_the_command_says_it_and_refuses_before_training(tmp_path):
    short = ["recipe.epochs=1", "recipe.warmup_epochs=0", "dataset.train_per_class=20", "workers=0"]

    def run(*words, **environment):
        return commands.run("run.py", *short, *words, cwd=tmp_path, **environment)

    refused = run("wandb.mode=online")
    assert refused.returncode == 1 and refused.stderr.startswith("vitlab: wandb.mode: online needs a key")
    assert not (tmp_path / "runs").exists()
    done = run(WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "W&B: http://127.0.0.1:9 did not answer, so 1 cell logged offline; to upload: wandb sync runs/" in done.stdout
    )
    (file,) = (tmp_path / "runs").glob("*/wandb.json")
    assert json.loads(file.read_text(encoding="utf-8"))["why"] == "no answer"
