"""Ways to run the step: which is taken, what is recorded and kept, and that none changes what is computed."""

import copy
import dataclasses
import json

import pytest
import torch
from filelock import FileLock

from tests.unit.test_loop import TINY, drain, rows
from tests.unit.test_step import CPU, a_cell, set_up
from vitlab.config import ConfigError, choice
from vitlab.study.mixture import mixtures
from vitlab.train import step, tuning
from vitlab.train.distributed import World
from vitlab.train.events import Interrupted, Staged
from vitlab.train.loop import fit
from vitlab.train.step import Speed, require_tunable
from vitlab.train.tuning import Tuned, tune

CUDA = torch.device("cuda")


def try_ways(folder, cell, device=CPU, stop=lambda: False, parts=1):
    """The events and the outcome of a trial for `cell`."""
    model, masks, _, _ = set_up(cell, 16)
    size = 16 // parts
    return drain(tune(folder, model, masks, cell, micro_batch=size, parts=parts, num_classes=10, device=device,
                      world=World(), stop=stop))  # fmt: skip


@pytest.fixture
def a_gpu(monkeypatch):
    """A trial on CUDA whose figures are given: `rates` is filled by the test, and `asked` says what was tried."""
    rates, asked = {}, []

    def found(self, speed, augment=None):
        asked.append((speed, augment is not None))
        rate = rates[dataclasses.astuple(speed)] if augment is None else rates["augment", speed.augment, speed.stream]
        if isinstance(rate, Exception):
            raise rate
        return float(rate)

    monkeypatch.setattr(tuning.Rig, "images_per_second", found)
    monkeypatch.setattr(tuning.Rig, "clear", lambda self: None)
    monkeypatch.setattr(tuning, "why_not_compiled", lambda wanted, *_, **__: None if wanted else "recipe.compile=false")
    monkeypatch.setattr(tuning, "device_name", lambda device: "NVIDIA H100")
    kernels = "max-autotune-no-cudagraphs"
    rates |= {
        (None, "default", False, False, False): 9000, ("default", "default", False, False, False): 16998,
        ("default", "cudnn", False, False, False): 17400, (kernels, "cudnn", False, False, False): 18500,
        (kernels, "cudnn", True, False, False): 18550,
        ("max-autotune", "cudnn", False, False, False): RuntimeError("no graphs\nhere"),
        ("augment", False, False): 14608, ("augment", True, False): 17000, ("augment", True, True): 17400,
    }  # fmt: skip
    return rates, asked


def test_the_fastest_way_is_taken_and_every_figure_recorded(a_gpu, tmp_path):
    events, tuned = try_ways(tmp_path, a_cell(compile=True), CUDA)
    assert tuned.speed == Speed("max-autotune-no-cudagraphs", "cudnn", False, augment=True, stream=True)
    assert tuned.speed.rounding == "compile=max-autotune-no-cudagraphs attention=cudnn"
    assert tuned.tried["compile=max-autotune"] == "failed: RuntimeError: no graphs"
    assert tuned.tried["update=compiled"] == 18550, "measured, and not worth a change"
    line = str(tuned)
    assert line.startswith("tuned: compile=max-autotune-no-cudagraphs attention=cudnn, compiled augmentation, stream (")
    assert "compile=default 16,998; attention=cudnn 17,400; compile=max-autotune-no-cudagraphs 18,500" in line
    assert "compile=max-autotune failed: RuntimeError: no graphs" in line
    assert [e.text for e in events if isinstance(e, Staged)][:2] == ["tries as written", "tries compile=default"]


def test_a_trial_is_kept_and_the_rounding_does_not_depend_on_the_augmentation(a_gpu, tmp_path):
    rates, asked = a_gpu
    first = try_ways(tmp_path, a_cell(compile=True), CUDA)[1]
    assert first.seconds > 0 and len(asked) == 9
    again = try_ways(tmp_path, a_cell(compile=True), CUDA)[1]
    assert len(asked) == 9 and again == dataclasses.replace(first, seconds=0.0)
    assert "(an earlier trial, kept, " in str(again)
    other = dataclasses.replace(a_cell(compile=True), augment=choice("augment", "randaug"), seed=7)
    rates["augment", True, False] = 14000
    rates["augment", False, True] = 14500
    third = try_ways(tmp_path, other, CUDA)[1]
    assert all(augmented for _, augmented in asked[9:]) and len(asked) == 12
    assert third.speed == dataclasses.replace(first.speed, augment=False, stream=False)
    slower = dataclasses.replace(a_cell(compile=True), recipe=dataclasses.replace(other.recipe, precision="bf16"))
    try_ways(tmp_path, slower, CUDA)
    assert len(asked) == 21, "another precision is another trial"
    for file in tmp_path.glob("*.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["about"]["device"] == "NVIDIA H100"
        file.write_text('{"speed": {"other": 1}}', encoding="utf-8")
    try_ways(tmp_path, a_cell(compile=True), CUDA)
    assert len(asked) == 30, "what cannot be read is tried again"


def test_what_cannot_be_tried_is_said(a_gpu, tmp_path):
    cell = a_cell(compile=False, optimizer="lamb")
    rates, asked = a_gpu
    rates |= {(None, "cudnn", False, False, False): 8000}
    tuned = try_ways(tmp_path, cell, CUDA, parts=2)[1]
    assert tuned.speed == step.AS_WRITTEN and len(asked) == 3
    assert tuned.tried["augment=compiled"] == "not tried: recipe.compile=false"
    assert tuned.tried["augment=stream"] == "not tried: a step takes several micro-batches"
    assert tuned.tried["update=compiled"] == "not tried: recipe.compile=false"
    lamb = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, compile=True))
    assert try_ways(tmp_path, lamb, CUDA)[1].tried["update=compiled"] == "not tried: recipe.optimizer=lamb"
    on_cpu = try_ways(tmp_path / "cpu", a_cell())[1]
    assert on_cpu.tried["attention=cudnn"] == on_cpu.tried["augment=stream"] == "not tried: needs CUDA"


def test_where_compiling_fails_the_step_runs_as_written(monkeypatch, tmp_path):
    def failing(model, mode, world, device):
        if mode:
            raise RuntimeError("Failed to find C compiler")
        return model

    monkeypatch.setattr(tuning, "compile_and_replicate", failing)
    monkeypatch.setattr(tuning, "why_not_compiled", lambda *_, **__: None)
    tuned = try_ways(tmp_path, a_cell(compile=True))[1]
    assert tuned.speed == step.AS_WRITTEN and tuned.tried["as written"] > 0
    assert "compile=default failed: RuntimeError: Failed to find C compiler" in str(tuned)


def test_a_trial_takes_no_longer_than_its_limit(a_gpu, tmp_path, monkeypatch):
    monkeypatch.setitem(tuning.Rig.__init__.__kwdefaults__, "limit", 0.0)
    tuned = try_ways(tmp_path, a_cell(compile=True), CUDA)[1]
    assert tuned.tried["compile=default"] == "not tried: the trial had taken 0 s"


def test_waiting_for_the_trial_of_another_cell_is_no_part_of_a_trial(a_gpu, tmp_path, monkeypatch):
    cell = a_cell(compile=True)
    model, masks, _, _ = set_up(cell, 16)
    rig = tuning.Rig(model, masks, cell, micro_batch=16, parts=1, num_classes=10, device=CUDA, world=World())
    rig.began -= 1000  # made, and then it waited
    speed = drain(rig.choose_rounding())[1][0]
    assert speed.compile == "max-autotune-no-cudagraphs"
    rig.began -= 1000
    assert drain(rig.choose_augmentation(speed))[1][0].stream


@pytest.mark.slow
def test_a_trial_leaves_the_training_alone_and_can_be_stopped(no_inductor, tmp_path):
    cell = a_cell(compile=True, ema_decay=0.9)
    model, masks, _, _ = set_up(cell, 16)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    options = {"micro_batch": 8, "parts": 2, "num_classes": 10, "device": CPU, "world": World()}
    tuned = drain(tune(tmp_path, model, masks, cell, stop=lambda: False, **options))[1]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())
    assert tuned.tried["as written"] > 0 and tuned.tried["compile=default"] > 0
    with pytest.raises(Interrupted, match="before the first step"):
        list(tune(tmp_path / "other", model, masks, cell, stop=lambda: True, **options))
    (lock, *_) = sorted(tmp_path.glob("*.lock"))
    lock.with_suffix(".json").unlink()
    with FileLock(lock):  # another cell is at it
        waiting = tune(tmp_path, model, masks, cell, stop=lambda: True, **options)
        with pytest.raises(Interrupted, match="another cell"):
            list(waiting)


@pytest.mark.parametrize("way", ["quick", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_tuned_cell_has_the_figures_of_another_and_resumes(way, compose_config, tmp_path, monkeypatch, request):
    if way == "quick":
        request.getfixturevalue("no_inductor")
    rates = {None: 1.0, "default": 2.0}
    monkeypatch.setattr(tuning.Rig, "images_per_second", lambda self, speed, augment=None: rates[speed.compile])
    words = (*TINY, "recipe.compile=true", "device=cpu", "augment=jitter", "recipe.drop_path=0.2")
    plain, config = compose_config(*words), compose_config(*words, "tune=true")
    for name in ("plain", "tuned", "cut"):
        (tmp_path / name).mkdir()
    expected, _ = drain(fit(plain, plain.cell, tmp_path / "plain"))
    events, result = drain(fit(config, config.cell, tmp_path / "tuned"))
    assert result["derived"]["speed"] == "compile=default" and result["derived"]["not_compiled"] is None
    assert result["derived"]["tuned"].startswith("tuned: compile=default (a trial of ")
    for a, b in zip(rows(expected), rows(events), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
    asked = iter(range(10**6))
    first, nothing = drain(fit(config, config.cell, tmp_path / "cut", stop=lambda: next(asked) == 6))
    second, resumed = drain(fit(config, config.cell, tmp_path / "cut"))
    assert nothing is None and rows(first) + rows(second) == rows(events)
    assert "an earlier trial, kept" in resumed["derived"]["tuned"] and resumed["last"] == result["last"]


def test_devices_without_a_choice_are_refused(compose_config, tmp_path):
    require_tunable(CUDA, False)
    require_tunable(CPU, True)
    with pytest.raises(
        ConfigError, match=r"tune: on a CPU there is only torch\.compile.*recipe\.compile=true"
    ) as error:
        require_tunable(CPU, False)
    for words in error.value.ways:
        config = compose_config("device=cpu", "tune=true", *words.split())
        assert not config.tune or config.cell.recipe.compile
    with pytest.raises(ConfigError, match="tune: there is nothing to try on the device mps"):
        require_tunable(torch.device("mps"), True)
    config = compose_config("device=cpu", "tune=true")
    with pytest.raises(ConfigError, match="on a CPU there is only"):
        list(fit(config, config.cell, tmp_path))
    with pytest.raises(ConfigError, match=r"tune: .*max-autotune"):
        compose_config("tune=max-autotune")


def test_cells_whose_steps_round_in_another_way_are_a_mixture():
    base = {"compiled": True, "speed": "compile=default"}
    assert mixtures([base, base, {"compiled": True}]) == []
    assert mixtures([base, base | {"speed": "compile=default attention=cudnn"}]) == [
        "2 ways to run the step (compile=default; compile=default attention=cudnn)"
    ]
    assert mixtures([base, {"compiled": False, "speed": "as written"}]) == ["compiled and uncompiled models"]


def test_an_outcome_reads_well():
    tuned = Tuned(Speed("default"), {"as written": 1234.5, "a": "not tried: needs CUDA", "b": "not tried: needs CUDA"})
    assert str(tuned) == (
        "tuned: compile=default (an earlier trial, kept, images/s: as written 1,234; a, b not tried: needs CUDA)"
    )
