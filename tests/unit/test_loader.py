"""Batches: the same on any number of workers, ranks and micro-batches; bad files named or left out."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import dataset_of, draw_photographs

from vitlab.config import ConfigError, RecipeConfig, choice
from vitlab.core.errors import UserError
from vitlab.data.loader import EvalLoader, TrainLoader
from vitlab.data.order import CHUNK, chunks_ahead
from vitlab.data.sources.registry import build_source

RECIPE = RecipeConfig(epochs=1, batch_size=8, lr=1e-3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return draw_photographs(tmp_path_factory.mktemp("tree") / "data", {"train": 20, "val": 7}, (30, 90))


def train_loader(dataset, recipe=RECIPE, **changes):
    options = {
        "image_size": 32,
        "seed": 3,
        "rank": 0,
        "world": 1,
        "workers": 0,
        "micro_batch": 8,
        "device": CPU,
    } | changes
    return TrainLoader(build_source(dataset, "train"), dataset, choice("augment", "none"), recipe, **options)


def eval_loader(dataset, **changes):
    options = {"image_size": 32, "rank": 0, "world": 1, "workers": 0, "batch": 4, "device": CPU} | changes
    return EvalLoader(build_source(dataset, "eval"), dataset, **options)


def flat(steps):
    """Every batch of an epoch, joined."""
    batches = [b for step in steps for b in step]
    arrays = (np.concatenate([getattr(b, n) for b in batches]) for n in ("index", "repetition", "position"))
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches]), *arrays


def same(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tree, workers):
    dataset = dataset_of(tree)
    alone, helped = train_loader(dataset), train_loader(dataset, workers=workers)
    for epoch in range(2):
        assert same(flat(alone.epoch(epoch)), flat(helped.epoch(epoch)))
    assert same(flat([list(eval_loader(dataset))]), flat([list(eval_loader(dataset, workers=workers))]))


starts_threads = []


def start_threads():
    for _ in starts_threads:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


os.register_at_fork(after_in_child=start_threads)
"""What a library may do, as pyarrow does once its threads have been used: start them again after a fork."""


@pytest.mark.parametrize("threads", [0, 3])
def test_workers_read_on_while_their_reader_is_asked_to_save(tree, threads, monkeypatch):
    """Slurm sends its signals, and a terminal Ctrl-C, to all processes of a job."""
    monkeypatch.setattr(sys.modules[__name__], "starts_threads", [None] * threads)
    dataset, before = dataset_of(tree), {*multiprocessing.active_children()}
    alone, helped = train_loader(dataset), train_loader(dataset, workers=2)
    flat(helped.epoch(0))  # both have begun
    workers = {*multiprocessing.active_children()} - before
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {int(number)})"], check=True)
        worker.join(0.2)
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    assert same(flat(alone.epoch(1)), flat(helped.epoch(1)))


@pytest.mark.parametrize("kind", ["folder", "digits"])
def test_ranks_and_micro_batches_divide_the_global_batch(tree, kind):
    dataset = (
        dataset_of(tree) if kind == "folder" else dataclasses.replace(choice("dataset", "digits"), train_per_class=4)
    )
    recipe = dataclasses.replace(RECIPE, repeated_augmentation=3)
    whole = list(train_loader(dataset, recipe).epoch(1))
    ranks = [list(train_loader(dataset, recipe, rank=r, world=2, micro_batch=2).epoch(1)) for r in range(2)]
    for step, (one, *shares) in enumerate(zip(whole, *ranks, strict=True)):
        assert [len(s) for s in shares] == [2, 2], step
        assert same(flat([one]), flat(shares))


@pytest.mark.parametrize("kind", ["folder", "digits"])
def test_an_epoch_continues_anywhere(tree, kind):
    dataset = (
        dataset_of(tree) if kind == "folder" else dataclasses.replace(choice("dataset", "digits"), train_per_class=4)
    )
    whole, rest = list(train_loader(dataset).epoch(0)), list(train_loader(dataset).epoch(0, start_step=2))
    assert len(rest) == len(whole) - 2
    assert same(flat(whole[2:]), flat(rest))


def test_evaluation_takes_every_image_once_however_many_share(tree):
    dataset = dataset_of(tree)
    shares = [flat([list(eval_loader(dataset, rank=r, world=3))]) for r in range(3)]
    index = np.concatenate([s[2] for s in shares])
    assert sorted(index) == list(range(14))


def test_evaluation_shares_out_whole_batches(tree):
    """A batch is the same one on any number of processes, so that its arithmetic is the same to the bit."""
    alone = [b.index.tolist() for b in eval_loader(dataset_of(tree))]
    assert [len(b) for b in alone] == [4, 4, 4, 2]
    for world in (2, 3, 5):
        shares = [[b.index.tolist() for b in eval_loader(dataset_of(tree), rank=r, world=world)] for r in range(world)]
        assert [batch for i in range(4) for share in shares for batch in share[i : i + 1]] == alone


def test_crops_differ_by_epoch_and_seed(tree):
    dataset = dataset_of(tree)
    first = flat(train_loader(dataset).epoch(0))
    assert not same(first, flat(train_loader(dataset).epoch(1)))
    assert not torch.equal(first[0], flat(train_loader(dataset, seed=4).epoch(0))[0])


def test_pad_crop_is_the_books_cifar_treatment():
    """Black borders appear, and the native size is kept before the resize."""
    dataset = dataclasses.replace(choice("dataset", "digits"), train_crop="pad", pad=4, train_per_class=8)
    images = flat(train_loader(dataset, image_size=8).epoch(0))[0]
    source = build_source(dataset, "train")
    originals = {source.image(i).tobytes() for i in range(len(source))}
    assert sum(image.permute(1, 2, 0).numpy().tobytes() in originals for image in images) < len(images) / 4
    assert images.shape[1:] == (3, 8, 8)


def damaged(tree, tmp_path):
    """A copy of the tree with one truncated JPEG and one file that is no image."""
    import shutil

    root = tmp_path / "data"
    shutil.copytree(tree, root)
    for split in ("train", "val"):
        file = root / split / "a" / "03.jpg"
        file.write_bytes(file.read_bytes()[:400])
    (root / "train" / "b" / "05.jpg").write_text("not an image", encoding="utf-8")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(tree, tmp_path, workers):
    dataset = dataset_of(damaged(tree, tmp_path))
    with pytest.raises(UserError, match=r"(03|05)\.jpg.*dataset\.bad_images=skip"):
        list(train_loader(dataset, workers=workers).epoch(0))
    with pytest.raises(UserError, match=r"val/a/03\.jpg"):
        list(eval_loader(dataset, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_can_be_left_out_and_are_counted(tree, tmp_path, workers):
    dataset = dataset_of(damaged(tree, tmp_path), bad_images="skip")
    loader = train_loader(dataset, workers=workers)
    assert len(flat(loader.epoch(0))[0]) == 40
    assert {str(r).split(":")[0][-8:] for r in loader.reader.bad.values()} == {"a/03.jpg", "b/05.jpg"}
    held = eval_loader(dataset, workers=workers)
    assert len(flat([list(held)])[0]) == 13


def test_a_batch_that_no_epoch_fills_is_refused(tree):
    recipe = dataclasses.replace(RECIPE, batch_size=64)
    with pytest.raises(UserError, match=r"recipe\.batch_size: 64"):
        train_loader(dataset_of(tree), recipe)


def test_a_missing_root_is_the_users_mistake(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        dataset_of(tmp_path / "nowhere")


@pytest.mark.parametrize("workers", [0, 2])
def test_requests_of_several_chunks_hold_the_same_images(tree, tmp_path, workers):
    """Each chunk is copied into memory of the reader's own, and what workers handed over is given back at once."""
    copy = Path(shutil.copytree(tree, tmp_path / "copy"))
    sorted((copy / "train").rglob("*.jpg"))[3].write_bytes(b"no image")
    dataset = dataclasses.replace(dataset_of(copy), bad_images="skip")
    recipe = dataclasses.replace(RECIPE, repeated_augmentation=2, batch_size=40)
    small = dataclasses.replace(recipe, batch_size=8)
    large = train_loader(dataset, recipe, workers=workers, micro_batch=40)
    alone = train_loader(dataset, small, micro_batch=8)
    assert CHUNK < 40 and same(flat(large.epoch(0)), flat(alone.epoch(0)))
    assert large.reader.bad == alone.reader.bad and len(large.reader.bad) == 1


def shm(monkeypatch, free, there=None):
    monkeypatch.setattr("vitlab.data.order.shared_memory", lambda: (free, there or free))
    monkeypatch.setattr("vitlab.data.readers.shared_memory", lambda: (free, there or free))


def test_workers_read_no_further_ahead_than_shared_memory_allows(monkeypatch):
    """A chunk of 224 pixels is 4.8 MB; Docker gives a container 64 MB."""
    found = []
    for megabytes in (29, 64, 1000):
        shm(monkeypatch, megabytes * 10**6)
        found.append((chunks_ahead(2, 224), chunks_ahead(1, 32)))
    assert found == [(1, 8), (3, 8), (8, 8)]
    shm(monkeypatch, 64 * 10**6)
    assert chunks_ahead(2, 224, at_once=2) == 1
    with pytest.raises(
        ConfigError, match=r"workers: .*/dev/shm, of which 64.0 MB are free; 16 need 163.8 MB \(in a con"
    ):
        chunks_ahead(16, 224)
    with pytest.raises(ConfigError, match=r"of which 16.0 MB are free for each of 4 trainings at once; 2 need 28.9 MB"):
        chunks_ahead(2, 224, at_once=4)


def test_a_worker_that_dies_of_too_little_shared_memory_is_explained(tree, monkeypatch):
    reader = train_loader(dataset_of(tree), workers=1).reader
    died = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    shm(monkeypatch, 10**6)
    said = reader._explained(died)
    assert isinstance(said, UserError) and "/dev/shm has no more than 1.0 MB; give workers=0" in str(said)
    assert reader._explained(other := RuntimeError("a bug")) is other
    shm(monkeypatch, 10**6, 10**9)
    assert reader._explained(died) is died, "there was room: something else killed it"
