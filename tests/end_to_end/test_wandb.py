"""Logged offline, synced by `wandb sync` to a stand-in on loopback, read back by the Api: the same table."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
from wandb_stand_in import StandIn
from written_records import SPEC, write_all

from vitlab.analysis.render import to_csv, to_json, to_latex, to_markdown
from vitlab.analysis.table import build_table
from vitlab.analysis.wandb_source import collect_wandb
from vitlab.config import ConfigError


@pytest.fixture()
def server(monkeypatch, tmp_path):
    with StandIn() as stand_in:
        monkeypatch.setenv("WANDB_BASE_URL", stand_in.url)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
        yield stand_in


def sync(folder):
    runs = [str(f) for f in folder.glob("*/wandb/offline-run-*")]
    command = [sys.executable, "-m", "wandb", "sync", "--project", "vitlab", "--entity", "me", *runs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_server_gives_the_same_table(server, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    monkeypatch.setenv("WANDB_MODE", "offline")
    frame = write_all(runs, {"none": [90.0, 91.0], "mixup": [92.0, 93.5]}, mirror=True)
    monkeypatch.delenv("WANDB_MODE")
    sync(runs)
    spec = dataclasses.replace(SPEC, rows=("none", "mixup"))
    ours = build_table(frame, spec)
    server.queries.clear()
    theirs = build_table(collect_wandb("me", "vitlab", "s", tmp_path / "other", False), spec)
    for render in (to_markdown, to_latex, to_csv, to_json):
        assert render(ours) == render(theirs)
    assert sum("runs(" in q for q in server.queries) == 1, "one query for a page, none per run"
    server.queries.clear()
    collect_wandb("me", "vitlab", "s", tmp_path / "other", False)
    assert not server.queries, "kept on disk"
    collect_wandb("me", "vitlab", "s", tmp_path / "other", True)
    assert server.queries, "refresh=true asks again"
    with pytest.raises(ConfigError, match=r"no run of vitlab's of study 'none' in me/vitlab"):
        collect_wandb("me", "vitlab", "none", tmp_path / "other", True)


def test_no_server_is_one_message(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr("vitlab.analysis.wandb_source._TRIES", 1)
    with pytest.raises(ConfigError, match=r"source: W&B gave no runs of me/vitlab .*wandb login"):
        collect_wandb("me", "vitlab", None, tmp_path, False)
