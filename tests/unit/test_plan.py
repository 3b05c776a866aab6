"""Plans: aliases, states, stages, selection, drift."""

import dataclasses

import pytest
from planned import begin, finish, with_study

from vitlab.config import ConfigError
from vitlab.core.integrity import NewerError
from vitlab.study.identity import identity, study_name
from vitlab.study.plan import build_plan, study_content
from vitlab.study.provenance import device_kind, settings
from vitlab.study.record import Record
from vitlab.study.studies import read_study, write_study


def test_aliases_are_one_cell(requests_for):
    plan = build_plan(requests_for(["augment=deit"], ["augment=deit_no_jitter"], ["augment=mixup"]), "s")
    assert [c.name for c in plan.cells] == ["deit/s0", "mixup/s0"]
    assert plan.cells[0].aliases == ("deit_no_jitter/s0",)


def test_only_what_is_missing_is_selected(requests_for, tmp_path):
    requests = requests_for(["augment=none"], ["augment=mixup"], ["augment=cutmix"])
    finish(tmp_path, requests[0].config)
    begin(tmp_path, requests[1].config).fail("E", "m")
    plan = build_plan(requests, "s")
    assert [(c.state, c.selected) for c in plan.cells] == [("finished", False), ("failed", False), ("missing", True)]
    retry = [dataclasses.replace(r, config=with_study(r.config, retry_failed=True)) for r in requests]
    assert [c.selected for c in build_plan(retry, "s").cells] == [False, True, True]
    rerun = [dataclasses.replace(r, config=with_study(r.config, rerun="all")) for r in requests]
    assert all(c.selected for c in build_plan(rerun, "s").cells)
    one = [dataclasses.replace(r, config=with_study(r.config, rerun=(plan.cells[0].id,))) for r in requests]
    assert [c.selected for c in build_plan(one, "s").cells] == [True, False, True]
    wrong = [dataclasses.replace(r, config=with_study(r.config, rerun=("cffff",))) for r in requests]
    with pytest.raises(ConfigError, match=r"study\.rerun: 'cffff'"):
        build_plan(wrong, "s")


def test_what_a_newer_vitlab_has_begun_is_refused_and_left_alone(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"])
    record = Record(tmp_path / identity(requests[1].config.cell))
    record.write("config.yaml", {"schema_version": 99, "id": record.id})
    before = (record.folder / "config.yaml").read_bytes()
    with pytest.raises(NewerError, match=rf"{record.id}/config\.yaml: written by a newer vitlab \(schema 99"):
        build_plan(requests, "s")
    assert (record.folder / "config.yaml").read_bytes() == before


def test_one_pretraining_feeds_many_and_comes_first(requests_for, tmp_path):
    requests = requests_for(*[["pretrain=fractaldb", f"seed={s}"] for s in range(3)], ["pretrain=scratch", "seed=0"])
    plan = build_plan(requests, "s")
    first, *rest = plan.todo
    assert first.config.study.part == "pretraining" and first.name == "pretrain/fractaldb1k/s0"
    assert [c.needs for c in rest] == [first.id] * 3 + [None]
    for request in requests[:3]:
        finish(tmp_path, request.config)
    done = build_plan(requests, "s")
    assert [c.id for c in done.todo] == [rest[3].id], "a pre-training that nothing waits for is not trained"


def test_names_tell_what_varies(requests_for):
    requests = requests_for(
        ["augment=none", "recipe.lr=0.1"], ["augment=none", "recipe.lr=0.2"], ["augment=mixup", "recipe.lr=0.1"]
    )
    plan = build_plan(requests, "s")
    assert [c.name for c in plan.cells] == ["none/lr=0.1/s0", "none/lr=0.2/s0", "mixup/lr=0.1/s0"]
    assert study_name(requests[0].config, requests) == "digits_augment_lr"


def drift(plan):
    return [note for note in plan.notes if "is now" in note]


def listed(folder, name="s"):
    content = read_study(folder, name)
    assert content is not None
    return [entry["id"] for entry in content["cells"]]


def write(requests, folder, name="s"):
    """Plan these requests and write the study's list; returns the plan."""
    plan = build_plan(requests, name)
    write_study(folder, name, study_content(plan, requests[0].config))
    return plan


def test_a_study_keeps_the_cells_that_a_command_does_not_plan(requests_for, tmp_path):
    first = write(requests_for(["augment=none"], ["augment=mixup"]), tmp_path)
    assert first.notes == ()
    more = write(requests_for(["augment=erase"], ["augment=none"]), tmp_path)
    none, mixup = [cell.id for cell in first.cells]
    assert listed(tmp_path) == [none, mixup, more.cells[0].id], "new ones at the end"
    (note,) = more.notes
    assert note.startswith(f"this adds 1 cell to study s (1 other stays: mixup/s0 ({mixup}))"), note
    (note,) = write(requests_for(["augment=none"]), tmp_path).notes
    assert note.startswith("this is a part of study s (2 others stay: ")
    assert write(requests_for(["augment=erase"], ["augment=mixup"], ["augment=none"]), tmp_path).notes == ()
    assert listed(tmp_path) == [more.cells[0].id, mixup, none], "a command that plans all of them orders them"


def test_replace_takes_cells_out_of_the_list_and_off_no_disk(requests_for, tmp_path):
    requests = requests_for(["augment=none"], ["augment=mixup"])
    finish(tmp_path, requests[0].config)
    write(requests, tmp_path)
    plan = write(requests_for(["augment=mixup"], shared=["study.replace=true"]), tmp_path)
    assert listed(tmp_path) == [plan.cells[0].id] and plan.notes == ()
    assert Record(tmp_path / identity(requests[0].config.cell)).state() == "finished"


def test_a_cell_that_means_something_else_now_takes_its_place(requests_for, tmp_path):
    old = write(requests_for(["augment=mixup"], ["augment=none"]), tmp_path)
    (request,) = requests_for(["augment=mixup"], shared=["study.retry_failed=true"])
    recipe = dataclasses.replace(request.config.cell.recipe, weight_decay=0.1)
    config = dataclasses.replace(request.config, cell=dataclasses.replace(request.config.cell, recipe=recipe))
    new = write([dataclasses.replace(request, config=config)], tmp_path)
    assert listed(tmp_path) == [old.cells[1].id, new.cells[0].id]


def test_a_name_comes_from_the_data_and_from_what_differs(requests_for, tmp_path):
    folders = {name: tmp_path / name for name in ("cars", "flowers")}
    for folder in folders.values():
        for split in ("train", "val"):
            (folder / split / "a").mkdir(parents=True)

    def named(*lists, shared=()):
        requests = requests_for(*lists, shared=("dataset=folder", *shared))
        return study_name(requests[0].config, requests)

    augment = ["augment=none"], ["augment=mixup"]
    assert named(*augment, shared=[f"dataset.root={folders['cars']}"]) == "cars_augment"
    assert named(*augment, shared=[f"dataset.root={folders['flowers']}"]) == "flowers_augment"
    assert named(*augment, shared=[f"dataset.root={folders['cars']}", "dataset.name=mine"]) == "mine_augment"
    assert named(*[[f"dataset.root={folder}"] for folder in folders.values()]) == "cars-flowers_root"


def test_drift_is_named(requests_for, tmp_path):
    old = requests_for(["augment=mixup"])
    plan = build_plan(old, "s")
    finish(tmp_path, old[0].config)
    write_study(tmp_path, "s", study_content(plan, old[0].config))
    recipe = dataclasses.replace(old[0].config.cell.recipe, weight_decay=0.1)
    cell = dataclasses.replace(old[0].config.cell, recipe=recipe)
    drifted = [dataclasses.replace(old[0], config=dataclasses.replace(old[0].config, cell=cell))]
    (note,) = [n for n in build_plan(drifted, "s").notes if "is now" in n]
    assert "recipe.weight_decay: 0.05 → 0.1" in note


def test_another_value_that_was_typed_is_no_drift(requests_for, compose_config, tmp_path):
    short = requests_for(["recipe.epochs=2", "recipe.warmup_epochs=0"])
    finish(tmp_path, short[0].config)
    write_study(tmp_path, "s", study_content(build_plan(short, "s"), short[0].config))
    for words in ([], ["recipe.epochs=3"], ["recipe=deit"], ["recipe.optimizer=sgd"]):
        usual = requests_for(words)
        plan = build_plan(usual, "s", compose=lambda overrides: compose_config(*overrides).cell)
        assert plan.cells[0].name == build_plan(short, "s").cells[0].name and not drift(plan)


def test_a_default_that_changed_is_drift_whatever_is_typed_now(requests_for, tmp_path):
    """The study was planned with epochs=2 typed; since then weight decay has another default, and lr=0.1 is typed."""
    short = requests_for(["recipe.epochs=2", "recipe.warmup_epochs=0"])
    finish(tmp_path, short[0].config)
    write_study(tmp_path, "s", study_content(build_plan(short, "s"), short[0].config))

    def compose(overrides):
        assert "recipe.epochs=2" in overrides
        cell = short[0].config.cell
        return dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, weight_decay=0.1))

    (note,) = drift(build_plan(requests_for(["recipe.lr=0.1"]), "s", compose=compose))
    assert "recipe.weight_decay: 0.05 → 0.1" in note and "epochs" not in note and "lr" not in note


def test_words_that_mean_no_cell_any_more_are_no_drift(requests_for, tmp_path):
    short = requests_for(["recipe.epochs=2", "recipe.warmup_epochs=0"])
    finish(tmp_path, short[0].config)
    write_study(tmp_path, "s", study_content(build_plan(short, "s"), short[0].config))

    def compose(overrides):
        raise ConfigError("recipe.epochs", "no such key")

    assert not drift(build_plan(requests_for([]), "s", compose=compose))


def test_mixed_code_packages_and_devices_are_noted(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=2"])
    finish(tmp_path, requests[0].config, commit="0123456789", packages={"torch": "1.0"}, device_name="A")
    finish(tmp_path, requests[1].config, commit="0123456789", packages={"torch": "1.0"}, device_name="B")
    (note,) = build_plan(requests, "s").notes
    assert note.startswith("this study would mix 2 versions of the code (") and "commit 012345678" in note
    assert "torch 1.0 and " in note and "3 kinds of device (A, B, " in note and "study.rerun=all trains" in note
    (note,) = build_plan(requests, "s", trains_here=False).notes
    assert "2 kinds of device (A, B)" in note
    assert not build_plan(requests[:2], "s").notes, "nothing is about to be trained"
    again = [dataclasses.replace(r, config=with_study(r.config, rerun="all")) for r in requests]
    assert not build_plan(again, "s").notes


def test_what_is_finished_with_what_is_here_is_not_noted(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"])
    config = requests[0].config
    finish(tmp_path, config, **settings(device_kind(config.device), 1, 1, False) | {"commit": "README changed"})
    assert not build_plan(requests, "s").notes
    threads = requests_for(["seed=0", "threads=2"], ["seed=1", "threads=2"])
    assert "CPU threads (1, 2)" in " ".join(build_plan(threads, "s").notes)
