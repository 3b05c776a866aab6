"""What goes to W&B: figures where it is on and nowhere else, and what summaries hold packed."""

import sys
import time
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlab.core.wandb import log_figures, pack_curve, pack_hits, unpack_curve, unpack_hits


@pytest.fixture
def sdk(monkeypatch):
    """A stand-in for the wandb module that notes what it is given."""
    told: dict = {"logged": {}}
    run = types.SimpleNamespace(log=told["logged"].update, finish=lambda: told.update(finished=True))

    def init(**words):
        told["init"] = words
        return run

    module = types.ModuleType("wandb")
    module.init = init
    module.Image = lambda path: ("image", path)
    module.Settings = dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    return told | {"module": module, "told": told}


FIGURES = [Path("out/lrp_cell.png"), Path("out/methods_cell.png")]


def test_figures_are_images_of_one_run(sdk):
    log_figures("offline", FIGURES, project="p", name="explain-relevance")
    told = sdk["told"]
    assert told["logged"] == {
        "lrp_cell": ("image", "out/lrp_cell.png"),
        "methods_cell": ("image", "out/methods_cell.png"),
    }
    assert told["init"]["mode"] == "offline" and told["init"]["name"] == "explain-relevance" and told["finished"]
    assert told["init"]["project"] == "p" and told["init"]["dir"] == "out"


def test_the_real_sdk_keeps_them_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "lrp_cell.png")
    log_figures("offline", [tmp_path / "lrp_cell.png"])
    (kept,) = tmp_path.glob("wandb/offline-run-*/files/media/images/*.png")
    assert kept.name.startswith("lrp_cell") and Image.open(kept).getpixel((0, 0)) == (9, 8, 7)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 30  # the SDK's service may write its file after `finish` has returned
    while kept.name.encode() not in log.read_bytes():
        assert time.monotonic() < end, log.read_bytes()
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["disabled", "auto"])
def test_nothing_is_logged_where_it_is_off(mode, sdk):
    log_figures(mode, FIGURES)
    assert "init" not in sdk["told"]


@pytest.fixture
def answering(monkeypatch):
    """A key is configured, and its server answers."""
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("vitlab.core.wandb.ask_server", lambda url: "ready")


def test_auto_is_online_with_a_key(sdk, answering):
    log_figures("auto", FIGURES)
    assert sdk["told"]["init"]["mode"] == "online"


def test_a_server_that_does_not_answer_is_named(sdk, answering, monkeypatch, capsys):
    monkeypatch.setattr("vitlab.core.wandb.ask_server", lambda url: "no answer")
    log_figures("online", FIGURES)
    assert "init" not in sdk["told"]
    assert "W&B: http://127.0.0.1:9 did not answer; the figures are on the disk" in capsys.readouterr().out


def test_trouble_harms_nothing(sdk, answering, capsys):
    def fail(**words):
        raise OSError("no network")

    sdk["module"].init = fail
    log_figures("online", FIGURES)
    assert "no network (the figures are on the disk)" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 7, 8, 1797])
def test_hits_come_back_as_they_were(count):
    hits = np.random.default_rng(count).random(count) < 0.7
    assert (unpack_hits(pack_hits(hits)) == hits).all() and len(unpack_hits(pack_hits(hits))) == count


@pytest.mark.parametrize("packed", ["9:eJxjAAAAAQAB", "x", "8:!!"])
def test_what_are_no_hits_is_refused(packed):
    with pytest.raises((ValueError, zlib.error)):
        unpack_hits(packed)


def test_a_curve_keeps_the_epochs_that_were_evaluated():
    rows = [{"epoch": 1}, {"epoch": 2, "eval/top1": 50.5, "eval/loss": 1.0}]
    assert unpack_curve(pack_curve(rows)) == [{"epoch": 2, "eval/top1": 50.5}]
