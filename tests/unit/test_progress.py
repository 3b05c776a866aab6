"""The live view in terminals of any width, plain lines elsewhere, lengths of time."""

import io
import re

import pytest
from planned import finish
from rich.console import Console

from vitlab.study.plan import build_plan
from vitlab.study.progress import Progress, View, duration, line_of, shortened
from vitlab.train.events import EpochEnded, Progressed, Staged, Started


def test_plain_lines_where_there_is_no_terminal(requests_for, capsys):
    plan = build_plan(requests_for(["seed=0"]), "s")
    with View(plan) as view:
        view.event(plan.cells[0].id, Started(0, 0, 100))
        row = {"epoch": 1, "step": 10, "train/loss": 0.5, "eval/top1": 42.0, "images_per_second": 99.4}
        view.event(plan.cells[0].id, EpochEnded(row))
        view.status(plan.cells[0].id, "finished")
    out = capsys.readouterr().out
    assert "epoch 1/18  loss 0.500  top-1 42.00  99 img/s" in out and "finished" in out
    assert Progress(plan.cells[0], 100).seconds_left is None


STAGING = [
    Staged("copying 2 files of birds to /disk", "screen"), Staged("copying birds: 1.0 GB of 2.0 GB, 0.5 GB/s"),
    Staged("birds is read from /disk", "log"), Started(0, 0, 100),
]  # fmt: skip


def test_what_is_copied_is_shown(requests_for, capsys):
    plan = build_plan(requests_for(["seed=0"]), "s")
    cell = plan.cells[0].id
    with View(plan) as view:
        for event in STAGING:
            view.event(cell, event)
    assert capsys.readouterr().out == "none/s0: copying 2 files of birds to /disk\n"
    assert [line_of(event, 18) for event in STAGING] == [STAGING[0].text, None, STAGING[2].text, "starts"]
    live = View(plan, stream=io.StringIO())
    live.status(cell, "running")
    notes = []
    for event in STAGING:
        live.event(cell, event)
        notes.append(any("1.0 GB of 2.0 GB" in line for line in screen(live, 100)))
    assert notes == [False, True, False, False]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.4, "4 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min"), (1_047_600, "12 d 3 h"), (3599.7, "1 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_live_view_keeps_its_figures_beside_a_long_error(requests_for):
    """However long a message is, a terminal of 100 columns shows marks, bars and figures of the other cells."""
    view = View(build_plan(requests_for(*[[f"seed={s}"] for s in range(4)]), "s"), stream=io.StringIO())
    one, two, three, four = view.cells
    for cell in (one, two):
        view.event(cell, Started(0, 0, 792))
        view.event(
            cell,
            EpochEnded({"epoch": 9, "step": 396, "train/loss": 0.512, "eval/top1": 42.17, "images_per_second": 987.6}),
        )
    view.status(two, "finished")
    view.status(three, "failed", "FloatingPointError: " + "the loss is not finite " * 20)
    lines = screen(view, 100)
    assert lines[0].startswith("s: 1 finished, 1 running, 1 waiting, 1 failed of 4")
    assert " left" in lines[0]
    view.status(four, "blocked")
    assert " left" in view.headline(), "three quarters of what can still end are done"
    view.event(one, Progressed(792, 1.0))
    assert " left" not in view.headline()
    assert re.match(r"▸ +none/s0 .*━.* 9/18 +0\.512 +42\.17 +988 ", lines[2]) and lines[3].startswith("✓")
    assert "✗" in lines[4] and "not finite" not in lines[4]
    assert lines[6].startswith("✗ none/s2: FloatingPointError: the loss") and lines[6].rstrip().endswith("…")
    assert "Ctrl-C" in lines[7]


def screen(view, width):
    """What a terminal of that width shows."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(view.table(width))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize("width", [80, 120])
def test_long_names_stay_apart_and_figures_whole(requests_for, width):
    long = ["recipe.weight_decay=0.123456789", "recipe.warmup_epochs=3.25", "augment.mixup=0.123456"]
    requests = requests_for(*[[*long, f"recipe.lr=0.00{n}", f"seed={n}"] for n in (1, 2)], ["seed=7"])
    view = View(build_plan(requests, "s"), stream=io.StringIO())
    one, two, _ = view.cells
    view.status(two, "running")
    view.status(one, "running")
    view.event(one, Started(16, 704, 792))
    view.event(
        one,
        EpochEnded({"epoch": 17, "step": 748, "train/loss": 0.512, "eval/top1": 100.0, "images_per_second": 98765.0}),
    )
    lines = screen(view, width)
    rows = [line for line in lines if line.startswith("▸")]
    assert "/s1 " in rows[0] and "/s2 " in rows[1]
    assert re.search(r"17/18 +0\.512 +100\.00 +98765", rows[0])
    assert "starting" in rows[1] and "waiting" in next(line for line in lines if "s7" in line)


def test_the_headline_is_of_the_whole_study(requests_for, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=2"])
    finish(tmp_path, requests[0].config)
    view = View(build_plan(requests, "s"), stream=io.StringIO())
    assert view.headline().startswith("s: 1 finished, 2 waiting of 3; ")


def test_a_large_study_shows_what_moves(requests_for):
    view = View(build_plan(requests_for(*[[f"seed={s}"] for s in range(40)]), "s"), stream=io.StringIO())
    view.status(list(view.cells)[-1], "running")
    lines = screen(view, 80)
    assert "none/s39" in lines[2] and "… and 10 more" in "\n".join(lines) and len(lines) == 34


def test_what_is_shortened_keeps_both_ends():
    assert shortened("augment/seed", 12) == "augment/seed"
    assert shortened("augment/recipe/s12", 9) == "augm…/s12"
