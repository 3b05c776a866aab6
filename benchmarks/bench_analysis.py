"""How long a table of many runs takes, from folders, without a network call.

python benchmarks/bench_analysis.py [--runs 2000]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]


def main() -> None:
    from written_records import SPEC, write_cell

    from vitlab.analysis import collect
    from vitlab.analysis.table import build_table
    from vitlab.cli.analyze import write_table
    from vitlab.study.studies import write_study

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    names = ("none", "mixup", "cutmix", "erase", "jitter", "autoaug", "randaug", "deit")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cells = [write_cell(folder, names[i % 8], i // 8, 80 + i % 8 + (i * 7919 % 100) / 100) for i in range(runs)]
        write_study(folder, "s", {"table": None, "cells": cells})
        begun, processor = time.perf_counter(), time.process_time()
        frame = collect(folder, "s")
        collected = time.perf_counter()
        table = build_table(frame, dataclasses.replace(SPEC, rows=names, footnotes={}))
        built = time.perf_counter()
        write_table(table, frame, folder / "tables")
        done, spent = time.perf_counter(), time.process_time() - processor
    parts = (
        f"collect {collected - begun:.1f}, table {built - collected:.1f}, five formats and figures {done - built:.1f}"
    )
    print(f"{runs} runs: {done - begun:.1f} s by the clock, {spent:.1f} s of processor ({parts})")


if __name__ == "__main__":
    main()
