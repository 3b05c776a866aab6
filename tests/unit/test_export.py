"""What task=export writes is read by timm and by transformers' names, and predicts the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from hub_stand_in import serving
from huggingface_hub import constants

from vitlab.cli.export_task import run_export
from vitlab.config import ConfigError, ModelConfig
from vitlab.models.build import build_model
from vitlab.models.restore import restore

MICRO = ModelConfig("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=64, depth=3, num_heads=4)


@pytest.fixture
def export(compose_config, tmp_path):
    """`export(FILE, words)` → the folder, and what the command prints."""

    def exported(file: Path, *words: str) -> tuple[Path, list[str]]:
        folder = tmp_path / "out"
        config = compose_config(
            "task=export", f"checkpoint={file}", f"export.to={folder}", f"output_dir={tmp_path / 'runs'}", *words
        )
        return folder, run_export(config)

    return exported


def saved(model: ModelConfig, tmp_path: Path, **more: object) -> tuple[torch.nn.Module, Path]:
    """A model of timm's with weights that are not small, and timm's checkpoint of it."""
    torch.manual_seed(2)
    network = build_model(model, 5).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    file = tmp_path / "weights.pth"
    torch.save({"arch": model.name, "state_dict": network.state_dict()} | more, file)
    return network, file


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig("vit_tiny_patch16_224", image_size=32),
        ModelConfig("deit_tiny_distilled_patch16_224", image_size=64),
        ModelConfig("test_resnet", image_size=160),
        ModelConfig("test_convnext", image_size=160),
    ],
    ids=lambda m: m.name,
)
def test_timm_reads_the_same_model_to_the_bit(model, tmp_path, export):
    network, file = saved(model, tmp_path)
    folder, lines = export(file)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, model.image_size, model.image_size)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    assert lines[-1] == f"to read it: timm.create_model('local-dir:{folder}', pretrained=True)"
    assert timm.data.resolve_model_data_config(again)["mean"] == [0.485, 0.456, 0.406]


def test_a_cell_is_exported_with_its_card(train_here, tmp_path, export, compose_config):
    train_here(
        "recipe.epochs=1", "dataset.train_per_class=8", "recipe.warmup_epochs=0", "augment=mixup", "seed=3",
        "recipe.ema_decay=0.9", "wandb.mode=disabled", f"output_dir={tmp_path / 'runs'}",
    )  # fmt: skip
    (cell,) = (tmp_path / "runs").glob("c[0-9a-f]*")
    folder, _ = export(cell.name)
    network = restore(compose_config("task=explain", f"checkpoint={cell / 'last.pt'}"), str(cell / "last.pt")).network
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert content["label_names"] == list("0123456789") and content["pretrained_cfg"]["mean"] == [0.5] * 3
    card = (folder / "README.md").read_text(encoding="utf-8")
    result = json.loads((cell / "result.json").read_text(encoding="utf-8"))
    assert f"| {result['last']['top1']:.2f} |" in card and cell.name in card and "mixup: 0.8" in card
    assert "python run.py recipe.epochs=1 dataset.train_per_class=8" in card and "seed=3" in card
    raw = (folder / "model.safetensors").read_bytes()
    export(cell.name, "weights=ema")  # over the earlier export
    assert (folder / "model.safetensors").read_bytes() != raw
    with pytest.raises(ConfigError, match=r"export\.to: .*lies in checkpoint"):
        run_export(compose_config("task=export", f"checkpoint={cell}", f"export.to={cell}/x"))


def test_transformers_names_are_read_back(tmp_path, export, compose_config):
    network, file = saved(ModelConfig("vit_tiny_patch16_224", image_size=32), tmp_path)
    folder, _ = export(file, "export.format=transformers", "dataset.eval_crop=0.8")
    restored = restore(compose_config("task=explain", f"checkpoint={folder}"), str(folder))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(restored.network(images), network(images), rtol=0, atol=1e-6)
    assert restored.dataset.eval_crop == 0.8 and restored.dataset.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ConfigError, match=r"export\.format: timm's config\.json cannot say this model's norm_layer"):
        run_export(compose_config("task=export", f"checkpoint={folder}", f"export.to={tmp_path / 'again'}"))


def test_transformers_itself_reads_the_folder(tmp_path, export):
    import transformers

    network, file = saved(ModelConfig("vit_tiny_patch16_224", image_size=32), tmp_path)
    folder, _ = export(file, "export.format=transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, network(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export.format=transformers"], r"export\.format: transformers' ViT has no such architecture"),
        (["export.to=null"], r"export\.to: a folder is needed"),
        (["export.push=nobody"], r"export\.push: got 'nobody', expected USER/NAME"),
        (["export.push=me/model"], r"export\.push: uploading needs a token"),
    ],
)
def test_what_cannot_be_is_named(words, said, tmp_path, export, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    _, file = saved(ModelConfig("test_resnet", image_size=160), tmp_path)
    with pytest.raises(ConfigError, match=said):
        export(file, *words)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_pooling_that_timm_has_not_is_refused(tmp_path, export):
    network, file = saved(MICRO, tmp_path)
    state = network.state_dict() | {"head.weight": torch.zeros(5, 128)}
    torch.save(state, file)
    with pytest.raises(ConfigError, match=r"export\.format: timm has no ViT whose classifier reads class token and"):
        export(file)
    with pytest.raises(ConfigError, match=r"transformers' ViT has no such architecture"):
        export(file, "export.format=transformers")


def test_another_folder_is_not_written_into(tmp_path, export):
    _, file = saved(ModelConfig("test_resnet", image_size=160), tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"export\.to: .*holds something else \(thesis\.tex\)"):
        export(file)
    with pytest.raises(ConfigError, match=r"export\.to: .* is checkpoint"):
        export(file, f"export.to={tmp_path}")


@pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # of the client's own transport
def test_it_is_uploaded(tmp_path, export, monkeypatch):
    _, file = saved(ModelConfig("vit_tiny_patch16_224", image_size=32), tmp_path)
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        folder, lines = export(file, "export.push=me/my-vit")
        assert f"uploaded to {hub.address}/me/my-vit" in lines
        there = hub.repos["me/my-vit"][1]
    for name in ("config.json", "model.safetensors", "README.md"):
        assert there[name] == (folder / name).read_bytes(), name
    assert "hf-hub:me/my-vit" in there["README.md"].decode()
