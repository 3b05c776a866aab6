"""Images to evaluate on, decoded once for all cells of a study."""

import dataclasses

import pytest
from forms import dataset_of, draw_photographs
from test_shared import CPU, SIDE, digest

from vitlab.data import shared
from vitlab.data.loader import EvalLoader
from vitlab.data.ring import EvaluationMemory, Given
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
        assert memory.there.sum() == 24
    finally:
        shared.take(Given())
