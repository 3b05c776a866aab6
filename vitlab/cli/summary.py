"""What the command of a study prints: first the plan, at the end the outcome of every cell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping

from vitlab.study.contents import Contents, read_contents
from vitlab.study.estimate import describe
from vitlab.study.plan import Plan, PlannedCell, counted
from vitlab.study.progress import MARKS
from vitlab.study.record import failure_line
from vitlab.study.uploads import describe_uploads


def describe_plan(plan: Plan) -> None:
    """Print a plan, and after a dry run how to carry it out. Of a large study only the lines on the whole are shown."""
    lines = describe(plan, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
    dry = plan.cells[0].config.study.dry_run
    cells = counted(len(plan.cells), "cell")
    print(f"study {plan.study}: {cells}, {len(plan.todo)} to train, records in {plan.output_dir}/")
    for line in lines if dry or len(plan.cells) <= 40 else lines[len(plan.cells) :]:
        print(line)
    for note in plan.notes:
        print(f"note: {note}")
    if dry:
        print(f"dry run: nothing was trained. To train: {command(without='study.dry_run')}")


def summarise(plan: Plan, outcomes: dict[str, str]) -> int:
    """Print the outcome of every cell and the likely next command; returns the exit code."""
    bad, damaged, shown = 0, [], set()
    for cell in plan.cells:
        found = read_contents(plan.record(cell), thorough=False) if plan.todo else plan.found(cell)
        outcome = found.state if found.state in ("finished", "damaged") else outcomes.get(cell.id, found.state)
        about = f"{_figure(found)}{_changed(found)}" if outcome == "finished" else ""
        print(f"{MARKS.get(outcome, '·')} {cell.name}  {cell.id}  {outcome}{about}")
        if outcome in ("failed", "killed", "blocked"):
            bad += 1
            _show_failure(plan, cell, outcome, shown)
        elif outcome == "damaged":
            damaged.append(cell.id)
            for fault in found.faults if cell.state != "damaged" else ():  # else the plan has named them
                print(f"    {fault}")
    for line in describe_uploads([plan.record(cell) for cell in plan.cells], plan.output_dir):
        print(line)
    if "submitted" in outcomes.values():
        again = command(without=("study.rerun", "study.detach"))
        print(f"left to Slurm; the state: squeue --me; to see its end and submit what is missing: {again}")
        return 1 if bad else 0
    if "interrupted" in outcomes.values():
        print(f"interrupted; everything is saved. To continue: {command(without='study.rerun')}")
        return 130
    again = command(without=("study.rerun", "study.retry_failed"))
    if bad:
        print(f"{bad} of {counted(len(plan.cells), 'cell')} did not finish.")
        print(f"To try them again: {again} study.retry_failed=true")
    if damaged:
        print(f"{len(damaged)} of {counted(len(plan.cells), 'cell')} cannot be used: damaged.")
        print(f"To train them again: {again} study.rerun='[{','.join(damaged)}]'")
    if bad or damaged:
        return 1
    if "running elsewhere" in outcomes.values():
        print("cells that another process is training were left to it")
    where = "" if str(plan.output_dir) == "runs" else f" output_dir={plan.output_dir}"
    print(f"wrote {plan.output_dir}/<cell>/result.json, metrics.jsonl, last.pt, …; next: python analyze.py{where}")
    return 0


def _figure(found: Contents) -> str:
    result = found.result or {}
    last = result.get("last")
    if not last:
        return ""
    bad = [words for split in (result.get("bad_images") or {}).values() for words in split]
    left_out = f"  (bad images left out: {len(bad)}, the first: {bad[0]})" if bad else ""
    return f"  top-1 {last['top1']:.2f} (last epoch), best {result['best']['top1']:.2f}{left_out}"


def _changed(found: Contents) -> str:
    """A remark if the code changed after submission."""
    origin = found.provenance or {}
    return "  (code changed since it was submitted)" if origin.get("code_changed_since_submission") else ""


def _show_failure(plan: Plan, cell: PlannedCell, outcome: str, shown: set[str]) -> None:
    """Print why a cell did not finish; of a bug the traceback, unless it is among those that are `shown` already."""
    record = plan.record(cell)
    failure = record.read_intact("failure.json")
    if outcome == "blocked":
        print(f"    {plan.blocked_by(cell)}")
    elif failure:
        print(f"    {failure_line(failure)}")
        frames = failure.get("traceback", "").strip()
        for line in record.log_tail(3) if failure["type"] == "Killed" else ():  # it could not record the reason itself
            print(f"    | {line}")
        for line in ["the traceback is the one above"] if frames in shown else frames.splitlines():
            print(f"    | {line}")
        shown |= {frames} - {""}
        print(f"    log: {record.folder / 'log.txt'}")


def command(without: str | tuple[str, ...] = ()) -> str:
    """The command that the user typed, to be typed again, without the words that begin so."""
    words = [word for word in sys.argv if not (without and word.startswith(without))]
    return f"{program(os.environ)} {shlex.join(words)}"


def program(known: Mapping[str, str]) -> str:
    """What precedes run.py in a command, by the environment: `python`, or torchrun with its processes."""
    if "TORCHELASTIC_RUN_ID" not in known:
        return "python"
    one_machine = known["LOCAL_WORLD_SIZE"] == known["WORLD_SIZE"]
    return f"torchrun --nproc-per-node={known['WORLD_SIZE']}" if one_machine else "torchrun …"
