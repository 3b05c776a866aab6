"""One reader for several trainings: the very images of a training alone, whoever is late, slow or dies."""

import contextlib
import dataclasses
import gc
import hashlib
import multiprocessing as mp
import os
import signal
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from forms import dataset_of, draw_photographs

from vitlab.config import CellConfig, RecipeConfig, choice
from vitlab.data import shared
from vitlab.data.loader import EvalLoader, TrainLoader
from vitlab.data.order import crops_of_cell, epoch_samples
from vitlab.data.ring import APART, EXPECTED, FREE, JOINED, NEXT, STATE, EvaluationMemory, Given, Ring
from vitlab.data.shared import read_for_all
from vitlab.data.sources.registry import build_source

FORK = mp.get_context("fork")
CPU = torch.device("cpu")
RECIPE = RecipeConfig(epochs=3, batch_size=8, lr=1e-3)
SIDE = 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return draw_photographs(tmp_path_factory.mktemp("tree") / "data", {"train": 60, "val": 20}, (20, 60))


def crops(dataset, recipe=RECIPE, seed=3, **changes):
    augment = choice("augment", "none")
    model = dataclasses.replace(choice("model", "vit_micro"), image_size=SIDE)
    cell = CellConfig(model, dataset, augment, choice("pretrain", "scratch"), recipe, seed)
    return dataclasses.replace(crops_of_cell(cell), **changes)


def ring_of(dataset, members, recipe=RECIPE, window=4, **changes):
    return Ring(crops(dataset, recipe), epoch_samples(dataset.train_images, recipe), members, window, **changes)


def loader(dataset, recipe=RECIPE, **changes):
    options = {"image_size": SIDE, "seed": 3, "rank": 0, "world": 1, "workers": 0, "micro_batch": 8, "device": CPU}
    options |= changes
    return TrainLoader(build_source(dataset, "train"), dataset, choice("augment", "none"), recipe, **options)


def digest(batches):
    seen = hashlib.sha256()
    for step in batches:
        for b in step:
            for array in (b.images.numpy(), b.labels.numpy(), b.index, b.repetition, b.position):
                seen.update(np.ascontiguousarray(array).tobytes())
    return seen.hexdigest()


def epochs(made, recipe=RECIPE, start=(0, 0)):
    """All batches of a training from an epoch and step on."""
    for epoch in range(start[0], recipe.epochs):
        yield from made.epoch(epoch, start[1] if epoch == start[0] else 0)


def member(ring, number, dataset, pipe, options, delay=0.0, late=0, start=(0, 0), stop=None):
    """The life of a training process: what it read is sent through `pipe`, and how it was joined."""
    options = dict(options)
    recipe = options.pop("recipe", RECIPE)
    shared.take(Given(ring, number - options.get("rank", 0)))
    if late:  # once the first member is so far
        while ring.members[0, NEXT] < late:
            time.sleep(0.005)
        ring.members[number, STATE] = EXPECTED
    made = loader(dataset, recipe, **options)
    states = []

    def steps():
        for count, step in enumerate(epochs(made, recipe, start)):
            states.append(ring.state_of(number))
            time.sleep(delay)
            if count == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            yield step

    pipe.send((digest(steps()), states, dict(made.reader.bad)))


@contextlib.contextmanager
def reading(ring, workers=0):
    process = FORK.Process(target=read_for_all, args=(ring, (), workers))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def start_member(ring, number, dataset, **how):
    options = {key: how.pop(key) for key in list(how) if key in ("recipe", "rank", "world", "workers", "micro_batch")}
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=member, args=(ring, number, dataset, writer, options), kwargs=how)
    process.start()
    writer.close()
    return process, reader


def told(pair):
    """What a member said in the end; None if it was killed."""
    process, pipe = pair
    try:
        said = pipe.recv()
    except EOFError:
        said = None
    process.join()
    return said


@pytest.fixture
def own_names(monkeypatch):
    """→ the names in /dev/shm that this test and its processes gave: other tests run at the same time."""
    prefix = f"mp{os.getpid()}"
    monkeypatch.setitem(mp.current_process()._config, "semprefix", f"/{prefix}")  # pyright: ignore
    return lambda: [name for name in os.listdir("/dev/shm") if name.startswith(f"sem.{prefix}-")]


FEW = [(1, 0, 0), (2, 2, 1), (4, 0, 2)]
ALL = [
    pytest.param(members, workers, reading_workers, marks=pytest.mark.slow)
    for members in (1, 2, 4) for workers in (0, 1, 2) for reading_workers in (0, 1, 2)
    if (members, workers, reading_workers) not in FEW
]  # fmt: skip


@pytest.mark.parametrize(("members", "workers", "reading_workers"), [*FEW, *ALL])
def test_members_read_what_each_would_alone(tree, members, workers, reading_workers, own_names):
    dataset = dataset_of(tree)
    alone = digest(epochs(loader(dataset)))
    ring = ring_of(dataset, members)
    with reading(ring, reading_workers):
        said = [told(m) for m in [start_member(ring, n, dataset, workers=workers) for n in range(members)]]
    assert [d for d, _, _ in said] == [alone] * members
    assert all(set(states) == {JOINED} for _, states, _ in said), "no member read for itself"
    assert ring.is_over() and own_names() == []


@pytest.mark.parametrize("keeping", [False, True])
def test_memory_of_a_batch_is_used_again_once_nothing_of_it_is_left(tree, keeping):
    dataset, views, copies, places = dataset_of(tree), [], [], []
    ring = ring_of(dataset, 1)
    with reading(ring):
        shared.take(Given(ring, 0))
        try:
            for (batch,) in epochs(loader(dataset)):
                places.append(batch.images.data_ptr())
                if keeping:  # a few pixels, as a computation may
                    views.append(batch.images[3:5, 1])
                    copies.append(views[-1].clone())
        finally:
            shared.take(Given())
    assert len(places) == 45 and len(set(places)) <= (45 if keeping else 3)
    assert all(torch.equal(view, copy) for view, copy in zip(views, copies, strict=True))
    assert not keeping or len(set(places)) == 45


def test_repeated_augmentation_other_batch_sizes_and_two_processes_of_a_cell(tree):
    dataset = dataset_of(tree)
    recipe = dataclasses.replace(RECIPE, repeated_augmentation=3)
    larger = dataclasses.replace(recipe, batch_size=20)
    alone = [digest(epochs(loader(dataset, recipe, rank=r, world=2, micro_batch=4), recipe)) for r in range(2)]
    alone.append(digest(epochs(loader(dataset, larger, micro_batch=20), larger)))
    ring = Ring(crops(dataset, recipe), epoch_samples(dataset.train_images, recipe), 3, 4)
    with reading(ring):
        ranks = [start_member(ring, r, dataset, recipe=recipe, rank=r, world=2, micro_batch=4) for r in range(2)]
        said = [told(m) for m in [*ranks, start_member(ring, 2, dataset, recipe=larger, micro_batch=20)]]
    assert [d for d, _, _ in said] == alone
    assert all(set(states) == {JOINED} for _, states, _ in said)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_and_noted_as_alone(tree, tmp_path, workers):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(tree, root)
    for name in ("a/03.jpg", "b/05.jpg", "b/06.jpg"):
        (root / "train" / name).write_bytes(b"no image")
    dataset = dataset_of(root, bad_images="skip")
    made = loader(dataset)
    alone = digest(epochs(made))
    ring = ring_of(dataset, 2)
    with reading(ring):
        said = [told(m) for m in [start_member(ring, n, dataset, workers=workers) for n in range(2)]]
    assert [(d, bad) for d, _, bad in said] == [(alone, made.reader.bad)] * 2 and len(made.reader.bad) == 3
    assert all(set(states) == {JOINED} for _, states, _ in said)


def test_what_the_reader_cannot_read_each_member_meets_itself(tree, tmp_path):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(tree, root)
    (root / "train" / "a" / "07.jpg").write_bytes(b"no image")
    dataset = dataset_of(root)
    ring = ring_of(dataset, 1)
    with reading(ring):
        shared.take(Given(ring, 0))
        try:
            with pytest.raises(Exception, match=r"07\.jpg.*dataset\.bad_images=skip"):
                list(epochs(loader(dataset)))
        finally:
            shared.take(Given())


def test_a_reader_slower_and_faster_than_its_members_and_one_slow_member(tree):
    dataset = dataset_of(tree)
    alone = digest(epochs(loader(dataset)))
    ring = ring_of(dataset, 2, window=2, patience=0.2)
    with reading(ring):
        fast, slow = start_member(ring, 0, dataset), start_member(ring, 1, dataset, delay=0.1)
        (one, joined, _), (other, states, _) = told(fast), told(slow)
    assert one == other == alone
    assert set(joined) == {JOINED} and states[0] == JOINED and APART in states, "set apart, since the other waited"
    assert states[-1] == JOINED, "joined again, since nobody else was left"


def test_one_that_comes_late_or_resumes_reads_for_itself(tree):
    dataset = dataset_of(tree)
    alone = digest(epochs(loader(dataset)))
    rest = digest(epochs(loader(dataset), start=(2, 3)))
    ring = ring_of(dataset, 4, window=2)
    ring.members[2, STATE] = FREE  # it is not waited for
    with reading(ring):
        two = [start_member(ring, n, dataset, delay=0.03) for n in range(2)]
        late = start_member(ring, 2, dataset, late=5)
        resumed = start_member(ring, 3, dataset, start=(2, 3))
        said = [told(m) for m in (*two, late, resumed)]
    assert [d for d, _, _ in said] == [alone, alone, alone, rest]
    assert said[2][1][0] == APART and said[3][1][0] == APART
    assert all(set(states) == {JOINED} for _, states, _ in said[:2])


def test_a_killed_member_holds_nobody_up_and_a_killed_reader_is_replaced(tree):
    dataset = dataset_of(tree)
    alone = digest(epochs(loader(dataset)))
    ring = ring_of(dataset, 3, window=2)
    others = []
    with reading(ring) as first:
        others = [start_member(ring, n, dataset, delay=0.02) for n in range(2)]
        killed = start_member(ring, 2, dataset, stop=5)
        assert told(killed) is None
        time.sleep(0.2)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        time.sleep(0.1)
        with reading(ring):
            said = [told(m) for m in others]
    assert [d for d, _, _ in said] == [alone] * 2
    assert all(set(states) == {JOINED} for _, states, _ in said)


def test_a_killed_helper_of_the_reader_is_replaced(tree):
    dataset = dataset_of(tree)
    alone = digest(epochs(loader(dataset)))
    ring = ring_of(dataset, 2, window=4)
    with reading(ring, workers=2) as reader:
        members = [start_member(ring, n, dataset, delay=0.03) for n in range(2)]
        time.sleep(0.5)
        tasks = Path(f"/proc/{reader.pid}/task").glob("*/children")
        helpers = [int(pid) for task in tasks for pid in task.read_text(encoding="utf-8").split()]
        assert len(helpers) == 2
        os.kill(helpers[0], signal.SIGKILL)
        said = [told(m) for m in members]
    assert [d for d, _, _ in said] == [alone] * 2


def test_without_any_reader_each_reads_for_itself(tree):
    dataset = dataset_of(tree)
    ring = ring_of(dataset, 1)
    ring.begin(0, 0, 99)
    began = time.monotonic()
    assert ring.wait(0, 0, gone=0.1) is None and time.monotonic() - began < 5
    assert ring.state_of(0) == FREE and not ring.join(0, 0)
    assert digest(epochs(loader(dataset))) == told(start_member(ring, 0, dataset))[0]


def test_files_that_changed_are_not_shared(tree):
    dataset = dataset_of(tree)
    ring = ring_of(dataset, 1)
    ring.describe(120, "another tree")
    ring.facts[1] = 1
    said = told(start_member(ring, 0, dataset))
    assert said[0] == digest(epochs(loader(dataset)))


def test_what_is_shared_is_what_decides_the_crops(tree):
    dataset = dataset_of(tree)
    same = dataclasses.replace(dataset, mean=(0.1, 0.2, 0.3), hflip=0.0, eval_crop=1.0)
    assert crops(dataset) == crops(same)
    for other in ({"crop_scale": (0.5, 1.0)}, {"train_crop": "resize"}, {"root": "/elsewhere"}, {"val_fraction": 0.1}):
        assert crops(dataset) != crops(dataclasses.replace(dataset, **other))
    for other in ({"seed": 4}, {"image_size": 32}, {"interpolation": "bilinear"}, {"repeats": 3}):
        assert crops(dataset) != crops(dataset, **other)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_a_loader_that_is_dropped_ends_its_workers_at_once(tree, training, workers):
    """Not when the garbage collector runs next, which may be in a process that was forked in between."""
    dataset, before = dataset_of(tree), {*mp.active_children()}
    ring, memory = ring_of(dataset, 1), EvaluationMemory(dataset, SIDE, 40)
    shared.take(Given(ring, 0, evaluation=(memory,)))
    ring.members[0, STATE] = APART
    options = {"image_size": SIDE, "rank": 0, "world": 1, "batch": 16, "device": CPU, "workers": workers}
    gc.disable()
    try:
        made = (
            loader(dataset, workers=workers)
            if training
            else EvalLoader(build_source(dataset, "eval"), dataset, **options)
        )
        for _ in made.epoch(0) if training else made:
            assert len({*mp.active_children()} - before) == workers
            break  # as where a training is interrupted
        reader = weakref.ref(made.reader.own)
        del made
        assert reader() is None and not {*mp.active_children()} - before
    finally:
        gc.enable()
        shared.take(Given())
