"""The training loop, in the order of execution: data, model, weights, optimizer, resume, epochs.

`fit` is a generator of events and does not know who records them. Random numbers come from counters, so a cell sees
the same images with the same augmentations on any number of workers and devices, and a resumed run continues exactly
where it stopped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitlab.config import CellConfig, Config, DatasetConfig, experiment
from vitlab.core.device import pick_device
from vitlab.data.augment import Augment
from vitlab.data.loader import EvalLoader, TrainLoader
from vitlab.data.shared import cells_on_device, device_share
from vitlab.data.sources.registry import Source, build_source
from vitlab.data.sources.staging import Copies, splits_of, staged
from vitlab.models.build import build_model, shorten_last_block
from vitlab.models.drop_path import install_drop_path
from vitlab.models.trainable import require_whole_batches, try_training
from vitlab.models.weights import load_start
from vitlab.train.checkpoint import TrainingProgress, fitting, load_checkpoint, save_checkpoint, save_predictions
from vitlab.train.distributed import (
    World,
    max_over_ranks,
    process_group,
    sum_over_ranks,
    synchronise_batch_norms,
    world_from_environment,
)
from vitlab.train.evaluate import EVAL_BATCH, evaluate
from vitlab.train.events import DivergedError, EpochEnded, Event, Interrupted, Progressed, Staged, Started
from vitlab.train.optim import MovingAverage, Update, build_optimizer, learning_rate
from vitlab.train.step import (
    Inputs,
    Speed,
    ahead,
    choose_device_batch,
    compile_and_replicate,
    limit_to_share,
    require_tunable,
    train_step,
    why_not_compiled,
)
from vitlab.train.tuning import compiled_augment, tune

LOG_STEPS = 50
"""A non-finite loss is noticed, and several processes agree to stop, within this many steps."""


def fit(
    config: Config,
    cell: CellConfig,
    folder: Path,
    *,
    start: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, dict[str, Any]]:
    """Train `cell` in `folder`, continuing from `folder/last.pt` if it exists; `config` says on which devices.

    `start` is the checkpoint that the weights come from (pre-training), or None. Yields `Staged` while the data set is
    copied and ways to run the step are tried, `Started` once, `Progressed` about twice a second and `EpochEnded` after
    each epoch. Returns the content of `result.json`.

    Raises `Interrupted` after saving, at the next step boundary once `stop()` is true; DivergedError for a
    non-finite loss, naming the step and the learning rate; UserError where the data are not those of the record.
    """
    world = world_from_environment()
    device = pick_device(config.device)
    torch.set_num_threads(config.threads)
    with process_group(world, device):
        recipe = cell.recipe
        rank_batch = recipe.batch_size // world.size

        copies = yield from _stage(cell.dataset, stop, device)
        train_source, eval_source = build_sources(cell, copies)
        num_classes = len(train_source.classes)

        torch.manual_seed(cell.seed)
        model = build_model(cell.model, num_classes, drop_path=recipe.drop_path)
        trained = cell.pretraining and experiment(cell.pretraining)
        loaded = None if start is None else load_start(model, cell.pretrain, start, trained)[1]
        shorten_last_block(model)
        trial = try_training(model, cell.model, num_classes)
        masks = install_drop_path(model, recipe.drop_path, trial.calls)
        for name in trial.unused:
            model.get_parameter(name).requires_grad_(False)
        model.to(device)
        average = MovingAverage(model, recipe.ema_decay, recipe.ema_warmup) if recipe.ema_decay else None
        optimizer = build_optimizer(model, recipe)

        if recipe.train_mode == "train":
            require_whole_batches(model, rank_batch, config.device_batch, cell.model.grad_checkpointing)
        limit_to_share(device, device_share())
        micro_batch = config.device_batch or choose_device_batch(model, cell, rank_batch, device, device_share())
        train = TrainLoader(
            train_source, cell.dataset, cell.augment, recipe, image_size=cell.model.image_size, seed=cell.seed,
            rank=world.rank, world=world.size, workers=config.workers, micro_batch=micro_batch, device=device,
        )  # fmt: skip
        eval_loader = None if eval_source is None else EvalLoader(
            eval_source, cell.dataset, image_size=cell.model.image_size, rank=world.rank, world=world.size,
            workers=config.workers, batch=EVAL_BATCH, device=device,
        )  # fmt: skip
        augment = Augment(cell.augment, cell.dataset)
        not_compiled = why_not_compiled(recipe.compile, device)
        speed, tuned = Speed(None if not_compiled else "default"), None
        if config.tune:
            require_tunable(device, recipe.compile)
            tuned = yield from tune(
                folder.parent / "tuned", model, masks, cell, micro_batch=micro_batch, parts=rank_batch // micro_batch,
                num_classes=num_classes, device=device, world=world, stop=stop,
            )  # fmt: skip
            yield Staged(str(tuned), "screen")
            speed = tuned.speed
            not_compiled = None if speed.compile else not_compiled or "faster here as it is written (tune=true)"
        if world.size > 1:
            synchronise_batch_norms(model)
        network = compile_and_replicate(model, speed.compile, world, device)
        update = Update(optimizer, average, compiled=speed.update)
        engine = compiled_augment(augment, cell, micro_batch, device)[0] if speed.augment else augment
        stream = torch.cuda.Stream(device) if speed.stream else None
        total_steps = recipe.epochs * train.steps_per_epoch

        progress = TrainingProgress("-".join(source.fingerprint() for source in (train_source, eval_source) if source))
        state = load_checkpoint(folder / "last.pt")
        if state is not None:
            progress.load(state, experiment(cell), folder / "last.pt", world.size)
            with fitting(folder / "last.pt"):
                model.load_state_dict(state["model"])
                if average:
                    average.model.load_state_dict(state["model_ema"])
                optimizer.load_state_dict(state["optimizer"])
        loss_sum = torch.full(
            (), progress.loss_sum, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
        )
        first_bad = torch.full((), -1, dtype=torch.int64, device=device)

        def save(name: str) -> None:
            if world.is_main:
                save_checkpoint(
                    progress.state() | {
                        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": experiment(cell),
                        "classes": list(train_source.classes),
                    } | ({"model_ema": average.model.state_dict()} if average else {}),
                    folder / name,
                )  # fmt: skip

        def add_time(began: float, sharing: int) -> None:
            progress.add_time(time.perf_counter() - began, world.size, (sharing + cells_on_device()) / 2)

        derived = {
            "peak_lr": recipe.peak_lr, "steps_per_epoch": train.steps_per_epoch, "total_steps": total_steps,
            "device_batch": micro_batch, "accumulation": rank_batch // micro_batch, "device": str(device.type),
            "not_compiled": not_compiled, "speed": speed.rounding, "tuned": str(tuned) if tuned else None,
            "num_parameters": sum(p.numel() for p in model.parameters()), "num_train": len(train_source),
            "num_eval": len(eval_source) if eval_source else 0, "num_classes": num_classes,
            "pretrained": loaded.summary() if loaded else None,
        }  # fmt: skip
        yield Started(progress.epoch, progress.step, total_steps, progress.fingerprint, derived)

        while progress.epoch < recipe.epochs:
            began, shown, images = time.perf_counter(), time.perf_counter(), 0
            sharing = cells_on_device()
            network.train(recipe.train_mode == "train")
            done = progress.step - progress.epoch * train.steps_per_epoch
            steps: Iterator[list[Any]] = train.epoch(progress.epoch, start_step=done)
            if stream:
                inputs_of = partial(
                    Inputs.of, augment=engine, cell=cell, epoch=progress.epoch, num_classes=num_classes
                )  # fmt: skip
                steps = ahead(steps, inputs_of, stream)
            for step in steps:
                update.at(learning_rate(recipe, progress.step, train.steps_per_epoch), progress.step)
                loss = train_step(network, update, step, engine, masks, cell, progress.epoch, rank_batch, speed)
                first_bad = torch.where((first_bad < 0) & ~loss.isfinite(), progress.step, first_bad)
                loss_sum += loss
                progress.step += 1
                images += recipe.batch_size
                # checked every LOG_STEPS steps only, so that no step waits for the device
                at_check = progress.step % LOG_STEPS == 0 or progress.step % train.steps_per_epoch == 0
                if at_check:
                    _require_finite(first_bad, recipe, train.steps_per_epoch)
                if _should_stop(stop, world, device, at_check):
                    _require_finite(first_bad, recipe, train.steps_per_epoch)
                    add_time(began, sharing)
                    progress.loss_sum = float(sum_over_ranks(loss_sum)) / world.size
                    save("last.pt")
                    raise Interrupted(f"saved after step {progress.step} of {total_steps}")
                if time.perf_counter() - shown > 0.5:
                    shown = time.perf_counter()
                    rate = images / (shown - began)
                    yield Progressed(progress.step, rate)

            mean_loss = float(sum_over_ranks(loss_sum.clone())) / world.size / train.steps_per_epoch
            trained = time.perf_counter() - began
            progress.epoch += 1
            row: dict[str, Any] = {
                "epoch": progress.epoch, "step": progress.step, "train/loss": mean_loss,
                "train/lr": learning_rate(recipe, progress.step - 1, train.steps_per_epoch),
            }  # fmt: skip
            last = progress.epoch == recipe.epochs
            improved: list[str] = []
            if eval_loader and (last or progress.epoch % recipe.eval_every == 0):
                for name, weights in (("eval", model), ("eval_ema", average.model if average else None)):
                    if weights is None:
                        continue
                    evaluation = evaluate(weights, eval_loader, augment.normalise, device, recipe.precision)
                    if evaluation is not None:
                        row |= {f"{name}/{key}": value for key, value in evaluation.row().items()}
                        improved += progress.record_evaluation(name, evaluation)
                        if last:
                            save_predictions(folder, name, evaluation, train_source.classes)
            if cell.dataset.bad_images == "skip":
                row["bad_images"] = progress.note_bad(train.reader.bad, eval_loader.reader.bad if eval_loader else {})
            add_time(began, sharing)
            row |= {"images_per_second": images / trained, **progress.times(world.size)}
            progress.images_per_second = row["images_per_second"]
            progress.loss_sum = 0.0
            loss_sum.zero_()
            yield EpochEnded(row)
            for name in improved:
                save("best.pt" if name == "eval" else "best_ema.pt")
            if recipe.keep_every and progress.epoch % recipe.keep_every == 0:
                save(f"epoch_{progress.epoch:03}.pt")
            save("last.pt")
        return progress.result(derived)


def _stage(dataset: DatasetConfig, stop: Callable[[], bool], device: torch.device) -> Generator[Staged, None, Copies]:
    """Copy the data set to `dataset.stage`: one process of each node does, all go on together. Raises Interrupted."""
    if dataset.stage is None:
        return {}
    reports = staged(dataset, splits_of(dataset), copying=int(os.environ.get("LOCAL_RANK", "0")) == 0)
    copies: Copies | None = None
    with contextlib.closing(reports):
        while True:
            try:
                report = next(reports)
                yield Staged(report.text, report.to)
            except StopIteration as end:
                copies = end.value if copies is None else copies
            # asked again and again, so that no process waits longer for another than a group of processes may
            unready, stopping = (int(n) for n in max_over_ranks([copies is None, stop()], device))
            if stopping:
                raise Interrupted(f"before the first step; what was copied to {dataset.stage} is kept")
            if not unready:
                assert copies is not None
                return copies


def build_sources(cell: CellConfig, copies: Copies | None = None) -> tuple[Source, Source | None]:
    """The images to train on, and those to evaluate on (None for a data set without any)."""
    train = build_source(cell.dataset, "train", copies)
    no_eval = cell.dataset.num_eval == 0 and cell.dataset.val_fraction == 0
    return train, None if no_eval else build_source(cell.dataset, "eval", copies)


def _should_stop(stop: Callable[[], bool], world: World, device: torch.device, at_check: bool) -> bool:
    """Whether to stop now. Several processes decide together, only at the checks: each decision costs a round trip."""
    if world.size == 1:
        return stop()
    if not at_check:
        return False
    return bool(max_over_ranks([stop()], device)[0])


def _require_finite(first_bad: Tensor, recipe: Any, steps_per_epoch: int) -> None:
    step = int(first_bad)
    if step >= 0:
        rate = learning_rate(recipe, step, steps_per_epoch)
        raise DivergedError(
            f"the loss is not finite since step {step} (epoch {step // steps_per_epoch + 1}), where the learning rate "
            f"was {rate:.3g}; lower recipe.lr, set recipe.clip_grad=1.0 or recipe.precision=fp32"
        )
