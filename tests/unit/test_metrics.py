"""METRICS: names, what `metric=` means, tables of any figure, metrics of plugins."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from written_records import SPEC, write_all

from vitlab.analysis.formats.html import to_html
from vitlab.analysis.formats.latex import to_latex
from vitlab.analysis.formats.text import to_csv, to_markdown
from vitlab.analysis.table import build_table
from vitlab.config import ConfigError
from vitlab.core.metrics import METRICS, figure, figures, register_metric


def test_one_name_from_the_row_to_the_table():
    best = figure("ema.best.loss")
    assert (best.column, best.row_key, best.name, best.title, best.points) == (
        "ema.best.loss", "eval_ema/loss", "ema.best.loss", "best EMA loss", "nats"
    )  # fmt: skip
    top1 = figure()
    assert (top1.column, top1.row_key, top1.name, top1.title, top1.points) == (
        "last.top1", "eval/top1", "top1", "top-1", "points"
    )  # fmt: skip
    assert figure("ema.top1") == figure("ema.last.top1") and figure("last.top5").column == "last.top5"
    assert len({each.column for each in figures()}) == 4 * len(METRICS)


def test_no_other_module_spells_an_evaluations_metric():
    """All spellings but the name itself come from `Figure` and `row_key`; docstrings may show them."""
    spelt, found = re.compile(r"(eval|eval_ema|last|best)/(top1|top5|loss)|last[.](top1|top5|loss)|(best|ema)_top1"), []
    for file in (Path(__file__).parents[2] / "vitlab").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        found += [f"{file.name}:{n.lineno}" for n in texts if id(n) not in said and spelt.search(n.value)]
    assert not [place for place in found if not place.startswith("metrics.py")]


@pytest.mark.parametrize("text", ["top2", "first.top1", "", "best", "ema.worst.top1"])
def test_an_unknown_metric_is_refused(text):
    with pytest.raises(ConfigError, match=r"metric: got .*allowed: top1, top5, loss.*metric=ema\.top1"):
        figure(text)


def test_a_table_of_another_metric(tmp_path):
    frame = write_all(tmp_path)
    top5 = build_table(frame, dataclasses.replace(SPEC, metric="top5"))
    assert top5.rows[1].entries["digits"].scores == (99.0, 99.1, 99.2)
    text = to_markdown(top5)
    head = [title.strip() for title in text.splitlines()[0].split("|")]
    assert head[4] == "top-5" and head[8:10] == ["top-1", "best top-1"]
    assert "Top-5 in percent at the last epoch" in text
    assert (
        "top5_values" in to_csv(top5).splitlines()[0]
        and "top-5" in to_latex(top5)
        and "top-5" in to_html(top5, {}, {}, "")
    )
    best = build_table(frame, dataclasses.replace(SPEC, metric="best.top1"))
    assert best.rows[0].entries["digits"].scores == (90.5, 90.9, 90.4)
    assert "best epoch, chosen on the evaluation set" in best.caption


def test_less_loss_is_better(tmp_path):
    frame = write_all(tmp_path)
    frame["last.loss"] = [0.30, 0.31, 0.32, 0.10, 0.11, 0.12, 0.30, 0.31, 0.33, 0.50, 0.51, 0.53]
    table = build_table(frame, dataclasses.replace(SPEC, metric="loss"))
    bold = {row.label for row in table.rows if row.entries["digits"].best}
    assert bold == {"mixup"}
    assert "nats below none" in " ".join(table.findings) and "lower is better" in table.caption
    assert "0.1100 ± 0.0100" in to_markdown(table)


def test_a_plugin_adds_a_metric_and_cannot_take_a_name(monkeypatch):
    monkeypatch.setattr("vitlab.core.metrics.METRICS", dict(METRICS))

    @register_metric("entropy_of_test", unit="nats", better="lower")
    def entropy(logits, labels):
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)

    assert figure("entropy_of_test").metric.compute is entropy
    with pytest.raises(ConfigError, match=r"plugins: .* registers the metric 'top1'"):
        register_metric("top1")(entropy)
