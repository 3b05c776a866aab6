"""Weights on the Hugging Face hub, through its real client against a stand-in on this machine."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import timm
import torch
from hub_stand_in import serving
from huggingface_hub import constants
from safetensors.torch import save

from vitlab.cli.train_task import run_study
from vitlab.config import ConfigError, find_checkpoint
from vitlab.core import hub as core_hub
from vitlab.core.hub import HubFile, fetch, look_up, named_on_hub, weights_digest
from vitlab.core.integrity import DamagedError
from vitlab.models.restore import restore
from vitlab.study.identity import Request, identity

NAME = "timm/vit_tiny_patch16_224.augreg_in21k"
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4}
"""vit_micro's sizes."""


def files_of(model: torch.nn.Module, classes: int = 5) -> dict[str, bytes]:
    card = {
        "architecture": "vit_tiny_patch16_224", "num_classes": classes, "global_pool": "token", "model_args": SMALL,
        "pretrained_cfg": {"tag": "augreg_in21k", "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9},
        "label_names": [f"class {i}" for i in range(classes)],
    }  # fmt: skip
    return {
        "config.json": json.dumps(card).encode(),
        "model.safetensors": save({key: value.contiguous() for key, value in model.state_dict().items()}),
        "pytorch_model.bin": b"the same, pickled",
        "README.md": b"# a model card",
    }


def vit(classes: int = 5, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **SMALL).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model, and an empty cache."""
    with serving() as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_ENDPOINT", stand_in.address)
        stand_in.put(NAME, files_of(vit()))
        core_hub.look_up.cache_clear()
        yield stand_in
        core_hub.look_up.cache_clear()


def test_names_of_models_on_the_hub():
    commit = "0123456789abcdef0123456789abcdef01234567"
    page = "https://huggingface.co/timm/vit_x.y"
    for text, found in {
        "hf-hub:timm/vit_x.y": HubFile("timm/vit_x.y"),
        "timm/vit_x.y": HubFile("timm/vit_x.y"),
        "hf-hub:some-one/A_model@v1.0": HubFile("some-one/A_model", "v1.0"),
        f"hf-hub:a/b@{commit}:model.safetensors": HubFile("a/b", commit, "model.safetensors"),
        page: HubFile("timm/vit_x.y"),
        f"{page}/": HubFile("timm/vit_x.y"),
        f"{page}?library=timm": HubFile("timm/vit_x.y"),
        f"{page}/tree/main": HubFile("timm/vit_x.y", "main"),
        f"{page}/blob/{commit}/model.safetensors": HubFile("timm/vit_x.y", commit, "model.safetensors"),
    }.items():
        assert named_on_hub(text) == found, text
        assert named_on_hub(found.name) == found
    for other in ("runs/c0123456789a", "c0123456789a", "timm", "last.pt", "some/folder", "/timm/x", "hf-hub:x"):
        assert named_on_hub(other) is None, other


def test_planning_asks_for_metadata_and_training_downloads_once(hub, tmp_path, compose_config, capsys):
    digest = hashlib.sha256(hub.repos[NAME][1]["model.safetensors"]).hexdigest()
    words = ["pretrain=timm", f"pretrain.path=hf-hub:{NAME}", f"output_dir={tmp_path / 'runs'}", "wandb.mode=disabled"]
    config = compose_config(*words)
    start, commit = config.cell.pretrain, hub.repos[NAME][0]
    assert (start.digest, start.path) == (digest, f"hf-hub:{NAME}@{commit}:model.safetensors")
    for other in (f"pretrain.path={NAME}", f"pretrain.path=https://huggingface.co/{NAME}"):
        assert identity(compose_config("pretrain=timm", other).cell) == identity(config.cell)
    file = tmp_path / "copy.safetensors"
    file.write_bytes(hub.repos[NAME][1]["model.safetensors"])
    assert identity(compose_config("pretrain=checkpoint", f"pretrain.path={file}").cell) == identity(config.cell)

    def train(plan, view):
        raise AssertionError("nothing is to be trained")

    dry = compose_config(*words, "study.dry_run=true")
    assert run_study([Request((), dry)], train) == 0
    assert " 622.5 KB, downloaded before the first cell that starts from it" in capsys.readouterr().out
    assert hub.downloads("model.safetensors") == 0

    trained = []
    requests = [Request((f"seed={s}",), compose_config(*words, f"seed={s}")) for s in (0, 1)]
    run_study(requests, lambda plan, view: trained.append([c.config.cell.pretrain for c in plan.todo]) or {})
    assert len(trained[0]) == 2 and hub.downloads("model.safetensors") == 1
    assert "42 tensors loaded; dropped: head" in capsys.readouterr().out
    hub.repos.clear()  # a compute node has no network
    monkey = find_checkpoint(start.path, "runs", "pretrain.path")
    assert weights_digest(monkey) == digest


def test_a_model_card_tells_all_that_explaining_needs(hub, compose_config):
    model = vit()
    restored = restore(compose_config("task=explain", "explain=position", f"checkpoint={NAME}"), NAME)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(restored.network(images), model(images), rtol=0, atol=0)
    assert restored.dataset.mean == (0.5,) * 3 and restored.dataset.eval_crop == 0.9
    assert restored.weights.classes == tuple(f"class {i}" for i in range(5))


def test_a_new_commit_is_found_and_the_old_one_stays_pinned(hub):
    old = look_up(HubFile(NAME), "checkpoint")
    path = fetch(old, "checkpoint")
    hub.put(NAME, files_of(vit(seed=1)))
    core_hub.look_up.cache_clear()
    new = look_up(HubFile(NAME), "checkpoint")
    assert new.digest != old.digest and new.revision != old.revision
    pinned = named_on_hub(old.name)
    assert pinned and fetch(pinned, "checkpoint") == path
    assert weights_digest(fetch(new, "checkpoint")) == new.digest


def test_without_a_network_the_cache_answers_and_else_it_is_said(hub, monkeypatch, tmp_path):
    cached = look_up(HubFile(NAME), "checkpoint")
    path = find_checkpoint(NAME, "runs")
    core_hub.look_up.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from_cache = look_up(HubFile(NAME), "checkpoint")
    assert (from_cache.digest, from_cache.revision, from_cache.file) == (cached.digest, cached.revision, cached.file)
    assert find_checkpoint(NAME, "runs") == path
    for name in ("hf-hub:timm/other", f"hf-hub:{NAME}@v9"):
        with pytest.raises(
            ConfigError, match=r"checkpoint: .* is not in the cache, and the hub is out of reach .*hf download"
        ):
            find_checkpoint(name, "runs")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConfigError, match="the hub is out of reach"):
        find_checkpoint("timm/other", "runs")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf-hub:timm/nothing", "the hub has no model 'timm/nothing', or it is private"),
        (f"hf-hub:{NAME}@v9", r"has no revision 'v9'; leave it out"),
        (f"hf-hub:{NAME}:other.bin", r"holds no other\.bin \(README\.md, config\.json"),
        ("hf-hub:timm/empty", "holds no weights that are known here"),
    ],
)
def test_what_the_hub_has_not_is_named(hub, name, said):
    hub.put("timm/empty", {"README.md": b"nothing"})
    with pytest.raises(ConfigError, match=rf"^pretrain\.path: .*{said}"):
        find_checkpoint(name, "runs", "pretrain.path")


def test_an_interrupted_download_is_continued(hub, monkeypatch):
    wanted = look_up(HubFile(NAME), "checkpoint")
    hub.cut_after = 100_000
    monkeypatch.setattr("huggingface_hub.file_download.http_get", _once(monkeypatch))
    try:
        path = fetch(wanted, "checkpoint")
    except ConfigError as error:
        assert "was interrupted" in str(error) and "type the command again" in str(error)
        path = fetch(wanted, "checkpoint")
    assert weights_digest(path) == wanted.digest


def _once(monkeypatch):
    """The client's own reader of a file, without its retries."""
    from huggingface_hub import file_download

    own = file_download.http_get
    return lambda *args, **options: own(*args, **(options | {"_nb_retries": 0}))


def test_other_bytes_than_the_hub_told_are_refused(hub):
    wanted = look_up(HubFile(NAME), "checkpoint")
    files = dict(hub.repos[NAME][1])
    content = files["model.safetensors"]
    files["model.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    hub.repos[NAME] = hub.repos[NAME][0], files  # the same commit, and another file
    with pytest.raises(DamagedError, match=r"is not what the hub has"):
        fetch(wanted, "checkpoint")


def test_shards_have_one_digest_wherever_they_lie(hub, tmp_path):
    state = {key: value.contiguous() for key, value in vit().state_dict().items()}
    names = list(state)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    files = {file: save({key: state[key] for key in keys}) for file, keys in parts.items()}
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    files |= {"model.safetensors.index.json": json.dumps(index).encode(), "config.json": files_of(vit())["config.json"]}
    hub.put("some-one/shards", files)
    found = look_up(HubFile("some-one/shards"), "checkpoint")
    assert found.file == "model.safetensors.index.json" and found.size == sum(len(files[file]) for file in parts)
    path = fetch(found, "checkpoint")
    assert weights_digest(path) == found.digest and all((path.parent / file).exists() for file in parts)
    (tmp_path / "here").mkdir()
    for name, content in files.items():
        (tmp_path / "here" / name).write_bytes(content)
    assert weights_digest(find_checkpoint(str(tmp_path / "here"), "runs")) == found.digest


def test_a_folder_of_that_name_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs(NAME)
    (tmp_path / NAME / "model.safetensors").write_bytes(b"x")
    assert str(find_checkpoint(NAME, "runs")) == f"{NAME}/model.safetensors" and not hub.asked
