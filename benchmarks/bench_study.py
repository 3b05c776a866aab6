"""What a large study costs besides training: plan 1,000 new cells, find 1,000 finished ones finished, tabulate them.

python -m benchmarks.bench_study [--cells 1000] [--rounds 3]

Real commands in a new process each, so interpreter start, imports and Hydra are in the figure; next to them, Hydra's
own way: composing every job in full, timed on 50. The best of the rounds counts.
Processor seconds are what to compare on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import ROOT, run_command
from vitlab.config import CellConfig, choice, experiment
from vitlab.config.effects import settle
from vitlab.study.identity import identity
from vitlab.study.record import Record

AUGMENTS = ("none", "autoaug", "randaug", "mixup", "cutmix", "jitter", "erase", "deit")
RATES = (0.001, 0.002, 0.003, 0.004, 0.005)
HYDRA_ALONE = """
import sys, time
from hydra import compose, initialize_config_dir
from vitlab.config import register_schemas
register_schemas()
with initialize_config_dir({conf!r}, version_base="1.3"):
    began = time.process_time()
    for seed in range({cells}):
        compose("config", overrides=["augment=deit", f"seed={{seed}}"], return_hydra_config=True)
    print(time.process_time() - began)
"""


def sweep(cells: int) -> list[str]:
    """Overrides that mean `cells` different cells: conditions times seeds times learning rates."""
    seeds = cells // (len(AUGMENTS) * len(RATES))
    assert seeds * len(AUGMENTS) * len(RATES) == cells, "give a multiple of 40 cells"
    return [
        "-m", f"augment={','.join(AUGMENTS)}", f"recipe.lr={','.join(map(str, RATES))}",
        f"seed={','.join(map(str, range(seeds)))}", "study.name=large", "wandb.mode=disabled",
    ]  # fmt: skip


def timed(words: list[str], folder: Path, expected: str, script: str = "run.py") -> tuple[float, float]:
    """Seconds of one command, which must say `expected`: by the clock, and of the processor."""
    seconds, output = run_command([str(ROOT / script), *words], folder)
    assert expected in output, output[-4000:]
    return seconds.clock, seconds.processor


def finish(folder: Path, planned: Sequence[str]) -> None:
    """Give every planned cell the record that a run leaves: its own configuration, and what one trained cell left."""
    trained = next(Record(p.parent) for p in folder.glob("runs/c*/result.json"))
    config, origin, result = (trained.read(name) or {} for name in ("config.yaml", "provenance.json", "result.json"))
    for augment, rate, seed in itertools.product(AUGMENTS, RATES, range(len(planned) // len(AUGMENTS) // len(RATES))):
        recipe = dataclasses.replace(choice("recipe", "quick"), lr=rate)
        model, data, start = choice("model", "vit_micro"), choice("dataset", "digits"), choice("pretrain", "scratch")
        cell = settle(CellConfig(model, data, choice("augment", augment), start, recipe, seed))
        record = Record(folder / "runs" / identity(cell))
        assert record.id in planned, f"{augment}, {rate}, {seed} was not planned"
        if record.state() == "finished":
            continue
        about = {"id": record.id, "name": f"{augment}/lr={rate}/s{seed}", "experiment": experiment(cell)}
        record.write("config.yaml", config | about | {"labels": config["labels"] | {"augment": augment}})
        record.write("provenance.json", origin | {"id": record.id})
        for name in ("metrics.jsonl", "predictions.npz"):
            shutil.copy(trained.folder / name, record.folder / name)
        record.finish({key: value for key, value in result.items() if key not in ("id", "files", "schema_version")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    words, count = sweep(arguments.cells), f"{arguments.cells} cells"
    print(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}, {count}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        least = [min(timed([*words, "study.dry_run=true"], folder, count) for _ in range(arguments.rounds))]
        one = ["seed=0", "augment=none", "recipe.epochs=1", "recipe.warmup_epochs=0", "wandb.mode=disabled"]
        timed(one, folder, "finished")
        dry = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words, "study.dry_run=true"],
            cwd=folder, capture_output=True, text=True, check=True, encoding="utf-8"
        )  # fmt: skip
        plan = [line.split()[0] for line in dry.stdout.splitlines() if line.startswith("  c")]
        assert len(plan) == arguments.cells, f"the plan names {len(plan)} cells"
        finish(folder, plan)
        least.append(min(timed(words, folder, "nothing to train") for _ in range(arguments.rounds)))
        least.append(min(timed(["study=large"], folder, "deit", "analyze.py") for _ in range(arguments.rounds)))
        code = HYDRA_ALONE.format(conf=str(ROOT / "conf"), cells=50)
        alone = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
        )
        hydra = json.loads(alone.stdout) / 50 * arguments.cells
    titles = ("plan of new cells (dry run)", "all finished: nothing to train", "analyze.py: the table of all")
    for title, (clock, processor) in zip(titles, least, strict=True):
        print(f"{title:<34} {clock:6.2f} s, of which processor {processor:5.2f} s")
    print(f"Hydra's composition of each alone  {hydra:6.1f} s of processor, {hydra / least[0][1]:.0f} times the plan")


if __name__ == "__main__":
    main()
