"""Five formats and three figures from one model."""

import csv
import dataclasses
import html
import io
import json
import re
import subprocess

import numpy as np
import pytest
from written_records import SCORES, SPEC, write_all, write_cell

from vitlab.analysis import collect
from vitlab.analysis.formats.grids import blocks, grids
from vitlab.analysis.formats.html import to_html
from vitlab.analysis.formats.latex import _SPECIAL, escape, to_latex
from vitlab.analysis.formats.page_plots import nice_ticks
from vitlab.analysis.formats.text import to_csv, to_json, to_markdown
from vitlab.analysis.reference import compare_with_reference, read_reference
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import Context
from vitlab.cli.analyze import write_table
from vitlab.study.studies import write_study


def test_all_formats_say_the_same(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    content = json.loads(to_json(table))
    lines = [line for line in lines if line["block"] == "rows"]
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


def test_a_name_with_a_dot_keeps_all_files_apart(tmp_path):
    frame = write_all(tmp_path / "runs", {"none": [90.0], "mixup": [91.0]})
    table = build_table(frame, dataclasses.replace(SPEC, name="v1.2", rows=("none", "mixup")))
    write_table(table, frame, tmp_path / "tables")
    names = sorted(file.name for file in (tmp_path / "tables").iterdir())
    drawn = [f"v1.2_{figure}.{kind}" for figure in ("cost", "curves", "differences") for kind in ("pdf", "png")]
    assert names == sorted([*drawn, *(f"v1.2.{kind}" for kind in ("md", "tex", "csv", "json", "html"))])


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


def everything(folder):
    """A table with every grid and block that several seeds give: two data sets, classes, pairs, causes, a gap."""
    scores = {"none": [80.0, 80.5, 79.75], "mixup": [82.0, 82.5, 81.5], "erase": [79.0, 78.5, None]}
    cells = [
        write_cell(
            folder, a, s, None if v is None else v + 5 * (d == "digits"), "failed" if v is None else "finished", d
        )
        for a, values in scores.items()
        for s, v in enumerate(values)
        for d in ("digits", "fashion_mnist")
    ]
    write_study(folder, "s", {"table": None, "cells": cells})
    spec = dataclasses.replace(
        SPEC, rows=tuple(scores), footnotes={"mixup": "100 % of A_1 & B"}, pairs=(("mixup", "erase"),), margin=0.5,
        columns=("scatter",), per_class=True,
    )  # fmt: skip
    header = "row,dataset,figure,value,sd,source,epochs,batch_size,ema_decay\n"
    (folder / "r.csv").write_text(header + "none,digits,top1,99,0.1,them,300,1024,\n", encoding="utf-8")
    return compare_with_reference(build_table(collect(folder, "s"), spec), read_reference(str(folder / "r.csv")))


def single_seeds(folder):
    return build_table(
        write_all(folder, {"none": [90.0], "mixup": [95.0]}), dataclasses.replace(SPEC, rows=("none", "mixup"))
    )


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (everything, ["findings", "confusions", "pairs", "anova", "causes", "seeds", "notes"]),
        (single_seeds, ["findings", "checkpoints"]),
    ],
)
def test_every_format_holds_the_same_facts(tmp_path, build, names):
    """Every cell of every grid and every sentence, as each file has them, compared with those of the Markdown."""
    table = build(tmp_path)
    assert [block.name for block in blocks(table)] == names
    if build is everything:
        assert [grid.name for grid in grids(table)] == ["main", "details", "scatter", "classes", "reference"]
    cells, sentences = of_markdown(to_markdown(table))
    assert len(sentences) == sum(len(block.lines) for block in blocks(table)) and len(cells) > 10
    for read, text in (
        (of_json, to_json(table)), (of_html, to_html(table, {}, {}, "p")), (of_latex, to_latex(table)),
        (of_csv, to_csv(table)),
    ):  # fmt: skip
        found = read(text)
        assert found[1] == sentences, read.__name__
        assert found[0] == cells, read.__name__
    for text in (to_markdown(table), html.unescape(to_html(table, {}, {}, "p")), json.loads(to_json(table))["caption"]):
        assert table.caption in text
    assert escape(table.caption) in to_latex(table)


def of_markdown(text):
    rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    rules = [i for i, row in enumerate(rows) if all(re.fullmatch(r":?-+:?", cell.strip()) for cell in row)]
    rows = [row for i, row in enumerate(rows) if i not in rules and i + 1 not in rules]
    cells = {re.sub(r"\*\*|( \^[a-z]+$)", "", cell.strip()) for row in rows for cell in row}
    return cells - {""}, {line[2:] for line in text.splitlines() if line.startswith("- ")}


def of_json(text):
    content = json.loads(text)
    cells = {cell for grid in content["grids"] for row in grid["rows"] for cell in row}
    return cells - {""}, {line for block in content["blocks"] for line in block["lines"]}


def of_html(text):
    body = text.split("<h2>Runs</h2>")[0]
    body = re.sub(r'<ul class="facts">.*?</ul>|<svg.*?</svg>|<thead>.*?</thead>', "", body)
    cells = re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", body)
    found = {html.unescape(re.sub(r"<sup>[a-z]+</sup>|<[^>]+>", "", cell)) for cell in cells}
    items = re.findall(r"<li(?: [^>]*)?>(.*?)</li>", body)
    return found - {""}, {html.unescape(re.sub(r"<sup>([a-z]+)</sup>", r"^\1", item)) for item in items}


def of_latex(text):
    plain = {special: sign for sign, special in _SPECIAL.items()}

    def read(part):
        part = re.sub(r"\\num\{([^}]*)\}|\\text(?:bf)\{(.*)\}$", r"\1\2", part.strip().replace(r"\bfseries ", ""))
        part = re.sub(r"\\textsuperscript\{[a-z]+\}$", "", part)
        for special in sorted(plain, key=len, reverse=True):
            part = part.replace(special, plain[special])
        part = part.replace("+-", "±") if re.fullmatch(r"[\d.]+ \+- [\d.]+", part) else part
        return part.removeprefix("{").removesuffix("}").replace("−", "-")

    body, below = text.split(r"\begin{minipage}")
    rows = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r" \\")]
    tables = re.findall(r"\\toprule\n(.*)", body)
    cells = {read(cell) for row in rows if row + r" \\" not in tables for cell in re.split(r"(?<!\\)& ", row)}
    lines = [line.removesuffix(r"\par") for line in below.splitlines() if line.endswith(r"\par")]
    sentences = {re.sub(r"^\\textsuperscript\{([a-z]+)\}", r"^\1 ", line) for line in lines if not line.endswith(":")}
    return cells - {""}, {
        f"{m[0]}{read(line[m.end() :])}" if (m := re.match(r"\^[a-z]+ ", line)) else read(line) for line in sentences
    }


def of_csv(text):
    lines = list(csv.DictReader(io.StringIO(text)))
    cells, grids_of_text = set(), ("details", "scatter", "classes", "reference")
    for line in lines:
        if line["block"] == "rows":
            cells |= {line["row"], line["n"], *("✓" if line[key] == "1" else "✗" for key in ("Mixup", "Erase"))}
            spread = f" ± {float(line['sd']):.2f}" if line["sd"] else ""
            cells.add(f"{float(line['top1']):.2f}{spread}")
            if line["delta"]:
                ends = f" ({float(line['ci_low']):+.2f} to {float(line['ci_high']):+.2f})" if line["ci_low"] else ""
                cells.add(f"{float(line['delta']):+.2f}{ends}")
            if line["p_adjusted"]:
                p = float(line["p_adjusted"])
                cells.add("< 0.001" if p < 0.001 else f"{p:.3f}")
            cells |= {f"{float(line[key]):.2f}" for key in ("top5", "best.top1")}
            cells |= {f"{int(line['parameters']) / 1e6:.3g} M", f"{float(line['device_hours']):.2g}"}
        elif line["block"] in grids_of_text:
            cells |= {line["row"], line["dataset"], *(part.partition(": ")[2] for part in line["text"].split("; "))}
    return cells, {line["text"] for line in lines if line["block"] not in ("rows", "caption", *grids_of_text)}
