"""How many cells a device suits: what a trial measures, and the arithmetic from there."""

import dataclasses

import pytest
import torch

from vitlab.config import CellConfig, ConfigError, choice
from vitlab.models.build import build_model
from vitlab.study.estimate import plan_lines
from vitlab.study.plan import build_plan, planned_steps
from vitlab.study.trial import Trial, measure
from vitlab.train.step import seconds_of_steps

GPU = Trial(True, 0.0, 1 / 17_000, 1024, 1 / 260, 9 * 10**9, 80 * 10**9, 16, 1, 16, 5.0)
"""ViT-Ti/16 from JPEG on an H100, as docs/performance.md has it: the step takes four times what the loader gives."""
CPU = Trial(False, 0.0, 0.003, 16, 0.0015, 10**9, 20 * 10**9, 2, 1, 1, 5.0)


def test_a_gpu_that_the_loader_starves_takes_as_many_cells_as_feed_it():
    assert GPU.images_per_second(1, 1) == pytest.approx(16 * 260)
    assert GPU.images_per_second(4, 4) == pytest.approx(4 * 16 * 260) and GPU.images_per_second(8, 8) == 17_000
    assert GPU.images_per_second(4, 1) == pytest.approx(16 * 260), "each with its own loader: nothing is gained"
    two = dataclasses.replace(GPU, workers=2)
    assert two.images_per_second(4, 4) == pytest.approx(4 * 8 * 260), "the workers of all four read for all four"
    assert GPU.best(sharing=8, most=16) == 4 and GPU.best(sharing=1, most=16) == 1
    assert GPU.best(sharing=8, most=3) == 3
    assert dataclasses.replace(GPU, cell_bytes=35 * 10**9).best(8, 16) == 2, "memory for no more"


def test_a_gpu_that_waits_for_its_host_takes_several_small_cells():
    small = dataclasses.replace(GPU, reading_seconds=0.0, step_seconds=0.010, image_seconds=1e-5, batch=256)
    assert small.best(sharing=1, most=16) == 5  # 12.6 ms a step, of which the device computes 2.6
    assert small.images_per_second(8, 1) == pytest.approx(1e5)
    assert "none read" in small.why(5, 1)


def test_a_cpu_reads_once_for_all():
    assert CPU.images_per_second(1, 1) == pytest.approx(2 / 0.0045)
    assert CPU.images_per_second(3, 3) == pytest.approx(2 / 0.0035)
    assert CPU.images_per_second(3, 1) == pytest.approx(2 / 0.0045)
    assert CPU.best(sharing=8, most=8) > 1 and CPU.best(sharing=1, most=8) == 1
    assert dataclasses.replace(CPU, cores=64).images_per_second(3, 3) == pytest.approx(6 / 0.0035), "three readers"
    inline = dataclasses.replace(CPU, workers=0)
    assert inline.images_per_second(1, 1) == pytest.approx(1 / 0.0045) and inline.best(sharing=1, most=8) == 2
    assert inline.images_per_second(1, 8) == inline.images_per_second(1, 1), "one cell shares with nobody"
    assert CPU.why(3, 3).startswith("one cell trains 444 images/s, 3 together 571; an image takes 3 ms to train on")


def test_a_trial_measures_what_it_says(compose_config):
    found = measure(compose_config("device=cpu", "recipe.batch_size=32"))
    assert not found.on_gpu and found.batch == 32 and found.reading_seconds == 0.0
    assert found.image_seconds > 0 and found.cell_bytes > 10**8 and found.free_bytes > 10**8


def test_steps_of_each_size_are_timed():
    cell = CellConfig(*(choice(g, o) for g, o in (("model", "vit_micro"), ("dataset", "digits"), ("augment", "none"),
                                                  ("pretrain", "scratch"), ("recipe", "quick"))))  # fmt: skip
    found = seconds_of_steps(build_model(cell.model, 10), cell, (1, 8), torch.device("cpu"))
    assert len(found) == 2 and min(found) > 0


def test_the_dry_run_says_what_fits(requests_for, monkeypatch):
    found = dataclasses.replace(CPU, cell_bytes=8 * 10**9, process_bytes=10**9, host_bytes=20 * 10**9)
    monkeypatch.setattr("vitlab.study.trial.run_trial", lambda config: found)
    cells = [[f"seed={seed}"] for seed in range(5)]
    for number, most in ((2, 0), (5, 1)):
        words = (f"study.cells_per_device={number}", "device=cpu", "study.dry_run=true")
        lines = plan_lines(build_plan(requests_for(*cells, shared=words), "s"))
        assert [line for line in lines if "NOT ENOUGH" in line] == most * [
            "memory: NOT ENOUGH for 5 cells on a device; 2 fit: study.cells_per_device=2"
        ]


def test_the_dry_run_prices_the_cells_that_there_are(requests_for, monkeypatch):
    monkeypatch.setattr("vitlab.study.trial.run_trial", lambda config: CPU)
    cells = [[f"seed={seed}"] for seed in range(3)]
    for words, refused in ((("study.cells_per_device=1000",), 0), (("study.cells_at_once=3",), 1)):
        words = ("study.cells_per_device=2", "device=cpu", "study.dry_run=true", *words)
        lines = plan_lines(build_plan(requests_for(*cells, shared=words), "s"))
        together = next(line for line in lines if line.startswith("training alone"))
        assert f", {2 if refused else 3} on a device (" in together
        assert [line for line in lines if "NOT ENOUGH" in line] == refused * [
            "devices: NOT ENOUGH on this machine: 3 cells, 2 on a device, need 2 devices, and there is 1, the CPU; "
            "give study.cells_at_once=2 or study.cells_per_device=3"
        ]


def test_the_memory_of_images_to_evaluate_on_is_written_in_units_that_show_it(requests_for, monkeypatch):
    words = ("study.keep_evaluation=true", "dataset=folder", "dataset.num_classes=2", "dataset.name=p",
             "dataset.num_train=640", "dataset.num_eval=40", "model.image_size=16", "device=cpu")  # fmt: skip
    plan = build_plan(requests_for([], shared=words), "s")
    for free, said in ((2 * 10**9, ""), (10**4, ": NOT ENOUGH, they are decoded each time")):
        monkeypatch.setattr("vitlab.study.estimate.free_memory", lambda free=free: free)
        (line,) = [line for line in plan_lines(plan) if line.startswith("memory")]
        there = "2.0 GB" if free > 10**6 else "10.0 KB"
        assert line == f"memory: 30.7 KB of {there} that are free keep the images to evaluate on{said}"
    away = build_plan(requests_for([], shared=words), "s", trains_here=False)
    assert "memory: 30.7 KB of each job's keep the images to evaluate on" in plan_lines(away)


def test_auto_is_what_the_trial_finds(requests_for, monkeypatch):
    monkeypatch.setattr("vitlab.study.trial.run_trial", lambda config: CPU)
    words = ("study.cells_per_device=auto", "device=cpu", "dataset=folder", "dataset.num_classes=2", "dataset.name=p",
             "dataset.num_train=640", "dataset.num_eval=40", "recipe.batch_size=32", "model.image_size=224",
             "model.patch_size=16")  # fmt: skip
    plan = build_plan(requests_for(*[[f"augment={a}"] for a in ("none", "mixup", "erase")], shared=words), "s")
    assert plan.capacity.cells == plan.capacity.per_device == CPU.best(3, 3)
    assert plan.capacity.reason == f"study.cells_per_device=auto: {CPU.best(3, 3)} on one device, the CPU"
    images = sum(planned_steps(cell) * 32 for cell in plan.todo)
    alone = images / CPU.images_per_second(1, 1)
    lines = [line for line in plan_lines(plan) if "one loader" in line or "alone" in line]
    assert lines[0].startswith(
        "one loader for cells that train at once and see the same crops (1,024 images, 154.1 MB): "
    )
    assert lines[0].endswith("): none/s0, mixup/s0, erase/s0")
    assert lines[1].startswith(f"training alone: about {alone / 3600:.3g} device-hours, one cell at a time; shared: ")
    with pytest.raises(ConfigError, match=r"study\.cells_per_device"):
        requests_for(["study.cells_per_device=0"])
