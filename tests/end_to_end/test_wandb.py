"""Logged offline, synced by `wandb sync` to a stand-in on loopback, read back by the Api: the same table."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import wandb
from commands import run
from wandb_stand_in import StandIn
from written_records import write_all

from vitlab.analysis import collect_wandb
from vitlab.config import ConfigError


@pytest.fixture()
def server(monkeypatch, tmp_path):
    wandb.teardown()  # what earlier tests' settings left
    with StandIn() as stand_in:
        monkeypatch.setenv("WANDB_BASE_URL", stand_in.url)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
        yield stand_in


def sync(folder):
    runs = [str(f) for f in folder.glob("*/wandb/offline-run-*")]
    command = [sys.executable, "-m", "wandb", "sync", "--project", "vitlab", "--entity", "me", *runs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def analyze(tables, *words):
    """The tables that analyze.py writes, as a user types it: ending → text."""
    done = run("analyze.py", "study=s", f"tables_dir={tables}", *words, cwd=tables.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        ending: (tables / f"s.{ending}").read_text(encoding="utf-8") for ending in ("md", "tex", "csv", "json", "html")
    }


def test_every_source_gives_the_same_table(server, tmp_path, monkeypatch):
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    scores = {"none": [90.0, 91.0], "randaug": [80.0, None], "mixup": [92.0, 93.5]}
    with monkeypatch.context() as alone:
        alone.setenv("WANDB_MODE", "offline")
        write_all(runs, scores, offline=True)
    ours = analyze(tmp_path / "a", f"output_dir={runs}")
    sync(runs)
    server.queries.clear()
    theirs = analyze(tmp_path / "b", f"output_dir={elsewhere}", "source=wandb", "entity=me")
    assert sum("runs(" in q for q in server.queries) == 1, "one query for a page, none per run"
    for file in [f for folder in runs.glob("c[0-9a-f]*") for f in folder.iterdir() if f.is_file()]:
        file.unlink()  # only W&B's offline files are left
    offline = analyze(tmp_path / "c", f"output_dir={runs}", "source=wandb")
    for ending in ("md", "tex", "csv", "json"):
        assert ours[ending] == theirs[ending] == offline[ending], ending
    assert "randaug/s1 failed (ValueError: no luck)" in ours["md"]
    for page in (ours, theirs, offline):
        assert page["html"].count("<polyline") == 5 + 2 * 2, "learning curves from every source"
    assert f'<a href="{server.url}' in theirs["html"], "links to W&B's pages"


def test_the_server_is_asked_once_and_again_when_told(server, tmp_path, monkeypatch):
    with monkeypatch.context() as alone:
        alone.setenv("WANDB_MODE", "offline")
        write_all(tmp_path / "runs", {"none": [90.0], "mixup": [92.0]}, offline=True)
    sync(tmp_path / "runs")
    other = tmp_path / "other"
    first = collect_wandb("me", study="s", output_dir=other)
    server.queries.clear()
    assert collect_wandb("me", study="s", output_dir=other).equals(first) and not server.queries, "kept on disk"
    collect_wandb("me", study="s", output_dir=other, refresh=True)
    assert server.queries, "refresh=true asks again"
    assert len(collect_wandb("me", output_dir=other, filters={"displayName": "mixup/s0"})) == 1
    server.fail = 2
    assert len(collect_wandb("me", study="s", output_dir=other, refresh=True)) == 2, "a busy server is asked again"
    with pytest.raises(ConfigError, match=r"no run of vitlab's of study 'none' in me/vitlab"):
        collect_wandb("me", study="none", output_dir=other)
    with pytest.raises(ConfigError, match=r"source: W&B gave no runs of you/vitlab \(Could not find project vitlab\)"):
        collect_wandb("you", study="s", output_dir=other)


def test_no_server_is_one_message_after_growing_pauses(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    wandb.teardown()  # what earlier tests' settings left
    pauses = []
    monkeypatch.setattr("vitlab.analysis.sources.wandb_runs.time.sleep", pauses.append)
    with pytest.raises(ConfigError, match=r"source: W&B gave no runs of me/vitlab \(.*refused.*wandb login"):
        collect_wandb("me", output_dir=tmp_path)
    assert pauses == [1.0, 2.0, 4.0]
