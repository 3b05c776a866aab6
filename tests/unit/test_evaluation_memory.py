"""Images to evaluate on, decoded once for all cells of a study."""

import dataclasses
import os
import signal
import time

import pytest
from forms import dataset_of, draw_photographs
from test_shared import CPU, FORK, SIDE, digest, told

from vitlab.data import shared
from vitlab.data.loader import EvalLoader
from vitlab.data.readers import ImageChunks
from vitlab.data.ring import KEPT, EvaluationMemory, Given
from vitlab.data.sources.registry import build_source


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return draw_photographs(tmp_path_factory.mktemp("tree") / "data", {"train": 60, "val": 20}, (20, 60))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_images_are_decoded_once(tree, workers, monkeypatch):
    dataset = dataset_of(tree)

    def batches(**changes):
        options = {"image_size": SIDE, "rank": 0, "world": 1, "workers": workers, "batch": 16, "device": CPU}
        return EvalLoader(build_source(dataset, "eval"), dataset, **options | changes)

    alone = digest([list(batches())])
    memory = EvaluationMemory(dataset, SIDE, 40)
    shared.take(Given(evaluation=(memory,)))
    try:
        half = list(batches(rank=1, world=2))
        assert memory.there.sum() == 16 and len(half) == 1
        assert digest([list(batches())]) == alone and memory.there.all()
        monkeypatch.setattr("vitlab.data.readers.ImageChunks.__getitem__", None)  # nothing is decoded any more
        assert digest([list(batches())]) == alone
        small = dataclasses.replace(dataset, mean=(0.5, 0.5, 0.5), train_per_class=4)
        assert memory.is_for(small, SIDE, 40) and not memory.is_for(dataset, 32, 40)
        assert not memory.is_for(dataclasses.replace(dataset, eval_crop=1.0), SIDE, 40)
    finally:
        shared.take(Given())


def test_bad_images_to_evaluate_on_are_met_each_time(tree, tmp_path):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(tree, root)
    (root / "val" / "a" / "03.jpg").write_bytes(b"no image")
    dataset = dataset_of(root, bad_images="skip")
    memory = EvaluationMemory(dataset, SIDE, 40)
    shared.take(Given(evaluation=(memory,)))
    try:
        options = {"image_size": SIDE, "rank": 0, "world": 1, "workers": 0, "batch": 16, "device": CPU}
        for _ in range(2):
            held = EvalLoader(build_source(dataset, "eval"), dataset, **options)
            assert [len(b.index) for b in held] == [15, 16, 8] and list(held.reader.bad) == [3]
        assert (memory.there == KEPT).sum() == 24
    finally:
        shared.take(Given())


def seen_alone(dataset):
    options = {"image_size": SIDE, "rank": 0, "world": 1, "workers": 0, "batch": 8, "device": CPU}
    return digest([list(EvalLoader(build_source(dataset, "eval"), dataset, **options))])


def evaluate(dataset, memory, pipe, stop=None, patience=60.0):
    """The life of a cell that evaluates: it sends what it saw, and how many batches it has read itself."""
    read, counted = ImageChunks.__getitem__, []

    def reading(self, request):
        counted.append(1)
        if len(counted) == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return read(self, request)

    ImageChunks.__getitem__ = reading
    shared.take(Given(evaluation=(memory,)))
    made = EvalLoader(
        build_source(dataset, "eval"), dataset, image_size=SIDE, rank=0, world=1, workers=0, batch=8, device=CPU
    )
    made.reader.patience = patience
    pipe.send((digest([list(made)]), len(counted)))


def cells_that_evaluate(dataset, *how):
    """What each has sent; None of one that was killed."""
    memory, cells = EvaluationMemory(dataset, SIDE, 40), []
    for options in how:
        reader, writer = FORK.Pipe(duplex=False)
        cells.append((FORK.Process(target=evaluate, args=(dataset, memory, writer), kwargs=options), reader))
        cells[-1][0].start()
        writer.close()
        while "stop" in options and cells[-1][0].is_alive():  # its death is met by those that begin now
            time.sleep(0.01)
    return [told(cell) for cell in cells]


def test_of_cells_that_evaluate_at_once_one_decodes(tree):
    dataset = dataset_of(tree)
    alone = seen_alone(dataset)
    said = cells_that_evaluate(dataset, {}, {}, {})
    assert {seen for seen, _ in said} == {alone} and sum(count for _, count in said) == 5
    killed, *said = cells_that_evaluate(dataset, {"stop": 3}, {}, {})
    assert killed is None and {seen for seen, _ in said} == {alone} and sum(count for _, count in said) == 3


def test_nobody_waits_for_ever_or_for_a_bad_image(tree, tmp_path):
    import shutil

    root = tmp_path / "data"
    shutil.copytree(tree, root)
    (root / "val" / "a" / "03.jpg").write_bytes(b"no image")
    dataset = dataset_of(root, bad_images="skip")
    said = cells_that_evaluate(dataset, {}, {}, {})
    assert {seen for seen, _ in said} == {seen_alone(dataset)} and sum(count for _, count in said) == 5 + 2
    memory = EvaluationMemory(dataset, SIDE, 40)
    holder = FORK.Process(target=lambda: (memory.memory.hold(0), time.sleep(60)))
    holder.start()
    while not memory.memory.is_held(0):
        time.sleep(0.01)
    reader, writer = FORK.Pipe(duplex=False)
    evaluate_alone = FORK.Process(target=evaluate, args=(dataset, memory, writer), kwargs={"patience": 0.1})
    evaluate_alone.start()
    writer.close()
    assert told((evaluate_alone, reader)) == (seen_alone(dataset), 5)
    holder.kill()
    holder.join()
