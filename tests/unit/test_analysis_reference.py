"""Published values compared with ours."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from written_records import SPEC, write_all

from vitlab.analysis.formats.text import to_markdown
from vitlab.analysis.reference import compare_with_reference, read_reference
from vitlab.analysis.table import build_table
from vitlab.config import ConfigError


def test_a_reference_stands_beside(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    file = tmp_path / "book.csv"
    file.write_text(
        "row,dataset,figure,value,sd,source\nnone,digits,top1,90.0,,me\nmixup,*,top1,,,\nerase,digits,top1,70,,me\n",
        encoding="utf-8",
    )
    text = to_markdown(compare_with_reference(table, read_reference(str(file))))
    assert "| none  | digits   | top1   | 90.10 |     90.00 |  +0.10 | matches within seed noise (±1.88)" in text
    assert "not known: fill it in" in text and "differs beyond seed noise" in text
    file.write_text("row,dataset,figure,value,sd,source\nother,digits,top1,90,,me\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"its rows \(other\) are none of the table's"):
        compare_with_reference(table, read_reference(str(file)))
    file.write_text("row,dataset,figure,value,sd,source\nnone,digits,top1,ninety,,me\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="'ninety' is no number"):
        read_reference(str(file))
    for name in ("book_table3_2", "book_table3_3", "deit_table8"):
        assert read_reference(name)


HEADER = "row,dataset,figure,value,sd,source,epochs,batch_size,ema_decay\n"


def test_causes_are_what_the_records_show(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    (tmp_path / "r.csv").write_text(
        HEADER + "none,digits,top1,91.3,0.1,them,300,1024,\nmixup,digits,top1,95,,,18,32,0\n", encoding="utf-8"
    )
    first, second = (
        line["causes"] for line in compare_with_reference(table, read_reference(str(tmp_path / "r.csv"))).reference
    )
    assert "epochs 18 here, 300 there" in first and "global batch 32 here, 1024 there" in first
    assert "EMA decay 0 here, not stated there" in first and "the best epoch's 90.60 would match" in first
    assert second.startswith("mixup on digits, top1: no choice of epoch or weights explains it"), "all else is alike"


def test_the_earlier_spelling_of_a_figure_is_read(tmp_path):
    """`best_top1`, as files for earlier versions have it."""
    table = build_table(write_all(tmp_path), SPEC)
    for name in ("best.top1", "best_top1"):
        (tmp_path / "r.csv").write_text(HEADER + f"none,digits,{name},90.6,0.1,them,,,\n", encoding="utf-8")
        (line,) = compare_with_reference(table, read_reference(str(tmp_path / "r.csv"))).reference
        assert line["figure"] == "best.top1" and line["delta"] == pytest.approx(0, abs=0.01)


def test_one_seed_each_decides_nothing(tmp_path):
    table = build_table(write_all(tmp_path, {"none": [90.0], "mixup": [91.0]}), dataclasses.replace(SPEC, rows=None))
    (tmp_path / "r.csv").write_text(HEADER + "none,*,top1,95,,them,,,\n", encoding="utf-8")
    (line,) = compare_with_reference(table, read_reference(str(tmp_path / "r.csv"))).reference
    assert line["verdict"] == "one seed each: seed noise is unknown" and line["delta"] == -5.0


def test_the_margin_is_that_of_seed_noise_in_all_lines(tmp_path):
    """With a published deviation, by Banerjee's bound; without, one more run's; a line alone needs no adjustment."""
    table = build_table(write_all(tmp_path), SPEC)
    (tmp_path / "r.csv").write_text(HEADER + "deit,digits,top1,80,,them,,,\n", encoding="utf-8")
    (alone,) = compare_with_reference(table, read_reference(str(tmp_path / "r.csv"))).reference
    sd = np.std([80.0, 81.0, 79.5], ddof=1)
    assert alone["margin"] == pytest.approx(stats.t.ppf(0.975, 2) * sd * np.sqrt(1 / 3 + 1))
    (tmp_path / "r.csv").write_text(
        HEADER + "deit,digits,top1,80,0.2,them,,,\nnone,digits,top1,80,,them,,,\n", encoding="utf-8"
    )
    both, _ = compare_with_reference(table, read_reference(str(tmp_path / "r.csv"))).reference
    level = (1 + np.sqrt(0.95)) / 2
    squares = stats.t.ppf(level, 2) ** 2 * sd**2 / 3 + stats.norm.ppf(level) ** 2 * 0.2**2
    assert both["margin"] == pytest.approx(np.sqrt(squares))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "none,cifar10,top1,90,,me,,,\n", r"its data sets \(cifar10\) are none of the table's \(digits\)"),
        (HEADER + "none,digits,top1,0.722,,me,,,\n", r"line 2: value 0.722.* is a share, .* in percent: write 72.2"),
        (HEADER + "none,digits,top1,722,,me,,,\n", r"line 2: value 722 is no percentage"),
        (HEADER + "none,digits,accuracy,90,,me,,,\n", r"line 2: .*figure is one of top1"),
        ("# a remark\n" + HEADER + "none,digits,top1,nan,,me,,,\n", r"line 3: value 'nan' is no number"),
        (HEADER, "has no line below its header"),
        ("name,top1\nnone,90\n", r"line 2: the columns are row,dataset,figure"),
    ],
)
def test_a_wrong_file_is_one_message(tmp_path, text, message):
    table = build_table(write_all(tmp_path / "runs", {"none": [90.0]}), dataclasses.replace(SPEC, rows=None))
    (tmp_path / "r.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        compare_with_reference(table, read_reference(str(tmp_path / "r.csv")))


def test_rows_of_others_are_said_and_a_layouts_file_may_not_fit(tmp_path):
    table = build_table(write_all(tmp_path), SPEC)
    (tmp_path / "r.csv").write_text(
        HEADER + "none,digits,top1,90,,me,,,\nsam,digits,top1,91,,me,,,\n", encoding="utf-8"
    )
    lines = read_reference(str(tmp_path / "r.csv"))
    assert "the reference has rows that the table has not: sam" in to_markdown(compare_with_reference(table, lines))
    assert compare_with_reference(table, read_reference("book_table3_3"), asked=False).reference == ()
    with pytest.raises(ConfigError, match=r"reference: no file 'nowhere'; shipped: book_table3_2"):
        read_reference("nowhere")


def test_a_spreadsheets_utf_8_is_read_and_other_encodings_are_named(tmp_path):
    """Excel marks the beginning of UTF-8, and writes Japanese in its own code page unless asked."""
    text = "row,dataset,figure,value,sd,source\n基準,digits,top1,72.2,,本\n"
    (tmp_path / "marked.csv").write_text(text, encoding="utf-8-sig")
    assert read_reference(str(tmp_path / "marked.csv"))[0]["row"] == "基準"
    (tmp_path / "japanese.csv").write_text(text, encoding="cp932")
    with pytest.raises(ConfigError, match=r"reference: .*japanese\.csv is not UTF-8 .*; save it as CSV UTF-8"):
        read_reference(str(tmp_path / "japanese.csv"))
