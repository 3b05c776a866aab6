"""The plan as people read it: the price and where it comes from, the disk, what the seeds can detect."""

import dataclasses
import re

import pytest
from planned import begin, finish, with_study

from vitlab.study.cost import Price, price, throughputs, wall_seconds
from vitlab.study.estimate import plan_lines
from vitlab.study.identity import identity
from vitlab.study.plan import build_plan
from vitlab.study.provenance import device_kind
from vitlab.study.record import Record


def text_of(plan):
    return "\n".join(plan_lines(plan))


def test_the_price_comes_from_what_was_measured(requests_for, tmp_path):
    one = ("study.cells_at_once=1",)
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=1", "recipe.epochs=36"], shared=one)
    assert "3 without a price" in text_of(build_plan(requests, "s"))
    finish(tmp_path, requests[0].config)
    text = text_of(build_plan(requests, "s"))
    assert "about 13 s" in text and "about 26 s" in text and "2 cells to train, 2,376 steps" in text
    assert "price: about 0.01 GPU-hours, 39 s with one cell at a time (measured by" in text
    assert "2 priced after another kind of device" in text and "study.name=measure" in text


def test_the_plan_says_how_many_cells_train_at_once(requests_for, tmp_path, monkeypatch):
    monkeypatch.setattr("vitlab.study.capacity.usable_cores", lambda: 8)
    cells = [["device=cpu", f"seed={seed}"] for seed in range(4)]
    requests = requests_for(*cells, shared=("threads=4",))
    finish(tmp_path, requests[0].config)
    text = text_of(build_plan(requests, "s"))
    assert "3 cells to train, 2,376 steps, 2 at once (study.cells_at_once=auto: 8 CPU cores, threads=4)" in text
    assert "26 s with 2 cells at once (measured by" in text
    given = text_of(build_plan(requests_for(*cells, shared=("study.cells_at_once=3",)), "s"))
    assert "2,376 steps, 3 at once (study.cells_at_once=3)" in given and "13 s with 3 cells at once" in given
    assert "at once" not in text_of(build_plan(requests_for(*cells[:2]), "s")), "one cell is left to train"


def test_cells_of_this_kind_of_device_and_this_data_set_count_first(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=2", "dataset=fashion_mnist"], ["seed=3"])
    here = device_kind("auto")
    finish(tmp_path, requests[0].config, device_name=here)
    finish(tmp_path, requests[1].config, device_name="Z", seconds=1e6)
    finish(tmp_path, requests[2].config, device_name=here, seconds=1e6)
    text = text_of(build_plan(requests, "s"))
    assert "about 13 s" in text and "another kind" not in text
    elsewhere = text_of(build_plan(requests, "s", trains_here=False))
    assert "another kind" not in elsewhere and "with all cells at once" in elsewhere


def test_evaluations_are_priced_by_themselves(requests_for, tmp_path):
    """18 epochs train 22.5 s at 1,126 images a second; the other 18 s are 18 evaluations; every third costs a third."""
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=1", "recipe.eval_every=3"])
    finish(tmp_path, requests[0].config, seconds=40.5, rate=18 * 44 * 32 / 22.5)
    lines = plan_lines(build_plan(requests, "s"))
    assert "about 40 s" in lines[1] and "about 28 s" in lines[2]


def test_cells_that_shared_a_device_cost_their_part_of_it(requests_for, tmp_path):
    """13 s with three others are 3.25 device-seconds."""
    requests = requests_for(*[[f"seed={seed}"] for seed in range(5)])
    finish(tmp_path, requests[0].config, sharing=4)
    plan = build_plan(requests, "s")
    assert plan_lines(plan)[1].endswith(" 0.00 GPU-hours  about 3 s")
    assert wall_of(plan, 2) == pytest.approx(6.5, abs=0.1)
    together = [dataclasses.replace(r, config=with_study(r.config, cells_per_device=4)) for r in requests]
    plan = build_plan(together, "s")
    assert plan_lines(plan)[1].endswith(" 0.00 GPU-hours  about 13 s")
    assert wall_of(plan, 4) == pytest.approx(13, abs=0.1)


def wall_of(plan, at_once):
    known = throughputs(plan)
    prices = {cell.id: price(plan, cell, known, None) for cell in plan.cells}
    return wall_seconds(plan.todo, prices, at_once)


def test_a_cell_cut_short_costs_what_is_left_of_it(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"])
    finish(tmp_path, requests[0].config)
    cut = begin(tmp_path, requests[1].config)
    (cut.folder / "last.pt").touch()
    for epoch in range(1, 10):
        cut.append_row({"epoch": epoch})
    line = plan_lines(build_plan(requests, "s"))[1]
    assert "to continue" in line and "396 steps" in line and "about 6 s" in line
    again = [dataclasses.replace(r, config=with_study(r.config, rerun="all")) for r in requests]
    line = plan_lines(build_plan(again, "s"))[1]
    assert "interrupted: again" in line and "792 steps" in line and "about 13 s" in line


def test_time_on_the_clock_knows_places_and_stages(requests_for, tmp_path):
    """Two places: the pre-training and one cell, then what waits for it and another."""
    fed = [["pretrain=fractaldb_small", f"seed={s}"] for s in range(2)]
    plan = build_plan(requests_for(*fed, ["seed=0"], ["seed=1"]), "s")
    seconds = {c.id: 10.0 if c.stage == 0 else 4.0 for c in plan.cells}
    prices = {key: Price(1, value, value, None, None) for key, value in seconds.items()}
    assert wall_seconds(plan.todo, prices, 1) == 26
    assert wall_seconds(plan.todo, prices, 2) == 14
    assert wall_seconds(plan.todo, prices, 9) == 14


def test_disk_is_told_before_anything_was_trained(requests_for):
    """ViT-Ti/16: 5,717,416 parameters, AdamW's two moments, last and best."""
    plan = build_plan(requests_for(["experiment=table3_3"]), "s")
    assert f"disk: about {5_717_416 * 4 * 3 * 2 / 1e6:,.1f} MB of " in text_of(plan)
    averaged = build_plan(requests_for(["experiment=table3_3", "recipe.ema_decay=0.9", "recipe.keep_every=150"]), "s")
    assert f"disk: about {5_717_416 * 4 * 4 * 5 / 1e6:,.1f} MB of " in text_of(averaged)


def test_every_cell_says_where_it_stands(requests_for, tmp_path):
    start = "pretrain.dataset.fractal.instances"
    fed = [["pretrain=fractaldb_small", f"{start}={n}", f"seed={s}"] for n in (10, 20) for s in range(2)]
    requests = requests_for(["seed=0"], ["seed=1"], *fed)
    finish(tmp_path, requests[0].config)
    failed = Record(tmp_path / identity(requests[2].config.cell.pretraining))
    failed.write("failure.json", {"type": "E", "message": "m"})
    running = Record(tmp_path / identity(requests[1].config.cell))
    with running.locked():
        plan = build_plan(requests, "s")
        standing = {line.split()[1]: re.split(r"  +", line)[3] for line in plan_lines(plan)[: len(plan.cells)]}
    assert standing == {
        "scratch/s0": "finished", "scratch/s1": "running elsewhere",
        "pretrain/fractaldb60/instances=10/s0": "failed", "fractaldb_small/instances=10/s0": "blocked",
        "fractaldb_small/instances=10/s1": "blocked", "pretrain/fractaldb60/instances=20/s0": "to train",
        "fractaldb_small/instances=20/s0": "to train", "fractaldb_small/instances=20/s1": "to train",
    }  # fmt: skip
    lines = plan_lines(plan)
    assert f"after {plan.cells[5].id}" in lines[6] and "3 cells to train" in "\n".join(lines)


def test_the_plan_says_which_cells_wait_for_a_failed_pretraining(requests_for):
    (request,) = requests_for(["pretrain=fractaldb"])
    plan = build_plan([request], "s")
    plan.record(plan.todo[0]).write("failure.json", {"type": "ValueError", "message": "no luck", "traceback": "…"})
    words = f"after {plan.todo[0].id}, which failed: study.retry_failed=true"
    assert words in " ".join(plan_lines(build_plan([request], "s")))
    again = dataclasses.replace(request, config=with_study(request.config, retry_failed=True))
    assert words not in " ".join(plan_lines(build_plan([again], "s")))


def test_nothing_to_train_is_said_with_what_there_is(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"])
    finish(tmp_path, requests[0].config)
    Record(tmp_path / identity(requests[1].config.cell)).write("failure.json", {"type": "E", "message": "m"})
    assert "nothing to train: 1 finished, 1 failed; study.retry_failed=true repeats" in text_of(
        build_plan(requests, "s")
    )


def test_names_give_way_in_a_narrow_terminal(requests_for):
    requests = requests_for(*[["recipe.weight_decay=0.123456789", f"recipe.lr=0.{n}", "seed=3"] for n in (1, 2)])
    one, two, *_ = plan_lines(build_plan(requests, "s"), 60)
    assert max(len(one), len(two)) <= 60 and one[15:27] != two[15:27] and "to train" in one


def _seeds(count):
    return [[f"augment={a}", f"seed={s}"] for a in ("none", "mixup") for s in range(count)]


def test_detectable_difference_is_told(requests_for):
    one = plan_lines(build_plan(requests_for(["augment=none"], ["augment=mixup"]), "s"))
    assert "no difference between cells can be distinguished from noise" in one[-1]
    three = requests_for(*_seeds(3))
    told = plan_lines(build_plan(three, "s"))[-1]
    points = re.search(r"3 seeds and 1 comparison detect a difference of (\d\.\d\d) points", told)
    assert points and "2.36 points (assumed for 360 evaluation images); 5 seeds: 4.97" in told
    assert "5 seeds:" not in plan_lines(build_plan(requests_for(*_seeds(5)), "s"))[-1]


def test_each_data_set_has_the_difference_that_its_size_allows(requests_for):
    data = ("digits", "fashion_mnist")
    cells = [[f"augment={a}", f"seed={s}", f"dataset={d}"] for a in ("none", "mixup") for s in range(3) for d in data]
    small, large = plan_lines(build_plan(requests_for(*cells), "s"))[-2:]
    assert small.startswith("digits: 3 seeds and 2 comparisons") and "scatter by 2.36 points" in small
    assert large.startswith("fashion_mnist: 3 seeds") and "scatter by 0.45 points" in large


def test_the_measuring_command_is_one_short_cell(requests_for):
    """It names the seed and starts from scratch, so that an experiment's own sweep and pre-training stay out."""
    text = " ".join(plan_lines(build_plan(requests_for(["pretrain=fractaldb", "seed=1", "recipe.lr=0.1"]), "s")))
    told = "python run.py seed=1 recipe.lr=0.1 pretrain=scratch recipe.epochs=1 recipe.warmup_epochs=0"
    assert f"{told} study.name=measure" in text


def test_baselines_are_compared_within_their_column(requests_for):
    cells = _seeds(2)
    one = plan_lines(build_plan(requests_for(*cells), "s"))[-1]
    two = plan_lines(build_plan(requests_for(*cells, *[[*c, "model.depth=2"] for c in cells]), "s"))[-1]
    assert one.startswith("2 seeds and 1 comparison") and two.startswith("2 seeds and 2 comparisons"), "not 3"
