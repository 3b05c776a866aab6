"""Figures reach W&B where it is on, and nowhere else."""

import sys
import types
from pathlib import Path

import pytest
from PIL import Image

from vitlab.explain.mirror import mirror_figures


@pytest.fixture
def sdk(monkeypatch):
    """A stand-in for the wandb module that notes what it is told."""
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


def test_figures_are_images_of_one_run(sdk, compose_config):
    mirror_figures(compose_config("task=explain", "wandb.mode=offline", "wandb.tags=[mine]"), "relevance", FIGURES)
    told = sdk["told"]
    assert told["logged"] == {
        "lrp_cell": ("image", "out/lrp_cell.png"),
        "methods_cell": ("image", "out/methods_cell.png"),
    }
    assert told["init"]["mode"] == "offline" and told["init"]["name"] == "explain-relevance" and told["finished"]
    assert told["init"]["tags"] == ["explain", "mine"] and told["init"]["job_type"] == "explain"


def test_the_real_sdk_keeps_them_offline(compose_config, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    Image.new("RGB", (4, 3), (9, 8, 7)).save(tmp_path / "lrp_cell.png")
    mirror_figures(compose_config("task=explain", "wandb.mode=offline"), "relevance", [tmp_path / "lrp_cell.png"])
    (kept,) = tmp_path.glob("wandb/offline-run-*/files/media/images/*.png")
    assert kept.name.startswith("lrp_cell") and Image.open(kept).getpixel((0, 0)) == (9, 8, 7)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert kept.name.encode() in log.read_bytes()


@pytest.mark.parametrize("mode", ["disabled", "auto"])
def test_nothing_is_logged_where_it_is_off(mode, sdk, compose_config):
    mirror_figures(compose_config("task=explain", f"wandb.mode={mode}"), "rollout", FIGURES)
    assert "init" not in sdk["told"]


@pytest.fixture
def answering(monkeypatch):
    """A key is configured, and its server answers."""
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("vitlab.core.wandb.ask_server", lambda url: "ready")


def test_auto_is_online_with_a_key(sdk, answering, compose_config):
    mirror_figures(compose_config("task=explain", "wandb.mode=auto"), "rollout", FIGURES)
    assert sdk["told"]["init"]["mode"] == "online"


def test_a_server_that_does_not_answer_is_named(sdk, answering, compose_config, monkeypatch, capsys):
    monkeypatch.setattr("vitlab.core.wandb.ask_server", lambda url: "no answer")
    mirror_figures(compose_config("task=explain", "wandb.mode=online"), "rollout", FIGURES)
    assert "init" not in sdk["told"]
    assert "W&B: http://127.0.0.1:9 did not answer; the figures are on the disk" in capsys.readouterr().out


def test_trouble_harms_nothing(sdk, answering, compose_config, capsys):
    def fail(**words):
        raise OSError("no network")

    sdk["module"].init = fail
    mirror_figures(compose_config("task=explain", "wandb.mode=online"), "rollout", FIGURES)
    assert "no network (the figures are on the disk)" in capsys.readouterr().out
