"""The plan's comparison of its cells with the data on the disk."""

import dataclasses
import json
import shutil

import pytest
from planned import finish, with_study

from vitlab.config import ConfigError, DatasetConfig
from vitlab.data.sources.catalogue import known_data, read_known, remember_data
from vitlab.data.sources.on_disk import inventories
from vitlab.data.sources.registry import build_source
from vitlab.study.identity import identity
from vitlab.study.plan import build_plan
from vitlab.study.preflight import _with_class_list, check_plan
from vitlab.study.provenance import record_data, require_evaluated_data, require_same_data
from vitlab.study.record import Record

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture()
def tree(tmp_path):
    for split, count in (("train", 8), ("val", 2)):
        for name in ("gull", "tern"):
            folder = tmp_path / "birds" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(bytes([i]) * (100 + i))
    return tmp_path / "birds"


@pytest.fixture()
def requested(requests_for, tree):
    """`requested(["seed=0"], …)` → requests for cells on the tree, with the study options `rerun=…`."""

    def made(*lists, rerun=None, shared=()):
        words = ["dataset=folder", f"dataset.root={tree}", "recipe.batch_size=8", *shared]
        requests = [_with_class_list(r.config) for r in requests_for(*lists, shared=words)]
        return [
            dataclasses.replace(old, config=with_study(config, rerun=rerun))
            for old, config in zip(requests_for(*lists, shared=words), requests, strict=True)
        ]

    return made


def trained(folder, config, **origin):
    """A finished record, with the data it was trained on."""
    dataset = config.cell.dataset
    return finish(folder, config, data=record_data(str(folder), dataset), **origin)


def plan_of(requests):
    return check_plan(build_plan(requests, "s"))


def test_a_finished_cell_on_the_same_files_is_finished(requested, tmp_path):
    requests = requested(["seed=0"], ["seed=1"])
    trained(tmp_path, requests[0].config)
    plan = plan_of(requests)
    assert [c.state for c in plan.cells] == ["finished", "missing"]
    assert not [note for note in plan.notes if "data" in note or "birds" in note]


def test_a_replaced_file_stops_the_plan_and_every_way_out_is_accepted(requested, tree, tmp_path):
    requests = requested(["seed=0"], ["seed=1"])
    record = trained(tmp_path, requests[0].config)
    saved = (tree / "train/tern/2.png").read_bytes()
    (tree / "train/tern/2.png").write_bytes(b"other")
    with pytest.raises(ConfigError) as refused:
        plan_of(requests)
    text = str(refused.value)
    assert f"dataset.root: the data of 'birds' have changed since none/s0 ({record.id}, finished) was begun" in text
    assert "1 of 16 training images differ: tern/2.png (102 bytes then, 5 now)" in text
    assert "evaluation" not in text and "dataset.name=birds_2" in text and f"study.rerun='[{record.id}]'" in text
    assert plan_of(requested(["seed=0"], ["seed=1"], shared=["dataset.name=birds_2"])).todo
    again = plan_of(requested(["seed=0"], ["seed=1"], rerun=(record.id,)))
    assert [c.id for c in again.todo] == [c.id for c in again.cells]
    (tree / "train/tern/2.png").write_bytes(saved)
    assert plan_of(requests).cells[0].state == "finished"


def test_another_tree_under_the_same_name_is_refused_for_cells_that_are_not_there_yet(requested, tree, tmp_path):
    trained(tmp_path, requested(["seed=0"])[0].config)
    (tree / "val/gull/1.png").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"'birds' means other images in .*\n.*1 of 4 evaluation images.*gull/1\.png"):
        plan_of(requested(["augment=mixup", "augment.mix_group=8"]))
    assert plan_of(requested(["augment=mixup", "augment.mix_group=8"], rerun="all")).todo
    renamed = shutil.copytree(tree, tmp_path / "elsewhere")
    words = ["dataset=folder", "dataset.name=birds", f"dataset.root={renamed}"]
    with pytest.raises(ConfigError, match="means other images"):
        plan_of(requested(["augment=none", "seed=5"], shared=words[1:]))


def test_once_trained_again_the_name_means_the_new_files(requested, tree, tmp_path):
    requests = requested(["seed=0"])
    record = trained(tmp_path, requests[0].config)
    (tree / "train/tern/2.png").write_bytes(b"other")
    dataset = requests[0].config.cell.dataset
    now = inventories(dataset)
    assert not known_data(tmp_path, dataset)["train"].agrees(now["train"].fingerprint)
    record.archive()
    trained(tmp_path, requests[0].config)
    assert known_data(tmp_path, dataset)["train"] == now["train"].fingerprint
    assert plan_of(requests).cells[0].state == "finished"
    assert set(read_known(tmp_path, "birds")) == {"classes", "num_train", "num_eval", "data"}


def test_running_and_interrupted_cells_are_compared_too(requested, tree, tmp_path):
    requests = requested(["seed=0"], ["seed=1"])
    for request in requests:
        (trained(tmp_path, request.config).folder / "result.json").unlink()
    (tree / "train/tern/2.png").write_bytes(b"other")
    running = Record(tmp_path / identity(requests[1].config.cell))
    with running.locked(), pytest.raises(ConfigError) as refused:
        plan_of(requests)
    text, ids = str(refused.value), [identity(r.config.cell) for r in requests]
    assert f"none/s0 ({ids[0]}, interrupted), none/s1 ({ids[1]}, running)" in text
    assert f"study.rerun='[{ids[0]}]'" in text, "a cell in training is not trained again"


def test_data_out_of_sight_are_not_compared_and_that_is_said(requested, tree, tmp_path):
    requests = requested(["seed=0"])
    trained(tmp_path, requests[0].config)
    shutil.move(tree, tmp_path / "unmounted")
    plan = plan_of(requests)
    assert plan.cells[0].state == "finished"
    assert "birds was not compared with 1 cell that started from it: dataset.root: " in " ".join(plan.notes)


def test_records_of_older_vitlabs_are_compared_by_their_one_fingerprint(requested, tree, tmp_path):
    requests = requested(["seed=0", "dataset.train_per_class=4"])
    dataset = requests[0].config.cell.dataset
    old = "-".join(build_source(dataset, split).fingerprint() for split in ("train", "eval"))
    finish(tmp_path, requests[0].config, data=old)
    assert plan_of(requests).cells[0].state == "finished"
    (tree / "train/tern/2.png").write_bytes(b"other")
    with pytest.raises(ConfigError, match=rf"their fingerprint was {old} and is now "):
        plan_of(requests)


def test_the_cell_itself_refuses_other_data(requested, tree, tmp_path):
    """For those who did not plan: jobs of a cluster, other launchers of Hydra's."""
    config = requested(["seed=0"])[0].config
    record = trained(tmp_path, config)
    require_same_data(record, config.cell.dataset, tmp_path)
    (tree / "train/tern/2.png").write_bytes(b"other")
    with pytest.raises(ConfigError, match=rf"the data of .*{record.id} have changed.*\n.*tern/2\.png"):
        require_same_data(record, config.cell.dataset, tmp_path)


def test_evaluating_a_cell_on_other_images_needs_another_name(requested, tree, tmp_path):
    config = requested(["seed=0"])[0].config
    record = trained(tmp_path, config)
    dataset = config.cell.dataset
    (tree / "train/tern/2.png").write_bytes(b"other")
    require_evaluated_data(record.folder / "last.pt", dataset)
    (tree / "val/tern/1.png").write_bytes(b"other")
    with pytest.raises(ConfigError, match=rf"'birds' holds other images than those that {record.id}.*\n.*tern/1\.png"):
        require_evaluated_data(record.folder / "last.pt", dataset)
    require_evaluated_data(record.folder / "last.pt", dataclasses.replace(dataset, name="birds_2"))
    require_evaluated_data(tmp_path / "anybodys.pth", dataset)


def test_contents_that_were_not_recorded_are_said_not_to_be_compared(requested, tmp_path):
    trained(tmp_path, requested(["seed=0"])[0].config)
    plan = plan_of(requested(["seed=0"], shared=["dataset.verify=contents"]))
    assert plan.cells[0].state == "finished", "how it is verified is not part of the identity"
    assert "1 cell recorded without the bytes of birds" in " ".join(plan.notes)


def test_the_kinds_of_one_name_are_apart_and_damage_is_named(tree, tmp_path):
    dataset = DatasetConfig("birds", "folder", root=str(tree))
    remember_data(tmp_path, dataset, inventories(dataset))
    assert known_data(tmp_path, dataclasses.replace(dataset, kind="digits")) == {}
    assert set(known_data(tmp_path, dataclasses.replace(dataset, val_fraction=0.1))) == {"train"}
    file = tmp_path / "datasets" / "birds.json"
    for text in ("{", json.dumps([1])):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(Exception, match=r"birds\.json: damaged .*remove it"):
            read_known(tmp_path, "birds")


def test_a_pretraining_on_changed_images_is_trained_again_with_what_starts_from_it(requests_for, tree, tmp_path):
    shared = ["pretrain=fractaldb_small", f"pretrain.dataset.root={tree}", "pretrain.recipe.batch_size=8"]

    def requested(rerun=None, words=()):
        made = requests_for(["seed=0"], shared=[*shared, *words])
        return [dataclasses.replace(r, config=with_study(_with_class_list(r.config), rerun=rerun)) for r in made]

    (request,) = requested()
    before, after = request.config.cell.pretraining, request.config.cell
    finish(tmp_path, request.config, "pretraining", data=record_data(str(tmp_path), before.dataset))
    finish(tmp_path, request.config, start={"id": identity(before), "finished_at": None})
    (tree / "train/tern/2.png").write_bytes(b"other")
    with pytest.raises(ConfigError) as refused:
        plan_of(requested())
    text = str(refused.value)
    name = before.dataset.name
    assert text.startswith(f"pretrain.dataset.root: the data of {name!r} have changed since pretrain/")
    assert "tern/2.png (102 bytes then, 5 now)" in text and f"pretrain.dataset.name={name}_2" in text
    assert f"study.rerun='[{identity(before)},{identity(after)}]'" in text
    assert plan_of(requested(words=[f"pretrain.dataset.name={name}_2"])).todo
    again = plan_of(requested(rerun=(identity(before), identity(after))))
    assert [c.id for c in again.todo] == [identity(before), identity(after)]
    (note,) = [n for n in plan_of(requested(rerun=(identity(before),))).notes if "earlier training" in n]
    assert note.startswith("1 cell from an earlier training of pretrain/")


def test_cells_that_started_from_an_earlier_pretraining_are_noted(requests_for, tmp_path):
    (request,) = requests = requests_for(["pretrain=fractaldb_small", "seed=0"])
    before = identity(request.config.cell.pretraining)
    record = finish(tmp_path, request.config, "pretraining")
    record.write("result.json", record.read("result.json") | {"finished_at": "2026-01-02"})
    finish(tmp_path, request.config, start={"id": before, "finished_at": "2026-01-01"})
    assert "earlier training of pretrain/" in " ".join(plan_of(requests).notes)
    finish(tmp_path, request.config, start={"id": before, "finished_at": "2026-01-02"})
    assert "earlier training" not in " ".join(plan_of(requests).notes)
