"""Run one cell in this process: from its configuration to its record."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import CellConfig, Config, ConfigError, experiment, find_checkpoint, plain
from vitlab.core.errors import UserError
from vitlab.core.files import write_text
from vitlab.core.integrity import DIGEST
from vitlab.core.plugins import import_plugins
from vitlab.core.processes import end_with_parent
from vitlab.data.sources.survey import survey
from vitlab.study.attempts import Journal, NoProgressError, memory_advice, peak_memory
from vitlab.study.contents import read_contents
from vitlab.study.identity import SEMANTICS, identity, plugins_of
from vitlab.study.mixture import attempts
from vitlab.study.progress import line_of
from vitlab.study.provenance import code_patch, record_data, require_same_data, settings, whereabouts
from vitlab.study.record import SCHEMA_VERSION, Record, experiment_digest, name_of_record
from vitlab.study.snapshot import require_expected_code
from vitlab.study.studies import places
from vitlab.study.uploads import CellRun, summary_of

if TYPE_CHECKING:
    from vitlab.train.events import Event

    Events = Generator[Event, None, dict[str, Any]]
    Report = Callable[[Event], None]

Outcome = str
"""finished, already finished, damaged (its record cannot be used, nothing was trained), running elsewhere, interrupted;
refused (made with other data), on ranks other than 0"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def cell_of(config: Config) -> CellConfig:
    """The cell that a configuration means: its own, or the pre-training that it starts from (`study.part`)."""
    if config.study.part == "cell":
        return config.cell
    if config.cell.pretraining is None:
        raise ConfigError("study.part", "this cell has no pre-training")
    return config.cell.pretraining


def start_of(cell: CellConfig, output_dir: str) -> Path | None:
    """The checkpoint that a cell starts from, or None for one that starts from noise."""
    if cell.pretrain.kind == "checkpoint":
        assert cell.pretrain.path
        return find_checkpoint(cell.pretrain.path, output_dir, "pretrain.path")  # of the hub's, the one in the cache
    if cell.pretraining is None:
        return None
    before = Record(Path(output_dir) / name_of_record(cell.pretraining, Path(output_dir)))
    found = read_contents(before, thorough=False)
    if found.state == "damaged":
        raise found.faults[0]
    if found.state != "finished":
        raise ConfigError(
            "pretrain",
            f"{before.folder} is {found.state}, not finished; train it first, by the same command and "
            "study.part=pretraining",
        )
    return before.folder / "last.pt"


def _start(cell: CellConfig, output_dir: str) -> dict[str, Any] | None:
    """Which training of its pre-training a cell starts from; None for one without."""
    if cell.pretraining is None:
        return None
    before = Record(Path(output_dir) / identity(cell.pretraining))
    return {"id": before.id, "finished_at": (before.read_intact("result.json") or {}).get("finished_at")}


def run_cell(config: Config, *, study: str, name: str, report: Report = lambda event: None) -> Outcome:
    """Train the cell that `config` means, or continue it, on `devices` processes.

    Where something else has started the processes, each of them calls this; else the other ranks are started here.
    Rank 0 holds the lock, decides whether there is anything to do, and records. `report` gets fit's events. A failure
    is written to failure.json, unless another process trains the cell, and raised again. Raises ConfigError where the
    record was made with other data than those on the disk.
    """
    from vitlab.core.device import pick_device
    from vitlab.train.distributed import broadcast, process_group, world_from_environment
    from vitlab.train.events import Interrupted

    require_expected_code()
    import_plugins(config.plugins)
    cell = cell_of(config)
    record = Record(Path(config.output_dir) / identity(cell))
    decision: Outcome | None = None
    held, refused, journal = False, None, Journal(record)

    with _other_ranks(config, study, name), _stop_on_signals() as stop, contextlib.ExitStack() as stack:
        world = world_from_environment()

        def ours() -> bool:
            return world.is_main and record.state() != "finished" and (held or not record.is_locked())

        with _failure_recorded(record, ours):
            device = pick_device(config.device)
            stack.enter_context(process_group(world, device))
            if world.is_main:
                if record.state() == "finished":
                    decision = _finished(record)
                elif not (held := stack.enter_context(record.locked())):
                    decision = "running elsewhere"
                elif record.state() == "finished":  # by whoever held the lock a moment ago
                    decision = _finished(record)
                try:
                    if decision in (None, "already finished"):
                        require_same_data(record, cell.dataset, config.output_dir)
                    if decision is None:
                        journal.begin(config.study.attempts)
                except (ConfigError, NoProgressError) as error:
                    decision, refused = "refused", error
            decision = broadcast(decision)
            if refused is not None:
                raise refused
            if decision is not None:
                return decision
            start = start_of(cell, config.output_dir)
        events = _fit(config, cell, record, start=start, stop=stop, alone=world.size == 1)
        try:
            if world.is_main:

                def noted(event: Event) -> None:
                    journal.note(event)
                    report(event)

                with journal.running():
                    _record_events(events, config, cell, record, study=study, name=name, report=noted)
            else:
                for _ in events:
                    pass
        except Interrupted:
            if world.is_main:
                record.log(f"{name}: interrupted")
            return "interrupted"
        return "finished"


def _fit(
    config: Config, cell: CellConfig, record: Record, *, start: Path | None, stop: Callable[[], bool], alone: bool
) -> Events:
    """`fit`, which goes on from its last checkpoint with half the micro-batch where the device runs out of memory.

    The global batch stays: the rest is accumulated. Of several processes none can know what the others do, so they
    fail.
    """
    import torch

    from vitlab.train.events import Started
    from vitlab.train.loop import fit

    while True:
        events, used = fit(config, cell, record.folder, start=start, stop=stop), 0
        try:
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    return end.value
                if isinstance(event, Started):
                    assert event.derived is not None, "set by fit"
                    used = event.derived["device_batch"]
                yield event
        except torch.cuda.OutOfMemoryError:
            half = smaller_device_batch(cell, used) if alone else None
            if half is None:
                raise
        line = f"out of memory on the device with device_batch={used}: going on with device_batch={half}"
        record.log(f"{line}; the batch of {cell.recipe.batch_size} stays")
        config = dataclasses.replace(config, device_batch=half)
        del events  # with the model and what it has on the device
        gc.collect()
        torch.cuda.empty_cache()


def smaller_device_batch(cell: CellConfig, used: int) -> int | None:
    """The largest micro-batch of at most half of `used` that divides the batch and respects the mixing groups."""
    group = cell.augment.mix_group if cell.augment.mixes else 1
    sizes = [n for n in range(used // 2, 0, -1) if cell.recipe.batch_size % n == 0 and n % group == 0]
    return sizes[0] if sizes else None


@contextlib.contextmanager
def _other_ranks(config: Config, study: str, name: str) -> Iterator[None]:
    """Inside, the other ranks of a cell on several devices run, each in a process, and this process is rank 0."""
    from vitlab.train.distributed import spawn_ranks

    if config.devices == 1 or "RANK" in os.environ:
        yield
        return
    with spawn_ranks(config.devices, _other_rank, (config, study, name)):
        yield


def _other_rank(config: Config, study: str, name: str) -> None:
    """A rank other than 0: it stops when rank 0 says so, and ends when rank 0 is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    run_cell(config, study=study, name=name)


def _finished(record: Record) -> Outcome:
    return "damaged" if read_contents(record, thorough=False).state == "damaged" else "already finished"


def _record_events(
    events: Events, config: Config, cell: CellConfig, record: Record, *, study: str, name: str, report: Report
) -> None:
    """Write what a training reports to the cell's folder and to W&B; a failure too, which is then raised again."""
    from vitlab.core.device import device_name, pick_device
    from vitlab.train.events import EpochEnded, Started

    record.remove("failure.json")
    record.remove_temporaries()
    _write_config(config, cell, record, name)
    origin = settings(device_name(pick_device(config.device)), config.devices, config.threads, plugins=config.plugins)
    patch = code_patch()
    about = {"id": record.id, "name": name, "study": study, "labels": dict(config.labels)}
    about |= {"part": config.study.part, "table": config.study.table}
    studies = places(record.folder.parent, record.id)
    about |= {"place": studies.get(study), "studies": studies}
    about |= origin | {DIGEST: experiment_digest(experiment(cell))}
    shown = experiment(cell) | {"vitlab": about}
    run = CellRun(config.wandb, identity=record.id, name=name, study=study, folder=record.folder, config=shown)
    with run, _failure_recorded(record):
        result: dict[str, Any] | None = None
        while result is None:
            try:
                event = next(events)
            except StopIteration as end:
                result = end.value
                break
            if isinstance(event, Started):
                assert event.derived is not None, "set by fit"
                record.keep_rows(event.epoch)
                origin |= {"compiled": not event.derived["not_compiled"], "from_step": event.step}
                origin |= {"speed": event.derived["speed"]}
                origin |= {"device_batch": event.derived["device_batch"]}
                files = {split: asdict(found) for split, found in survey(cell.dataset).items()}
                data = record_data(config.output_dir, cell.dataset)
                about_data = {"id": record.id, "data": data, "files": files, "start": _start(cell, config.output_dir)}
                attempted = _attempts(record, origin | whereabouts()) | about_data
                record.write("provenance.json", attempted)
                about |= origin | {"attempts": attempts(attempted), "data": data}
                run.describe({"vitlab": about})
                if patch:
                    write_text(record.folder / "code.patch", patch)
            elif isinstance(event, EpochEnded):
                record.append_row(event.row)
                run.log(event.row)
            if line := line_of(event, cell.recipe.epochs):
                record.log(f"{name}: {line}")
            report(event)
        assert result is not None
        record.finish(result | {"finished_at": _now()})
        record.log(f"{name}: finished")
        run.finish(summary_of(record, result))


@contextlib.contextmanager
def _failure_recorded(record: Record, ours: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Inside, an exception is written to failure.json where the cell is `ours`, and raised again."""
    from vitlab.train.events import Interrupted

    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        known = _out_of_memory(error) or error
        if ours():
            with contextlib.suppress(UserError):  # a full disk: the message still reaches the user
                record.fail_by(known)
        if known is not error:
            raise known from error
        raise


def _out_of_memory(error: Exception) -> UserError | None:
    """What to do where this machine refuses memory; None for any other error."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        advice = memory_advice("SLURM_JOB_ID" in os.environ)
        return UserError(f"out of memory on this machine, with a peak of {peak_memory():.1f} GB; {advice}")
    return None


def _write_config(config: Config, cell: CellConfig, record: Record, name: str) -> None:
    runtime = {key: getattr(config, key) for key in ("device", "devices", "workers", "threads", "device_batch", "tune")}
    record.write(
        "config.yaml",
        {
            "schema_version": SCHEMA_VERSION, "id": record.id, "semantics": SEMANTICS, "name": name,
            "experiment": experiment(cell), "labels": dict(config.labels), "runtime": runtime, "full": plain(cell),
            "plugins": plugins_of(cell),
        },
    )  # fmt: skip


def _attempts(record: Record, origin: dict[str, Any]) -> dict[str, Any]:
    """`origin`, with what earlier attempts at the same cell ran on: a resumed cell may mix code and machines."""
    earlier = record.read("provenance.json")
    history = [*(earlier.pop("earlier", [])), earlier] if earlier else []
    return origin | {"earlier": history}


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Inside, a signal that ends a job asks for a stop at the next step; a second Ctrl-C acts at once."""
    asked = threading.Event()
    previous: dict[int, Any] = {}

    def ask(number: int, _frame: Any) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            previous[number] = signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


__all__ = ["cell_of", "run_cell", "start_of"]
