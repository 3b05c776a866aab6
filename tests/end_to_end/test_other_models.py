"""Swin, ConvNeXt and ResNet as a user trains them: workers and devices change nothing, and a table has them as rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import run

from vitlab.config import ConfigError
from vitlab.study.identity import Request
from vitlab.study.preflight import prove

SHORT = (
    "model.image_size=32", "recipe.epochs=2", "recipe.warmup_epochs=1", "recipe.batch_size=8", "recipe.drop_path=0.2",
    "dataset.train_per_class=2", "dataset.val_fraction=0.02", "augment=mixup", "augment.mix_group=4",
    "recipe.ema_decay=0.9", "wandb.mode=disabled", "device=cpu",
)  # fmt: skip
NAMES = ("test_convnext", "test_resnet", "swin_tiny_patch4_window7_224")


def losses(output_dir: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Every epoch's losses, and the last weights and statistics."""
    (cell,) = output_dir.glob("c[0-9a-f]*")
    rows = [json.loads(line) for line in (cell / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = ("train/loss", "eval/loss", "eval_ema/loss")
    state = torch.load(cell / "last.pt", weights_only=True)
    return [row[key] for row in rows for key in keys if key in row], state["model"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_workers_and_processes_change_nothing(name, tmp_path, train_here):
    words = (f"model.name={name}", *SHORT)
    for workers in (0, 1, 2):
        train_here(*words, f"workers={workers}", f"output_dir={tmp_path}/w{workers}")
    first, weights = losses(tmp_path / "w0")
    assert len(first) == 6
    for workers in (1, 2):
        other, same = losses(tmp_path / f"w{workers}")
        assert other == first and all(torch.equal(v, same[k]) for k, v in weights.items())
    done = run("run.py", *words, "devices=2", f"output_dir={tmp_path}/two", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    two, same = losses(tmp_path / "two")
    assert two == pytest.approx(first, rel=2e-3)
    assert [p.name for p in (tmp_path / "two").glob("c[0-9a-f]*")] == [
        p.name for p in (tmp_path / "w0").glob("c[0-9a-f]*")
    ]


def test_a_resnet_stops_and_continues_as_if_it_had_not(train_here, tmp_path, compose_config):
    """Statistics of batches are part of what is saved."""
    from vitlab.train.events import Interrupted
    from vitlab.train.loop import fit

    config = compose_config("model.name=test_resnet", *(w for w in SHORT if "mix" not in w))
    results = []
    for name, stops in (("whole", ()), ("cut", (1, 4))):
        (tmp_path / name).mkdir()
        for stop_after in (*stops, None):
            asked = iter(range(10**6))
            try:
                list(fit(config, config.cell, tmp_path / name, stop=lambda n=stop_after, a=asked: next(a) == n))
            except Interrupted:
                continue
        results.append(torch.load(tmp_path / name / "last.pt", weights_only=True))
    for part in ("model", "model_ema"):
        assert all(torch.equal(v, results[1][part][k]) for k, v in results[0][part].items())
    averaged = next(k for k in results[0]["model"] if k.endswith("running_var"))
    assert float(results[0]["model_ema"][averaged].sub(1).abs().max()) > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.name=test_resnet", "device_batch=4"], r"device_batch: got 4, and batch norm.*device_batch=8"),
        (["model.name=rexnet_100"], r"model\.name: 'rexnet_100' cannot be trained here: it draws random numbers"),
        (["model.name=vgg11"], r"recipe\.drop_path: 'vgg11' has no residual branches to drop.*recipe\.drop_path=0"),
    ],
    ids=["accumulation", "dropout", "no branches"],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_starts(words, said, compose_config, tmp_path):
    shared = [w for w in SHORT if not w.startswith("augment")]
    request = Request((), compose_config(*words, *shared, f"output_dir={tmp_path}"))
    with pytest.raises(ConfigError, match=said) as error:
        prove([("a", request.config)])
    assert "nothing was started" in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_four_kinds_of_models_in_one_table(train_here, tmp_path):
    """The choices of conf/model in one sweep at 32 pixels: every cell finishes, and each model has its rows."""
    models = ("vit_tiny_16_224", "swin_tiny", "convnext_tiny", "resnet50")
    train_here(
        f"model={','.join(models)}", "augment=none,randaug", "model.image_size=32", "recipe.epochs=1",
        "recipe.warmup_epochs=0", "recipe.batch_size=8", "dataset.train_per_class=1", "dataset.val_fraction=0.02",
        "wandb.mode=disabled", "device=cpu", f"output_dir={tmp_path}/runs",
    )  # fmt: skip
    done = run("analyze.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith(("| none", "| randaug"))]
    assert rows == [f"{augment} / {model}" for model in models for augment in ("none", "randaug")]
    (page,) = (tmp_path / "tables").glob("*.html")
    assert f"Model {', '.join(sorted(models))} (each with image_size=32)" in page.read_text(encoding="utf-8")
    assert all(size in done.stdout for size in ("5.49 M", "27.5 M", "27.8 M", "23.5 M"))
