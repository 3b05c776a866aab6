"""Plans: aliases, states, stages, selection, drift, price."""

import dataclasses
import json
import re

import pytest

from vitlab.config import ConfigError, experiment
from vitlab.study.cost import describe
from vitlab.study.execute import execute
from vitlab.study.identity import identity
from vitlab.study.plan import Request, build_plan, study_content, study_name
from vitlab.study.record import Record, write_study
from vitlab.study.view import Progress, View, duration


@pytest.fixture()
def requests_for(compose_config, tmp_path):
    def made(*lists, shared=()):
        return [Request((*o, *shared), compose_config(*o, *shared, f"output_dir={tmp_path}")) for o in lists]

    return made


def finish(folder, config, part="cell", top1=90.0, **origin):
    """A finished record, as a run leaves it."""
    cell = config.cell if part == "cell" else config.cell.pretraining
    record = Record(folder / identity(cell))
    record.write("config.yaml", {"schema_version": 1, "id": record.id, "name": "x", "experiment": experiment(cell),
                                 "labels": {}, "runtime": {"devices": 1}})  # fmt: skip
    record.write("provenance.json", {"commit": "abc", "dirty": False, "packages": {}, "device_name": "X"} | origin)
    figures = {"epoch": 18, "top1": top1, "top5": 99.0, "loss": 0.3}
    record.write("result.json", {
        "schema_version": 1, "id": record.id, "last": figures, "best": figures, "ema": None, "num_train": 1437,
        "num_eval": 360, "num_parameters": 155018, "images_per_second": 2000.0, "wall_seconds": 13.0,
        "device_seconds": 13.0,
    })  # fmt: skip
    return record


def test_aliases_are_one_cell(requests_for):
    plan = build_plan(requests_for(["augment=deit"], ["augment=deit_no_jitter"], ["augment=mixup"]), "s")
    assert [c.name for c in plan.cells] == ["deit/s0", "mixup/s0"]
    assert plan.cells[0].aliases == ("deit_no_jitter/s0",)


def test_only_what_is_missing_is_selected(requests_for, tmp_path):
    requests = requests_for(["augment=none"], ["augment=mixup"], ["augment=cutmix"])
    finish(tmp_path, requests[0].config)
    failed = Record(tmp_path / identity(requests[1].config.cell))
    failed.write("config.yaml", {})
    failed.write("failure.json", {"type": "E", "message": "m"})
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


def with_study(config, **changes):
    return dataclasses.replace(config, study=dataclasses.replace(config.study, **changes))


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


def test_the_plan_says_which_cells_wait_for_a_failed_pretraining(requests_for):
    (request,) = requests_for(["pretrain=fractaldb"])
    plan = build_plan([request], "s")
    plan.record(plan.todo[0]).write("failure.json", {"type": "ValueError", "message": "no luck"})
    words = f"after {plan.todo[0].id}, which failed: study.retry_failed=true"
    assert words in " ".join(describe(build_plan([request], "s")))
    again = dataclasses.replace(request, config=with_study(request.config, retry_failed=True))
    assert words not in " ".join(describe(build_plan([again], "s")))


def test_names_tell_what_varies(requests_for):
    requests = requests_for(
        ["augment=none", "recipe.lr=0.1"], ["augment=none", "recipe.lr=0.2"], ["augment=mixup", "recipe.lr=0.1"]
    )
    plan = build_plan(requests, "s")
    assert [c.name for c in plan.cells] == ["none/lr=0.1/s0", "none/lr=0.2/s0", "mixup/lr=0.1/s0"]
    assert study_name(requests[0].config, requests) == "digits_augment_lr"


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


def test_mixed_code_packages_and_devices_are_noted(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=2"])
    finish(tmp_path, requests[0].config, commit="0123456789", packages={"torch": "1.0"}, device_name="A")
    finish(tmp_path, requests[1].config, commit="0123456789", packages={"torch": "1.0"}, device_name="B")
    notes = " ".join(build_plan(requests, "s").notes)
    assert "other code (012345678)" in notes and "torch 1.0 →" in notes and "A, B" in notes


def test_the_price_comes_from_what_was_measured(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=1", "recipe.epochs=36"])
    assert "3 without a price" in " ".join(describe(build_plan(requests, "s")))
    finish(tmp_path, requests[0].config)
    text = "\n".join(describe(build_plan(requests, "s")))
    assert "about 13 s" in text and "about 26 s" in text and "2 cells to train" in text and " MB of disk" in text


def test_detectable_difference_is_told(requests_for):
    one = describe(build_plan(requests_for(["augment=none"], ["augment=mixup"]), "s"))
    assert "no difference between cells can be told from noise" in one[-1]
    three = requests_for(*[[f"augment={a}", f"seed={s}"] for a in ("none", "mixup") for s in range(3)])
    assert re.search(
        r"3 seeds of 2 conditions detect a difference of 0\.\d\d points", describe(build_plan(three, "s"))[-1]
    )


def test_a_dry_run_trains_nothing(requests_for, capsys, tmp_path):
    requests = [
        dataclasses.replace(r, config=with_study(r.config, dry_run=True)) for r in requests_for(["seed=0"], ["seed=1"])
    ]

    def never(*_):
        raise AssertionError("a dry run trains nothing")

    assert execute(build_plan(requests, "s"), requests[0].config, never) == 0
    assert "dry run: nothing was trained" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_summary_shows_the_error_and_fails(requests_for, capsys, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"])

    def run(plan, view):
        finish(tmp_path, plan.cells[0].config)
        record = plan.record(plan.cells[1])
        record.write("failure.json", {"type": "ValueError", "message": "no such luck", "traceback": "…"})
        (record.folder / "log.txt").write_text("first\nlast words\n")
        return {plan.cells[0].id: "finished", plan.cells[1].id: "failed"}

    assert execute(build_plan(requests, "s"), requests[0].config, run) == 1
    out = capsys.readouterr().out
    assert "ValueError: no such luck" in out and "| last words" in out and "log.txt" in out and "retry_failed" in out
    assert json.loads((tmp_path / "studies/s.json").read_text())["cells"][1]["name"] == "none/s1"


def test_plain_lines_where_there_is_no_terminal(requests_for, capsys):
    plan = build_plan(requests_for(["seed=0"]), "s")
    with View(plan) as view:
        start = {"epoch": 0, "step": 0, "derived": {"total_steps": 100}}
        view.event(plan.cells[0].id, {"start": start})
        view.event(
            plan.cells[0].id, {"epoch": 1, "step": 10, "train/loss": 0.5, "eval/top1": 42.0, "images_per_second": 99.4}
        )
        view.status(plan.cells[0].id, "finished")
    out = capsys.readouterr().out
    assert "epoch 1/18  loss 0.500  top-1 42.00  99 img/s" in out and "finished" in out
    assert Progress(plan.cells[0]).seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min"), (1_047_600, "12 d 3 h")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_live_view_keeps_its_figures_beside_a_long_error(requests_for):
    """However long a message is, a terminal of 100 columns shows marks, bars and figures of the other cells."""
    import io

    from rich.console import Console

    view = View(build_plan(requests_for(*[[f"seed={s}"] for s in range(4)]), "s"), stream=io.StringIO())
    one, two, three, four = view.cells
    for cell in (one, two):
        view.event(cell, {"start": {"epoch": 0, "step": 0, "derived": {"total_steps": 100}}})
        view.event(cell, {"epoch": 3, "step": 50, "train/loss": 0.512, "eval/top1": 42.17, "images_per_second": 987.6})
    view.status(two, "finished")
    view.status(three, "failed", "FloatingPointError: " + "the loss is not finite " * 20)
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(view.table())
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("s: 1 finished, 1 running, 1 waiting, 1 failed of 4")
    assert " left" in lines[0]
    for cell in (one, four):
        view.status(cell, "blocked")
    assert " left" in view.headline(), "half of what can still end is done"
    view.event(two, {"progress": {"step": 100, "images_per_second": 1.0}})
    assert " left" not in view.headline()
    assert re.match(r"▸ +none/s0 .*━.* 3 +0\.512 +42\.17 +988 ", lines[2]) and lines[3].startswith("✓")
    assert "✗" in lines[4] and "not finite" not in lines[4]
    assert lines[6].startswith("✗ none/s2: FloatingPointError: the loss") and lines[6].rstrip().endswith("…")


def test_the_measuring_command_is_one_short_cell(requests_for):
    """It names the seed and starts from scratch, so that an experiment's own sweep and pre-training stay out."""
    text = " ".join(describe(build_plan(requests_for(["pretrain=fractaldb", "seed=1", "recipe.lr=0.1"]), "s")))
    told = "python run.py seed=1 recipe.lr=0.1 pretrain=scratch recipe.epochs=1 recipe.warmup_epochs=0"
    assert f"{told} study.name=measure" in text


def test_baselines_are_compared_within_their_column(requests_for):
    cells = [[f"augment={a}", f"seed={s}"] for a in ("none", "mixup") for s in range(2)]
    one = describe(build_plan(requests_for(*cells), "s"))[-1]
    two = describe(build_plan(requests_for(*cells, *[[*c, "model.depth=2"] for c in cells]), "s"))[-1]
    assert one == two and one.startswith("2 seeds of 2 conditions")
