"""The loop in-process: what it yields, how it resumes, what it refuses."""

import dataclasses
import errno
import resource

import numpy as np
import pytest
import torch
from PIL import Image

from vitlab.config import ConfigError
from vitlab.core.errors import UserError
from vitlab.core.files import DiskError
from vitlab.core.integrity import NewerError
from vitlab.data import shared
from vitlab.data.ring import Given, Present
from vitlab.data.sources.catalogue import resolve_class_list
from vitlab.train.checkpoint import load_checkpoint, save_checkpoint
from vitlab.train.events import DivergedError, EpochEnded, Interrupted
from vitlab.train.loop import fit

TINY = ("recipe.epochs=3", "recipe.warmup_epochs=1", "dataset.train_per_class=16", "recipe.ema_decay=0.9")


def drain(generator):
    """All events, and the generator's result (None if it was interrupted)."""
    events = []
    try:
        while True:
            events.append(next(generator))
    except StopIteration as end:
        return events, end.value
    except Interrupted:
        return events, None


def rows(events):
    timings = ("images_per_second", "seconds")
    ended = [e.row for e in events if isinstance(e, EpochEnded)]
    return [{k: v for k, v in row.items() if k not in timings} for row in ended]


def test_yields_a_row_per_epoch_and_returns_the_result(compose_config, tmp_path):
    config = compose_config(*TINY, "recipe.keep_every=2")
    events, result = drain(fit(config, config.cell, tmp_path))
    assert [e["epoch"] for e in rows(events)] == [1, 2, 3]
    assert result["last"]["epoch"] == 3 and result["ema"]["last"]["epoch"] == 3
    best = max(rows(events), key=lambda r: r["eval/top1"])
    assert result["best"]["top1"] == best["eval/top1"]
    assert result["derived"]["steps_per_epoch"] == 5 and result["num_train"] == 160
    assert {"last.pt", "best.pt", "best_ema.pt", "epoch_002.pt", "predictions.npz"} <= {
        p.name for p in tmp_path.iterdir()
    }
    again, same = drain(fit(config, config.cell, tmp_path))
    assert rows(again) == [] and same["last"] == result["last"]


def test_a_cell_counts_its_part_of_a_device_that_it_shares(compose_config, tmp_path, monkeypatch):
    config = compose_config("recipe.epochs=3", "recipe.warmup_epochs=1", "dataset.train_per_class=16")
    present = Present(2)
    monkeypatch.setattr(shared, "_given", Given(present=present, place=1))
    present.cells[:] = 1, 4
    training = fit(config, config.cell, tmp_path)
    events = []
    while len(ended := [e.row for e in events if isinstance(e, EpochEnded)]) < 2:
        events.append(next(training))
    assert [row["device_seconds"] / row["seconds"] for row in ended] == pytest.approx([0.25, 0.25])
    training.close()
    state = load_checkpoint(tmp_path / "last.pt")
    assert state is not None and state["epoch"] == 1 and state["device_seconds"] == pytest.approx(state["seconds"] / 4)
    present.cells[:] = 4, 1  # the others have ended
    events, result = drain(fit(config, config.cell, tmp_path))
    assert result["device_seconds"] == pytest.approx(result["wall_seconds"] - 0.75 * state["seconds"])

    del state["device_seconds"]  # as versions wrote it in which cells shared no device
    save_checkpoint(state, tmp_path / "last.pt")
    events, result = drain(fit(config, config.cell, tmp_path))
    assert result["device_seconds"] == pytest.approx(result["wall_seconds"])
    assert "device_seconds" not in next(e.row for e in events if isinstance(e, EpochEnded))


def test_stopping_anywhere_changes_nothing(compose_config, tmp_path):
    config = compose_config(*TINY, "augment=deit", "augment.mix_group=8", "recipe.drop_path=0.2")
    (tmp_path / "whole").mkdir()
    whole, result = drain(fit(config, config.cell, tmp_path / "whole"))
    state = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["model"]
    for stop_after in (2, 5, 7, 14):
        asked, cut = iter(range(10**6)), tmp_path / f"cut{stop_after}"
        cut.mkdir()
        first, nothing = drain(fit(config, config.cell, cut, stop=lambda a=asked, n=stop_after: next(a) == n - 1))
        assert nothing is None
        second, resumed = drain(fit(config, config.cell, cut))
        assert rows(first) + rows(second) == rows(whole), stop_after
        assert all(resumed[part] == result[part] for part in ("last", "best", "ema")), stop_after
        same = torch.load(cut / "last.pt", weights_only=True)["model"]
        assert all(torch.equal(a, b) for a, b in zip(state.values(), same.values(), strict=True)), stop_after


def test_accumulation_and_workers_change_nothing_but_rounding(compose_config, tmp_path):
    base = compose_config(*TINY, "augment=deit", "augment.mix_group=8", "recipe.drop_path=0.2")
    results = []
    for name, changes in (("one", {}), ("four", {"device_batch": 8})):
        (tmp_path / name).mkdir()
        config = dataclasses.replace(base, **changes)
        results.append(rows(drain(fit(config, config.cell, tmp_path / name))[0]))
    for a, b in zip(*results, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)


def test_a_diverging_run_names_the_step(compose_config, tmp_path):
    config = compose_config(*TINY, "recipe.lr=1e18", "recipe.optimizer=sgd")
    with pytest.raises(DivergedError, match=r"not finite since step \d+ \(epoch 1\).*learning rate.*recipe\.lr"):
        list(fit(config, config.cell, tmp_path))


def test_other_data_are_refused(compose_config, tmp_path, monkeypatch):
    config = compose_config(*TINY)
    drain(fit(config, config.cell, tmp_path, stop=lambda: True))
    monkeypatch.setattr("vitlab.data.sources.arrays.ArraySource.fingerprint", lambda self: "other")
    with pytest.raises(UserError, match=r"data have changed.*other"):
        list(fit(config, config.cell, tmp_path))


def test_files_that_changed_are_refused_and_restored_ones_continue(compose_config, tmp_path):
    tree = tmp_path / "tree"
    for split in ("train", "val"):
        for i in range(12):
            folder = tree / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(folder / f"{i}.png")
    words = ["dataset=folder", f"dataset.root={tree}", "dataset.num_classes=2", "dataset.num_train=12"]
    config = compose_config(*words, "dataset.num_eval=12", "recipe.batch_size=4", "workers=0", *TINY[:2])
    (tmp_path / "cell").mkdir()
    assert drain(fit(config, config.cell, tmp_path / "cell", stop=lambda: True))[1] is None
    (tree / "train/a/0.png").rename(tree / "train/a/new.png")
    with pytest.raises(UserError, match=r"data have changed.*dataset\.root now holds.*study\.rerun=all"):
        list(fit(config, config.cell, tmp_path / "cell"))
    (tree / "train/a/new.png").rename(tree / "train/a/0.png")
    events, result = drain(fit(config, config.cell, tmp_path / "cell"))
    assert events[0].step == 1 and result["last"]["epoch"] == 3


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    save_checkpoint({"epoch": 1}, tmp_path / "last.pt")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vitlab.core.files.os.fsync", full)
    with pytest.raises(DiskError, match=r"could not write .*last\.pt.*No space left.*intact"):
        save_checkpoint({"epoch": 2}, tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_disk_that_fills_while_tensors_are_written_is_named(tmp_path):
    """torch buries the system's error under one about positions in its archive; a limit on files' sizes shows it."""
    save_checkpoint({"epoch": 1}, tmp_path / "last.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(DiskError, match=r"could not write .*last\.pt: .*File too large.*there before is intact"):
            save_checkpoint({"epoch": 2, "model": torch.zeros(10**6)}, tmp_path / "last.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def small_tree(root):
    """Two classes of eight training and three evaluation images, one of each split truncated."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for c in "ab":
            folder = root / split / c
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
        damaged = root / split / "a" / "2.jpg"
        damaged.write_bytes(damaged.read_bytes()[:300])


def test_bad_images_stop_a_run_or_are_left_out_and_counted(compose_config, tmp_path):
    small_tree(tmp_path / "data")
    words = ["dataset=folder", f"dataset.root={tmp_path / 'data'}", "workers=0", "recipe.batch_size=8"]
    results = []
    for name, stop_at in (("whole", None), ("cut", 2)):
        config = compose_config(*words, "dataset.bad_images=skip", "recipe.epochs=2", "recipe.warmup_epochs=0")
        dataset = resolve_class_list(config.cell.dataset, str(tmp_path))
        cell = dataclasses.replace(config.cell, dataset=dataset)
        (tmp_path / name).mkdir()
        if stop_at:
            asked = iter(range(10**6))
            drain(fit(config, cell, tmp_path / name, stop=lambda asked=asked, at=stop_at: next(asked) == at))
        events, result = drain(fit(config, cell, tmp_path / name))
        assert rows(events)[-1]["bad_images"] == 2
        results.append(result)
    one, resumed = results
    (trained,), (held,) = one["bad_images"]["train"], one["bad_images"]["eval"]
    assert "train/a/2.jpg" in trained and "val/a/2.jpg" in held and one["num_eval"] == 5
    assert resumed["bad_images"] == one["bad_images"] and resumed["last"] == one["last"]
    strict = dataclasses.replace(cell, dataset=dataclasses.replace(dataset, bad_images="error"))
    (tmp_path / "strict").mkdir()
    with pytest.raises(UserError, match=r"a/2\.jpg.*dataset\.bad_images=skip"):
        list(fit(config, strict, tmp_path / "strict"))


def test_a_newer_checkpoint_is_refused(tmp_path):
    torch.save({"schema_version": 99}, tmp_path / "last.pt")
    with pytest.raises(NewerError, match="newer vitlab"):
        load_checkpoint(tmp_path / "last.pt")


def test_no_device_of_that_kind(compose_config, tmp_path):
    config = dataclasses.replace(compose_config(*TINY), device="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device: cuda"):
            next(fit(config, config.cell, tmp_path))
