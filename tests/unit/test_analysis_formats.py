"""Five formats and three figures from one model."""

import csv
import dataclasses
import io
import json
import re
import subprocess

import numpy as np
import pytest
from written_records import SCORES, SPEC, write_all, write_cell

from vitlab.analysis import collect
from vitlab.analysis.formats.grids import extras, to_csv, to_json, to_markdown
from vitlab.analysis.formats.html import to_html
from vitlab.analysis.formats.latex import escape, to_latex
from vitlab.analysis.formats.svg import nice_ticks
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import Context
from vitlab.cli.analyze import write_table
from vitlab.study.record import write_study


def test_all_formats_say_the_same(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    content = json.loads(to_json(table))
    assert [line["row"] for line in lines] == [r["label"] for r in content["rows"]] == list(SCORES)
    page, tex, text = to_html(table, {}, {}, "p"), to_latex(table), to_markdown(table)
    for line in lines:
        shown = f"{float(line['top1']):.2f}"
        assert all(shown in t for t in (page, tex, text))
        assert float(line["top1"]) == pytest.approx(np.mean([float(v) for v in line["top1_values"].split()]))
    assert tex.count(r"\begin{") == tex.count(r"\end{") and "✓" not in tex and r"\cmark" in tex
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


def awkward(tmp_path):
    """A table with a gap, a row not run, a footnote of LaTeX's special characters, fewer seeds, and a wide spread."""
    scores = SCORES | {"deit": [80.0, 61.5, None], "cutmix": [None]}
    notes = {"deit": "100 % of A_1 & B^2 ~ #3 {→} \\, 5 × −2 < 3 … $"}
    spec = dataclasses.replace(SPEC, rows=(*scores, "jitter"), footnotes=notes, pairs=(("mixup", "erase"),))
    return build_table(write_all(tmp_path, scores), spec)


@pytest.mark.slow()
def test_the_latex_compiles(tmp_path):
    """With Debian's texlive-latex-recommended and texlive-science, which bring booktabs and siunitx."""
    cells = [write_cell(tmp_path / "two", a, s, 80.0 + s + (a == "mixup"), dataset=d)
             for a in ("none", "mixup") for d in ("digits", "fashion_mnist") for s in range(2)]  # fmt: skip
    write_study(tmp_path / "two", "s", {"table": None, "cells": cells})
    free = dataclasses.replace(SPEC, rows=None, factor=None)
    (tmp_path / "a.tex").write_text(to_latex(awkward(tmp_path / "runs")), encoding="utf-8")
    (tmp_path / "b.tex").write_text(to_latex(build_table(collect(tmp_path / "two", "s"), free)), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,siunitx,amssymb,graphicx}"
        r"\begin{document}\input{a}\input{b}\end{document}",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, encoding="utf-8")
    assert done.returncode == 0 and (tmp_path / "main.pdf").exists(), done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in done.stdout, done.stdout[-2000:]


def test_latex_escapes_what_is_special():
    assert escape(r"50 % & a_b -0.5 lr=-1") == r"50 \% \& a\_b $-$0.5 lr=$-$1"
    assert escape("deit-10 1e-3") == "deit-10 1e-3", "a hyphen is none"


def test_a_gap_is_in_its_place_and_marked(tmp_path):
    table = awkward(tmp_path)
    text = to_markdown(table)
    assert (
        re.search(r"\| cutmix \^b +\|.*\| +-- \|.*\| +0 \|", text)
        and "- ^b cutmix: cutmix/s0 failed (ValueError" in text
    )
    assert "- ^c jitter: not run" in text and "2 of 3 seeds" in text
    assert r"cutmix\textsuperscript{b}" in to_latex(table) and "cutmix<sup>b</sup>" in to_html(table, {}, {}, "p")
    assert "<b>4</b> gaps or confounds" in to_html(table, {}, {}, "p") and len(table.flags) == 4
    content = json.loads(to_json(table, Context("from here")))
    assert (
        content["provenance"] == "from here" and content["rows"][4]["entries"]["digits"]["comparison"]["mean"] is None
    )


def test_everything_repeats_byte_for_byte(tmp_path):
    frame = write_all(tmp_path / "runs")
    for place in ("one", "two"):
        write_table(build_table(frame, SPEC), frame, tmp_path / place)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(names) == 11, "five texts, three figures twice"
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for ending, start in (("md", "<!-- "), ("tex", "% "), ("html", "<!-- ")):
        assert f"{start}vitlab: 12 cells (" in (tmp_path / "one" / f"t.{ending}").read_text(encoding="utf-8")


def test_the_page_shows_every_seed_curves_and_runs(tmp_path):
    frame = write_all(tmp_path / "runs")
    write_table(build_table(frame, SPEC), frame, tmp_path / "tables")
    page = (tmp_path / "tables" / "t.html").read_text(encoding="utf-8")
    assert page.count('class="seed"') == 12 and "<title>seed 1: 91.50</title>" in page
    assert page.count("<polyline") == 4 * 3 + 3 * 3, "a line per seed, the baseline's behind the others'"
    links = re.findall(r'<a href="([^"]+)"><code>', page)
    assert len(links) == 12 and all((tmp_path / "tables" / link / "config.yaml").is_file() for link in links)
    assert (
        '<li class="up">mixup +1.13' in page and '<li class="down">deit' in page and '<li class="level">erase' in page
    )


def test_ticks_are_round():
    assert nice_ticks((-13.2, 2.1), 4) == [-10, -5, 0] and nice_ticks((0.0079, 0.0088), 4) == [0.008, 0.0085]


def test_latex_has_every_block_of_text_that_markdown_has(tmp_path):
    spec = dataclasses.replace(SPEC, pairs=(("mixup", "erase"),))
    table = build_table(write_all(tmp_path), spec)
    blocks = extras(table)
    assert any(title.startswith("Further pairs") for title, _ in blocks)
    tex, text = to_latex(table), to_markdown(table)
    for _, lines in blocks:
        for line in lines:
            assert line in text and escape(line.split(" ", 1)[1] if line.startswith("^") else line) in tex
