"""The page of a study that is trained: what it shows, when it is written again, and that nothing stops it."""

import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planned import begin, finish

from vitlab.analysis.formats import html as page_format
from vitlab.cli import live_page, page_writer
from vitlab.cli.analyze import AnalyzeConfig, analyze, tabulate, write_table
from vitlab.cli.live_page import LivePage, keep_current
from vitlab.cli.page_writer import PageWriter
from vitlab.config import ConfigError
from vitlab.core.files import DiskError
from vitlab.study import plan as plans
from vitlab.study.spending import Accounts
from vitlab.study.status import status
from vitlab.study.studies import write_study

ROOT = Path(__file__).parents[2]
CELLS = [[f"augment={name}", f"seed={seed}"] for name in ("none", "mixup") for seed in (0, 1)]


def row(epoch, top1=50.0):
    rates = {"step": 44 * epoch, "seconds": 36.0 * epoch, "images_per_second": 100.0}
    return {"epoch": epoch, "train/loss": 2.0, "eval/top1": top1, "eval/top5": 99.0, "eval/loss": 1.0} | rates


@pytest.fixture
def study(requests_for, tmp_path):
    """A study of four cells of ten epochs, none of which has begun: its plan."""
    requests = requests_for(*CELLS, shared=("recipe.epochs=10", "study.name=s"))
    plan = plans.build_plan(requests, "s")
    write_study(tmp_path, "s", plans.study_content(plan, requests[0].config))
    return plan


def page_of(folder):
    page = LivePage(AnalyzeConfig(output_dir=str(folder)), "s")
    page.write(page.status())
    return page.file.read_text(encoding="utf-8")


def text_of(page):
    """What a reader sees, without the script."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)))


def test_the_page_shows_where_every_cell_stands(study, tmp_path):
    done, alive, failed, _ = study.cells
    finish(tmp_path, done.config, seconds=3600.0)
    for epoch in (1, 2):
        begin(tmp_path, alive.config).append_row(row(epoch, 40.0 + epoch))
    begin(tmp_path, failed.config)
    study.record(failed).log("\x1b[31mloading <data>\x1b[0m\rloaded")
    study.record(failed).fail("ConfigError", "device: no <such> luck")
    with study.record(alive).locked():
        page = page_of(tmp_path)
    text = text_of(page)
    assert '<noscript><meta http-equiv="refresh"' in page and "<title>1/4 s</title>" in page
    assert "1 finished, 1 running, 1 failed, 1 not begun of 4 cells" in text and "30 % of all epochs" in text
    assert "1.0 device-hours spent" in text and "without an estimate" not in text
    assert re.search(r"none/s1 ▸ running on \S+ 2 of 10 42.00 100 \d\d:\d\d 0.02 0.08", text)
    assert "mixup/s1 · not begun not yet 0 " in text, "no figure, and nothing spent"
    assert "✗ mixup/s0 failed device: no <such> luck loading <data> loaded the whole log" in text
    assert f'href="../{failed.id}/log.txt"' in page and "\x1b" not in page
    assert "1 of 2" in text, "of the baseline's two cells one is finished"
    assert page.count('<polyline class="curve own"') == 1 and '<line class="end"' in page
    assert re.search(r"▸ s1, 42.00, epoch 2 of 10, ends \d\d:\d\d", text) and "Not yet begun: mixup." in text


def test_damage_is_seen_once_the_records_are_read(study, tmp_path):
    for cell in study.cells[:3]:
        finish(tmp_path, cell.config)
    (study.record(study.cells[0]).folder / "result.json").write_text("{", encoding="utf-8")
    text = text_of(page_of(tmp_path))
    assert "2 finished, 1 not begun, 1 damaged of 4 cells" in text and "✗ none/s0 damaged" in text
    assert f"{study.cells[0].id}/result.json: damaged" in text and "1 of 2" in text


def test_a_study_without_a_table_has_a_page(study, tmp_path):
    text = text_of(page_of(tmp_path))
    assert "4 not begun of 4 cells" in text and "none a ✗" in text and text.count("not yet") == 4 + 2
    assert "4 without an estimate: no cell of their model has trained an epoch" in text
    content = json.loads((tmp_path / "studies/s.json").read_text(encoding="utf-8"))
    write_study(tmp_path, "s", {"table": "no_such", "cells": content["cells"]})
    assert "No table yet: table: 'no_such' is no choice of conf/table" in text_of(page_of(tmp_path))


def test_at_the_end_it_is_the_page_that_analyze_writes(study, tmp_path):
    for place, cell in enumerate(study.cells[:3]):
        finish(tmp_path, cell.config, top1=80.0 + place).append_row(row(1))
    begin(tmp_path, study.cells[3].config)
    study.record(study.cells[3]).fail("ValueError", "no")
    page = page_of(tmp_path)
    config = AnalyzeConfig(output_dir=str(tmp_path), study="s")
    write_table(*tabulate(config, None, None), tmp_path / "tables/of/it")
    theirs = (tmp_path / "tables/of/it/s.html").read_text(encoding="utf-8")
    assert page == theirs.replace('href="../../../', 'href="../') and "refresh" not in page and "<script" not in page


def test_it_is_written_again_when_a_cell_has_got_further(study, tmp_path, monkeypatch):
    first, (page, said, written) = study.cells[0], (LivePage(AnalyzeConfig(output_dir=str(tmp_path)), "s"), [], [])
    write = page.write
    monkeypatch.setattr(page, "write", lambda *words: (write(*words), written.append(page.file.read_bytes())))
    record = begin(tmp_path, first.config)

    def nothing():
        pass

    def epoch():
        record.append_row(row(1, 43.21))

    def the_disk_is_full():
        page.file.unlink()
        page.file.mkdir()
        record.append_row(row(2, 44.32))

    def there_is_room():
        page.file.rmdir()

    script = [nothing, epoch, the_disk_is_full, nothing, there_is_room, nothing]
    counts = []

    def ends(seconds):
        assert seconds >= 2
        counts.append(len(written))
        if script:
            script.pop(0)()
        return len(counts) == 7

    with record.locked():
        keep_current(page, said.append, ends)
    assert counts == [1, 1, 2, 2, 2, 3, 3] and len(written) == 4, "once more at the end"
    assert b"43.21" in written[1] and b"44.32" not in written[1] and b"44.32" in written[2]
    assert said[0] == f"page: {page.file}, written again after each evaluation" and len(said) == 2
    assert said[1].startswith(f"page: could not write {page.file}: Is a directory")
    assert not list(page.file.parent.glob("*.part"))


def test_finished_cells_are_read_once_until_the_study_ends(study, tmp_path, monkeypatch):
    read = []
    original = live_page.read_record
    monkeypatch.setattr(live_page, "read_record", lambda record: read.append(record.id) or original(record))
    page, first = LivePage(AnalyzeConfig(output_dir=str(tmp_path)), "s"), study.cells[0]
    finish(tmp_path, first.config, top1=70.0)
    for _ in range(3):
        page.write(page.status())
    assert read.count(first.id) == 1 and len(read) == 1 + 3 * 3
    finish(tmp_path, first.config, top1=71.25)
    page.write(page.status())
    assert read.count(first.id) == 2 and "71.25" in page.file.read_text(encoding="utf-8"), "it was trained again"
    for cell in study.cells:
        finish(tmp_path, cell.config)
    before = len(read)
    page.write(page.status())
    assert len(read) == before, "at the end all records are read and checked as analyze.py does"


def test_a_bug_in_it_is_said_once_and_stops_nothing(study, tmp_path, monkeypatch):
    page, said, rounds = LivePage(AnalyzeConfig(output_dir=str(tmp_path)), "s"), [], iter((False, False, True))
    monkeypatch.setattr("vitlab.cli.live_page.context_of", lambda *_: 1 / 0)
    keep_current(page, said.append, lambda _: next(rounds))
    assert len(said) == 1 and said[0].startswith("page: Traceback") and said[0].endswith("division by zero")
    (tmp_path / "studies/s.json").unlink()
    keep_current(page, said.append, lambda _: True)
    assert said[1:] == [f"page: study: no study 's' in {tmp_path}/ any more; the study goes on"]


def command(folder, **values):
    return analyze({"output_dir": str(folder), "watch": True} | values, None)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"study": "x"}, "study: no study 'x' in .*/; its studies: s$"),
        ({"source": "wandb"}, "watch: shows the records of a study below output_dir, and goes with no source=wandb"),
        ({"source": "deit_logs"}, "goes with no source=deit_logs; leave one of the two out"),
        ({"sync": True}, "goes with no sync"),
        ({"diff": ["a", "b"]}, "goes with no diff"),
        ({"baseline": "jitter"}, "baseline: 'jitter' is no row of this table"),
        ({"output_dir": "/nowhere"}, "output_dir: no study in '/nowhere' yet"),
    ],
)
def test_what_has_no_page_is_refused_at_once(study, tmp_path, values, error):
    with pytest.raises(ConfigError, match=error):
        command(tmp_path, **values)


def test_watching_ends_with_the_study_and_with_ctrl_c(study, tmp_path, monkeypatch, capsys):
    for cell in study.cells[1:]:
        finish(tmp_path, cell.config)

    def sleep(_):
        finish(tmp_path, study.cells[0].config, top1=12.34)

    monkeypatch.setattr(time, "sleep", sleep)
    lines = command(tmp_path, study="s")
    assert lines == ["study s: 4 finished of 4", f"next: python analyze.py study=s output_dir={tmp_path}"]
    assert capsys.readouterr().out == f"page: {tmp_path}/studies/s.html, written again after each evaluation\n"
    assert "12.34" in (page := (tmp_path / "studies/s.html").read_text(encoding="utf-8")) and "refresh" not in page
    (tmp_path / study.cells[0].id / "result.json").unlink()

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert command(tmp_path)[0].startswith("study s goes on")


def test_device_hours_come_from_the_nearest_cell_that_was_measured(study, requests_for, tmp_path):
    first, second, third, fourth = (cell.id for cell in study.cells)

    def spending():
        return Accounts(tmp_path).of(status(tmp_path, "s")[0])

    assert spending()[first].spent == 0 and spending()[first].to_come is None
    record = begin(tmp_path, study.cells[0].config)
    record.write("provenance.json", {"devices": 2})
    record.append_row(row(2))
    found = spending()
    assert (found[first].spent, found[first].to_come) == (2 * 72, pytest.approx(8 * 72)), "an epoch takes 36 s on two"
    assert found[second].to_come == pytest.approx(720), "as the one that was interrupted"
    with record.locked():
        assert spending()[first].to_come == pytest.approx(8 * 72, abs=2)
    finish(tmp_path, study.cells[2].config, seconds=100.0, rate=1e6, devices=1)
    found = spending()
    assert (found[third].spent, found[third].to_come) == (100, 0) and found[fourth].to_come == pytest.approx(
        100, rel=0.5
    )
    elsewhere = requests_for(["seed=7", "recipe.epochs=20"], shared=("study.name=t",))
    write_study(tmp_path, "t", plans.study_content(plans.build_plan(elsewhere, "t"), elsewhere[0].config))
    (other,) = Accounts(tmp_path).of(status(tmp_path, "t")[0]).values()
    assert other.to_come == pytest.approx(2 * (found[fourth].to_come or 0)), "measured in another study"


def test_cells_that_share_a_device_spend_their_part_of_it(study, tmp_path):
    first, second = (cell.id for cell in study.cells[:2])
    record = begin(tmp_path, study.cells[0].config)
    record.write("provenance.json", {"devices": 1})
    record.append_row(row(2) | {"device_seconds": 18.0})
    found = Accounts(tmp_path).of(status(tmp_path, "s")[0])
    assert (found[first].spent, found[first].to_come) == (18, pytest.approx(72)), "a quarter of 72 s, and of 288 s"
    assert (found[first].devices, found[second].devices) == (0.25, pytest.approx(0.25))
    assert found[second].to_come == pytest.approx(90)


def test_a_process_of_its_own_writes_it(study, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(page_writer, "WAIT_SECONDS", 0.0)
    page, said = tmp_path / "studies/s.html", []
    with PageWriter(tmp_path, "s", ()) as writer, writer.saying(said.append):
        until(page.exists)
        assert writer._process is not None
        pid = writer._process.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert (os.getsid(pid), os.getpgid(pid)) == (os.getsid(0), pid), "the priority counts inside a session only"
        finish(tmp_path, study.cells[0].config, top1=77.77)
    assert said == [f"page: {page}, written again after each evaluation"]
    assert "77.77" in page.read_text(encoding="utf-8"), "it writes once more when the command ends"
    assert writer._process.returncode == 0
    with PageWriter(tmp_path, "s", ("no_such_plugin",), goes_on=False) as writer:
        pass
    assert "page: plugins: no module 'no_such_plugin'" in capfd.readouterr().out, "the page was not finished"


def test_the_process_may_die(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page_writer, "WAIT_SECONDS", 0.0)
    said = []
    with PageWriter(tmp_path, "s", ()) as writer, writer.saying(said.append):
        until(lambda: writer._process)
        assert writer._process is not None
        os.kill(writer._process.pid, signal.SIGKILL)
        until(lambda: said)
    assert said == ["page: no longer written (its process ended with exit code -9); the study goes on"]
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with PageWriter(tmp_path, "s", ()) as writer, writer.saying(said.append):
        shown = io.StringIO()  # what came before the view took what is said
        until(lambda: shown.write(capsys.readouterr().out) or said[1:] or shown.getvalue())
    text = "page: no process can be started for it (No such file or directory)"
    assert text in (*said[1:], shown.getvalue().strip())


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_command_that_trains_needs_nothing_that_tables_are_made_with():
    code = "import sys, vitlab.cli.train_task, vitlab.cli.status_task; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert not {"torch", "pandas", "matplotlib"} & set(done.stdout.split())


def test_the_page_can_be_read_without_sight(study, tmp_path):
    finish(tmp_path, study.cells[0].config).append_row(row(1))
    page = page_of(tmp_path)
    assert page.count("<th") == page.count('<th scope="col"') + page.count('<th scope="row"') + page.count("<thead")
    assert "<main>" in page and re.findall(r"<h(\d)", page)[:2] == ["1", "2"] and page.count("<h1") == 1
    for picture in re.findall(r"<svg[^>]*>", page):
        assert 'aria-hidden="true"' in picture or ('role="img"' in picture and "aria-label=" in picture)
    assert page.count('<div class="scroll"') == page.count('<div class="scroll" tabindex="0" role="region" aria-label=')


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(scheme):
    """WCAG 2.2, 1.4.3 and 1.4.11: a contrast of 4.5 at least for text, of 3 for what is drawn."""
    rules = re.findall(r":root\{([^}]*)\}", page_format._STYLE)
    colours = dict(re.findall(r"--(\w+):(#\w+)", rules[0])) | dict(re.findall(r"--(\w+):(#\w+)", rules[scheme]))
    colours = {k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in colours.items()}
    texts, marks = ("ink", "soft", "link", "level", "wrong"), ("up", "down", "same", "level")
    pairs = [(text, ground, 4.5) for text in texts for ground in ("paper", "card")]
    pairs += [("link", "mark", 4.5), ("ink", "mark", 4.5)]
    for text, ground, least in pairs + [(mark, ground, 3.0) for mark in marks for ground in ("paper", "card")]:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (text, ground)


def test_an_unwritable_page_is_a_disk_error(study, tmp_path):
    (tmp_path / "studies/s.html").mkdir()
    with pytest.raises(DiskError, match=r"could not write .*s\.html: Is a directory"):
        page_of(tmp_path)
