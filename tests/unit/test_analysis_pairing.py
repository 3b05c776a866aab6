"""What pairing seeds would give: the correlation with its interval, the footnote, the rule that asserts it."""

import dataclasses

import numpy as np
import pytest
from written_records import SPEC, write_all

from vitlab.analysis.pairing import correlation, pairing_line
from vitlab.analysis.table import build_table
from vitlab.core.comparisons import Group, half_widths

SEEDS = tuple(range(10))
BASE = Group((90.1, 91.0, 89.2, 90.7, 88.9, 90.0, 91.3, 89.8, 90.4, 90.2), SEEDS)
_SHIFTS = (1.1, 0.8, 1.1, 1.0, 1.2, 0.9, 1.0, 1.1, 0.9, 1.0)
LIKE = Group(tuple(v + d for v, d in zip(BASE.values, _SHIFTS, strict=True)), SEEDS)


def test_the_correlation_has_fishers_interval():
    r = np.corrcoef(BASE.values, LIKE.values)[0, 1]
    found = correlation([BASE, LIKE], [(0, 1)])
    reach = 1.96 / np.sqrt(7)
    assert found == pytest.approx((r, np.tanh(np.arctanh(r) - reach), np.tanh(np.arctanh(r) + reach)))
    shuffled = Group(LIKE.values[::-1], SEEDS[::-1])
    assert correlation([BASE, shuffled], [(0, 1)]) == pytest.approx(found), "by seed, not by place"
    assert correlation([BASE, Group((1.0, 2.0, 3.0), (0, 1, 2))], [(0, 1)]) is None, "three seeds in common"
    assert correlation([BASE, Group((1.0,) * 10, SEEDS)], [(0, 1)]) is None, "no scatter"


def test_the_line_says_how_wide_the_other_way_is():
    pairs = [(0, 1)]
    (paired,), (separate,) = (half_widths([BASE, LIKE], pairs, rule) for rule in ("paired", "auto"))
    line = pairing_line([BASE, LIKE], pairs, "auto", 1.0, "")
    assert f"statistics=paired would give intervals {paired / separate:.1f} times as wide" in line
    assert "rows correlate with their baseline by 0.9" in line
    assert "times as wide as those of statistics=auto" in pairing_line([BASE, LIKE], pairs, "paired", 1.0, "")
    assert pairing_line([BASE, LIKE], pairs, "pooled", 1.0, "") is None


def test_the_table_has_the_line_and_the_rule(tmp_path):
    scores = {"none": [90.0, 91.0, 89.0, 90.5], "mixup": [91.0, 92.25, 90.0, 91.5]}
    frame = write_all(tmp_path, scores)
    spec = dataclasses.replace(SPEC, rows=tuple(scores), footnotes={})
    assert any("over the seeds, rows correlate" in note for note in build_table(frame, spec).notes)
    table = build_table(frame, dataclasses.replace(spec, statistics="paired"))
    assert "asserted by statistics=paired" in table.caption
    c = table.rows[1].entries["digits"].comparison
    assert c.significant and c.high - c.low < 1.5
