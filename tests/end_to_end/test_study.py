"""The commands a user types, on tiny data: run.py, interruption, analyze.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run, start

from vitlab.core.errors import UserError

ROOT = Path(__file__).parents[2]
TINY = ["recipe.epochs=2", "recipe.warmup_epochs=0", "dataset.train_per_class=32", "wandb.mode=disabled"]


def figures(folder: Path) -> dict:
    """A finished cell's rows and result, without clock readings and the digests of files that hold them."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    timings = ("images_per_second", "seconds", "wall_seconds", "device_seconds", "finished_at", "digest")
    rows, result = ([{k: v for k, v in d.items() if k not in timings} for d in group] for group in (rows, [result]))
    predictions = {name: value for name, value in result[0]["files"].items() if name.startswith("predictions")}
    assert predictions
    return {"rows": rows, "result": result[0] | {"files": predictions}}


def only_cell(folder: Path) -> Path:
    (cell,) = [p for p in folder.iterdir() if (p / "config.yaml").exists()]
    return cell


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of three conditions by its command, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("sweep")
    tiny = [w for w in TINY if not w.startswith("wandb")]
    done = run("run.py", "-m", "augment=none,autoaug,mixup", *tiny, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_a_sweep_trains_records_and_mirrors(swept):
    folder, done = swept
    assert "next: python analyze.py" in done.stdout and "wandb sync" in done.stdout
    study = json.loads((folder / "runs/studies/digits_augment.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in study["cells"]] == ["none/s0", "autoaug/s0", "mixup/s0"]
    for cell in study["cells"]:
        record = folder / "runs" / cell["id"]
        written = {p.name for p in record.iterdir()}
        assert {"config.yaml", "provenance.json", "metrics.jsonl", "last.pt", "best.pt", "predictions.npz"} <= written
        result = json.loads((record / "result.json").read_text(encoding="utf-8"))
        assert result["schema_version"] == 1 and result["num_eval"] == 360 and result["last"]["epoch"] == 2
        assert list(record.glob(f"wandb/offline-run-*-{cell['id']}/run-{cell['id']}.wandb"))
    assert {p.name for p in folder.iterdir()} == {"runs"}, "nothing but the records is left behind"


def test_a_finished_sweep_trains_nothing(swept):
    folder, _ = swept
    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/c*/*") if p.name != "lock"}
    tiny = [w for w in TINY if not w.startswith("wandb")]
    done = run("run.py", "-m", "augment=none,autoaug,mixup", *tiny, cwd=folder)
    assert done.returncode == 0 and "nothing to train" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("runs/c*/*") if p.name != "lock"}


def test_analyze_prints_and_writes_the_table(swept):
    folder, _ = swept
    done = run("analyze.py", cwd=folder, cold=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert rows == ["none", "autoaug", "mixup"]
    assert "this supports no ranking" in done.stdout
    for ending in ("md", "tex", "csv", "html", "json"):
        assert (folder / f"tables/digits_augment.{ending}").stat().st_size > 300
    first = {p: p.read_bytes() for p in (folder / "tables").iterdir()}
    run("analyze.py", cwd=folder)
    assert {p: p.read_bytes() for p in (folder / "tables").iterdir()} == first, "byte-identical when nothing changed"


def test_timm_reads_the_weights(swept):
    import timm
    import torch
    from timm.models import load_checkpoint

    folder, _ = swept
    cell = next(p for p in (folder / "runs").iterdir() if (p / "last.pt").exists())
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes)
    load_checkpoint(model, str(cell / "last.pt"), use_ema=False)
    ours = torch.load(cell / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(ours[k], v) for k, v in model.state_dict().items())


FOUR_EPOCHS = [
    "augment=mixup", "recipe.epochs=4", "recipe.warmup_epochs=1", "recipe.drop_path=0.1", "recipe.ema_decay=0.99",
    "wandb.mode=disabled",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, train_here):
    """What `FOUR_EPOCHS` gives when nothing interrupts it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train_here(*FOUR_EPOCHS, f"output_dir={folder}")
    return figures(only_cell(folder))


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
    ids=lambda s: s.name,
)
def test_an_interrupted_cell_continues_to_the_same_numbers(tmp_path, number, undisturbed, train_here):
    """Signalled in the middle of an epoch and started again, after Ctrl-C with the same command: the same bits."""
    process = start("run.py", *FOUR_EPOCHS, "output_dir=broken", cwd=tmp_path, own_session=True)
    broken = tmp_path / "broken"
    deadline = time.monotonic() + 120
    while not list(broken.glob("c*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    cell = only_cell(broken)
    assert not (cell / "result.json").exists(), "the signal came too late for this test"
    if number != signal.SIGKILL:
        assert process.returncode == 130, output
        assert "To continue" in output
    if number == signal.SIGINT:
        again = run("run.py", *FOUR_EPOCHS, "output_dir=broken", cwd=tmp_path)
        assert again.returncode == 0, again.stdout + again.stderr
    else:
        train_here(*FOUR_EPOCHS, f"output_dir={broken}")
    assert figures(cell) == undisturbed


def test_two_processes_give_the_losses_of_one(tmp_path, train_here):
    words = ["augment=mixup", "augment.mix_group=16", "recipe.drop_path=0.1", "recipe.repeated_augmentation=3", *TINY]
    train_here(*words, f"output_dir={tmp_path}/one")
    two = run("run.py", *words, "output_dir=two", "devices=2", cwd=tmp_path)
    assert two.returncode == 0, two.stdout + two.stderr
    a, b = (figures(only_cell(tmp_path / name)) for name in ("one", "two"))
    assert only_cell(tmp_path / "one").name == only_cell(tmp_path / "two").name
    for row, other in zip(a["rows"], b["rows"], strict=True):
        assert row["train/loss"] == pytest.approx(other["train/loss"], rel=2e-4)
        assert row["eval/loss"] == pytest.approx(other["eval/loss"], rel=2e-3)


def test_ranks_train_one_cell_and_refuse_a_sweep(tmp_path, train_here, monkeypatch):
    """Two commands with the variables that torchrun gives to its ranks."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    about = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = [start("run.py", *TINY, cwd=tmp_path, RANK=r, LOCAL_RANK=r, **about) for r in "01"]
    (output, errors), (other, other_errors) = (rank.communicate(timeout=300) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], errors + other_errors
    assert_one_cell(tmp_path, output + other)
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=r"torchrun trains one cell, and this command means 2.*devices=2"):
        train_here("seed=0,1", *TINY, f"output_dir={tmp_path}/refused")


@pytest.mark.slow()
def test_torchrun_trains_one_cell(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch = [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(ROOT / "run.py")]
    done = subprocess.run([*launch, *TINY], cwd=tmp_path, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert_one_cell(tmp_path, done.stdout)


def assert_one_cell(folder: Path, output: str) -> None:
    assert (only_cell(folder / "runs") / "result.json").exists()
    assert output.count("none/s0: epoch 2/2  loss") == 1 and "next: python analyze.py" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["augment=mixupp"], "mixup"),
        (["recipe.epoch=3"], "epoch"),
        (["-m", "augment=none,mixup", "augment.mix_group=7"], "mix_group"),
        (["-m", "dataset=imagenet1k", "dataset.root=/nowhere", "model=vit_tiny_16_224", "seed=0,1"], "/nowhere"),
    ],
    ids=["choice", "key", "sweep", "data"],
)
def test_a_mistake_ends_in_one_message_and_trains_nothing(tmp_path, words, message):
    done = run("run.py", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("vitlab: ") and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
