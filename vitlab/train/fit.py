"""The loop. Read from top to bottom it is the order of execution: data, model, weights, optimizer, resume, epochs.

`fit` is a generator of metrics and knows nothing of who records them. Random numbers come from counters, so that a
cell sees the same images with the same augmentations on any number of workers and devices, and a resumed run
continues exactly where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitlab.config import CellConfig, Config, experiment
from vitlab.data.augment import Augment, mix
from vitlab.data.files import save_arrays
from vitlab.data.loader import Batch, EvalLoader, TrainLoader
from vitlab.data.sources import Source, build_source
from vitlab.draws import Draws
from vitlab.models.build import build_model
from vitlab.models.checkpoint import load_weights, read_checkpoint
from vitlab.models.drop_path import install_drop_path
from vitlab.models.last_block import shorten_last_block
from vitlab.train import Interrupted
from vitlab.train.checkpoint import load_checkpoint, save_checkpoint
from vitlab.train.device_batch import choose_device_batch
from vitlab.train.distributed import World, joined, pick_device, sum_over_ranks, world_from_environment
from vitlab.train.evaluate import EVAL_BATCH, Evaluation, autocast, evaluate
from vitlab.train.optim import MovingAverage, build_optimizer, learning_rate

Event = dict[str, Any]
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
    """Train `cell` in `folder`, continuing from `folder/last.pt` where there is one; `config` says on what.

    `start` is the checkpoint that the weights come from (pre-training), or None. Yields, in this order,
    `{"start": {...}}` once (epochs already done, derived values, fingerprint of the data), `{"progress": {...}}` now
    and then, and one plain row of metrics per finished epoch. Returns the figures of `result.json`.

    Raises `Interrupted` after saving, at the next step boundary once `stop()` is true; FloatingPointError for a
    non-finite loss, naming the step and the learning rate; ValueError where the data are not those of the record.
    """
    world = world_from_environment()
    device = pick_device(config.device, world.local_rank)
    torch.set_num_threads(config.threads)
    with joined(world, device):
        return (yield from _fit(config, cell, folder, start, stop, world, device))


def _fit(
    config: Config,
    cell: CellConfig,
    folder: Path,
    start: Path | None,
    stop: Callable[[], bool],
    world: World,
    device: torch.device,
) -> Generator[Event, None, dict[str, Any]]:
    recipe = cell.recipe
    share = recipe.batch_size // world.size

    train_source, eval_source = build_sources(cell)
    num_classes = len(train_source.classes)

    torch.manual_seed(cell.seed)
    model = build_model(cell.model, num_classes)
    loaded = None
    if start is not None:
        weights = read_checkpoint(start, weights=cell.pretrain.weights)
        loaded = load_weights(model, weights, keep_head=cell.pretrain.keep_head)
    shorten_last_block(model)
    masks = install_drop_path(model, recipe.drop_path)
    model.to(device)
    average = MovingAverage(model, recipe.ema_decay, recipe.ema_warmup) if recipe.ema_decay else None
    optimizer = build_optimizer(model, recipe)

    micro_batch = config.device_batch or choose_device_batch(model, cell, share, device)
    train = TrainLoader(
        train_source, cell.dataset, cell.augment, recipe, image_size=cell.model.image_size, seed=cell.seed,
        rank=world.rank, world=world.size, workers=config.workers, micro_batch=micro_batch, device=device,
    )  # fmt: skip
    held_out = None if eval_source is None else EvalLoader(
        eval_source, cell.dataset, image_size=cell.model.image_size, rank=world.rank, world=world.size,
        workers=config.workers, batch=EVAL_BATCH, device=device,
    )  # fmt: skip
    augment = Augment(cell.augment, cell.dataset)
    network = wrap(model, recipe.compile, world, device)
    total_steps = recipe.epochs * train.steps_per_epoch

    progress = _Progress("-".join(source.fingerprint() for source in (train_source, eval_source) if source))
    state = load_checkpoint(folder / "last.pt")
    if state is not None:
        progress.load(state, experiment(cell))
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

    derived = {
        "peak_lr": recipe.peak_lr, "steps_per_epoch": train.steps_per_epoch, "total_steps": total_steps,
        "device_batch": micro_batch, "accumulation": share // micro_batch, "device": str(device.type),
        "num_parameters": sum(p.numel() for p in model.parameters()), "num_train": len(train_source),
        "num_eval": len(eval_source) if eval_source else 0, "num_classes": num_classes,
        "pretrained": loaded.summary() if loaded else None,
    }  # fmt: skip
    yield {
        "start": {
            "epoch": progress.epoch,
            "step": progress.step,
            "fingerprint": progress.fingerprint,
            "derived": derived,
        }
    }

    while progress.epoch < recipe.epochs:
        began, shown, images = time.perf_counter(), time.perf_counter(), 0
        network.train(recipe.train_mode == "train")
        done = progress.step - progress.epoch * train.steps_per_epoch
        for micro_batches in train.epoch(progress.epoch, start_step=done):
            lr = learning_rate(recipe, progress.step, train.steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = train_step(network, optimizer, micro_batches, augment, masks, cell, progress.epoch, share)
            first_bad = torch.where((first_bad < 0) & ~loss.isfinite(), progress.step, first_bad)
            loss_sum += loss
            if average:
                average.update(progress.step)
            progress.step += 1
            images += recipe.batch_size
            at_check = progress.step % LOG_STEPS == 0 or progress.step % train.steps_per_epoch == 0
            if at_check:
                _require_finite(first_bad, recipe, train.steps_per_epoch)
            if _agree(stop, world, device, at_check):
                _require_finite(first_bad, recipe, train.steps_per_epoch)
                progress.seconds += time.perf_counter() - began
                progress.loss_sum = float(sum_over_ranks(loss_sum)) / world.size
                save("last.pt")
                raise Interrupted(f"saved after step {progress.step} of {total_steps}")
            if time.perf_counter() - shown > 0.5:
                shown = time.perf_counter()
                rate = images / (shown - began)
                yield {"progress": {"epoch": progress.epoch, "step": progress.step, "total_steps": total_steps,
                                    "images_per_second": rate, "lr": lr}}  # fmt: skip

        mean_loss = float(sum_over_ranks(loss_sum.clone())) / world.size / train.steps_per_epoch
        trained = time.perf_counter() - began
        progress.epoch += 1
        row: Event = {
            "epoch": progress.epoch, "step": progress.step, "train/loss": mean_loss,
            "train/lr": learning_rate(recipe, progress.step - 1, train.steps_per_epoch),
        }  # fmt: skip
        last = progress.epoch == recipe.epochs
        improved: list[str] = []
        if held_out and (last or progress.epoch % recipe.eval_every == 0):
            for name, net in (("eval", model), ("eval_ema", average.model if average else None)):
                if net is None:
                    continue
                evaluation = evaluate(net, held_out, augment.normalise, device, recipe.precision)
                if evaluation is not None:
                    row |= {f"{name}/{key}": value for key, value in evaluation.row().items()}
                    improved += progress.note(name, evaluation)
                    if last:
                        _save_predictions(folder, name, evaluation)
        progress.seconds += time.perf_counter() - began
        row |= {"images_per_second": images / trained, "seconds": progress.seconds}
        progress.images_per_second = row["images_per_second"]
        progress.loss_sum = 0.0
        loss_sum.zero_()
        yield row
        for name in improved:
            save("best.pt" if name == "eval" else "best_ema.pt")
        if recipe.keep_every and progress.epoch % recipe.keep_every == 0:
            save(f"epoch_{progress.epoch:03}.pt")
        save("last.pt")
    return progress.result(derived, world.size)


def build_sources(cell: CellConfig) -> tuple[Source, Source | None]:
    """The images to train on, and those to evaluate on (None for a data set without any)."""
    train = build_source(cell.dataset, "train")
    no_eval = cell.dataset.num_eval == 0 and cell.dataset.val_fraction == 0
    return train, None if no_eval else build_source(cell.dataset, "eval")


def wrap(model: nn.Module, compiled: bool, world: World, device: torch.device) -> nn.Module:
    """`model` as the step calls it: compiled where asked for and possible, and replicated over the processes."""
    network: nn.Module = torch.compile(model) if compiled and device.type == "cuda" else model  # pyright: ignore
    if world.size > 1:
        network = DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    return network


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    augment: Augment,
    masks: Any,
    cell: CellConfig,
    epoch: int,
    share: int,
) -> Tensor:
    """One optimizer step on this process's `share` of the global batch; returns the mean loss, on the device."""
    total = torch.zeros((), device=micro_batches[0].images.device)
    for number, batch in enumerate(micro_batches):
        draws = Draws(cell.seed, epoch, batch.index, batch.repetition)
        group = cell.augment.mix_group
        groups = Draws(cell.seed, epoch, batch.position[::group] // group)
        images = augment(batch.images, draws)  # (b, 3, S, S) float32
        images, targets = mix(
            cell.augment, images, batch.labels, num_classes=_num_classes(network), draws_of_groups=groups
        )
        masks.draw(draws, images.device)
        last = number == len(micro_batches) - 1
        replicated = isinstance(network, DistributedDataParallel)
        if replicated:
            network.require_backward_grad_sync = last  # one all-reduce a step, not one a micro-batch
        with autocast(images.device, cell.recipe.precision):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), targets) * (len(images) / share)
        loss.backward()
        total += loss.detach()
    if cell.recipe.clip_grad:
        nn.utils.clip_grad_norm_(network.parameters(), cell.recipe.clip_grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _num_classes(network: nn.Module) -> int:
    inner = getattr(network, "module", network)
    return int(getattr(inner, "_orig_mod", inner).num_classes)  # pyright: ignore[reportArgumentType]


def _agree(stop: Callable[[], bool], world: World, device: torch.device, at_check: bool) -> bool:
    """Whether to stop now. Several processes ask one another, and only at the checks: asking costs a round trip."""
    if world.size == 1:
        return stop()
    if not at_check:
        return False
    wish = torch.tensor(int(stop()), device=device)
    dist.all_reduce(wish, op=dist.ReduceOp.MAX)
    return bool(wish)


def _require_finite(first_bad: Tensor, recipe: Any, steps_per_epoch: int) -> None:
    step = int(first_bad)
    if step >= 0:
        rate = learning_rate(recipe, step, steps_per_epoch)
        raise FloatingPointError(
            f"the loss is not finite since step {step} (epoch {step // steps_per_epoch + 1}), where the learning rate "
            f"was {rate:.3g}; lower recipe.lr, set recipe.clip_grad=1.0 or recipe.precision=fp32"
        )


def _save_predictions(folder: Path, name: str, evaluation: Evaluation) -> None:
    file = "predictions.npz" if name == "eval" else "predictions_ema.npz"
    save_arrays(folder / file, index=evaluation.index, label=evaluation.label,
                top5=evaluation.ranking, loss=evaluation.losses)  # fmt: skip


class _Progress:
    """What is known of a training beside its tensors: where it is, and its figures so far."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.epoch = self.step = 0
        self.seconds = self.loss_sum = self.images_per_second = 0.0
        self.last: dict[str, dict[str, float]] = {}
        self.best: dict[str, dict[str, float]] = {}

    def note(self, name: str, evaluation: Evaluation) -> list[str]:
        """Remember an evaluation of this epoch; returns [name] if it is the best so far (first of equals)."""
        figures = {"epoch": self.epoch, **evaluation.row()}
        self.last[name] = figures
        if name in self.best and figures["top1"] <= self.best[name]["top1"]:
            return []
        self.best[name] = figures
        return [name]

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    def load(self, state: dict[str, Any], expected: dict[str, Any]) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"the data have changed: this record was begun on files with fingerprint {state['fingerprint']}, "
                f"dataset.root now holds {self.fingerprint}; restore the data, or train anew with study.rerun=all"
            )
        assert state["config"] == expected, "a cell's folder is named after its configuration"
        for key in vars(self):
            setattr(self, key, state[key])

    def result(self, derived: dict[str, Any], devices: int) -> dict[str, Any]:
        ema = {"last": self.last["eval_ema"], "best": self.best["eval_ema"]} if "eval_ema" in self.last else None
        return {
            "last": self.last.get("eval"), "best": self.best.get("eval"), "ema": ema, "epochs": self.epoch,
            "num_eval": derived["num_eval"], "num_train": derived["num_train"],
            "num_parameters": derived["num_parameters"], "wall_seconds": self.seconds,
            "device_seconds": self.seconds * devices, "images_per_second": self.images_per_second, "derived": derived,
        }  # fmt: skip
