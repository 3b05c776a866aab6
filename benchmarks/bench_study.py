"""What a large study costs before a cell trains: plan 1,000 new cells, and find 1,000 finished ones finished.

python -m benchmarks.bench_study [--cells 1000] [--rounds 3]

Real commands in a new process each, so interpreter start, imports and Hydra are in the figure; beside them, Hydra's
own way: composing every job in full, timed on 50. The best of the rounds counts.
Processor seconds are what to compare on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, run_command
from vitlab.study.record import Record

AUGMENTS = ("none", "autoaug", "randaug", "mixup", "cutmix", "jitter", "erase", "deit")
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
    rates = (0.001, 0.002, 0.003, 0.004, 0.005)
    seeds = cells // (len(AUGMENTS) * len(rates))
    assert seeds * len(AUGMENTS) * len(rates) == cells, "give a multiple of 40 cells"
    return [
        "-m", f"augment={','.join(AUGMENTS)}", f"recipe.lr={','.join(map(str, rates))}",
        f"seed={','.join(map(str, range(seeds)))}", "study.name=large", "wandb.mode=disabled",
    ]  # fmt: skip


def timed(words: list[str], folder: Path, expected: str) -> tuple[float, float]:
    """Seconds of one command, which must say `expected`: by the clock, and of the processor."""
    seconds, output = run_command([str(ROOT / "run.py"), *words], folder)
    assert expected in output, output[-4000:]
    return seconds.clock, seconds.processor


def finish(folder: Path, plan: list[dict]) -> None:
    """Give every planned cell the record that a run leaves, copied from one that was trained."""
    trained = next(p.parent for p in folder.glob("runs/c*/result.json"))
    names = ("config.yaml", "provenance.json", "result.json")
    contents = {name: Record(trained).read(name) or {} for name in names}
    rows = (trained / "metrics.jsonl").read_text(encoding="utf-8")
    for cell in plan:
        record = Record(folder / "runs" / cell["id"])
        if record.state() != "finished":
            for name in names:
                record.write(name, contents[name] | ({"id": cell["id"]} if "id" in contents[name] else {}))
            (record.folder / "metrics.jsonl").write_text(rows, encoding="utf-8")


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
        plan = [{"id": line.split()[0]} for line in dry.stdout.splitlines() if line.startswith("  c")]
        assert len(plan) == arguments.cells, f"the plan names {len(plan)} cells"
        finish(folder, plan)
        least.append(min(timed(words, folder, "nothing to train") for _ in range(arguments.rounds)))
        code = HYDRA_ALONE.format(conf=str(ROOT / "conf"), cells=50)
        alone = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
        )
        hydra = json.loads(alone.stdout) / 50 * arguments.cells
    for title, (clock, processor), limit in zip(
        ("plan of new cells (dry run)", "all finished: nothing to train"), least, (5, 10), strict=True
    ):
        print(f"{title:<34} {clock:6.2f} s, of which processor {processor:5.2f} s; limit {limit} s")
    print(f"Hydra's composition of each alone  {hydra:6.1f} s of processor, {hydra / least[0][1]:.0f} times the plan")


if __name__ == "__main__":
    main()
