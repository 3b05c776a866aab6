"""Why a table is unsure: where a width comes from, seed noise against converged training's, classes, confusions."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from written_records import SPEC, write_all

from vitlab.analysis import collect
from vitlab.analysis.formats.text import classes_csv, to_markdown
from vitlab.analysis.scatter import (
    Excess,
    Scatter,
    correlation,
    excess_line,
    excess_noise,
    independent_deviation,
    pairing_line,
)
from vitlab.analysis.table import build_table
from vitlab.cli.command_line import read_command
from vitlab.config import ConfigError
from vitlab.core.comparisons import Group, compare, half_widths
from vitlab.study.record import Record

SCORES = {"none": [90.0, 90.5, 89.75], "mixup": [92.0, 92.5, 91.0]}
ROWS = dataclasses.replace(SPEC, rows=tuple(SCORES), footnotes={})
NAMES = ["shirt", "coat", "bag"]


def answered(folder, seeds, answers):
    """A study whose cells predict `answers(augment, seed, label)` of 200 shirts and 200 coats."""
    label = np.repeat(np.arange(2), 200)
    said = {(a, s): answers(a, s, label) for a in ("none", "mixup") for s in range(seeds)}
    scores = {a: [100 * float((said[a, s] == label).mean()) for s in range(seeds)] for a in ("none", "mixup")}
    for row in write_all(folder, scores).to_dict("records"):
        place = folder / row["id"]
        predicted = said[row["label.augment"], row["seed"]]
        np.savez(place / "predictions.npz", index=np.arange(400), label=label, top5=predicted[:, None].astype(np.int32),
                 loss=np.zeros(400), classes=np.array(NAMES))  # fmt: skip
        record = Record(place)
        result = record.read("result.json")
        record.finish({key: value for key, value in result.items() if key not in ("schema_version", "id", "files")})
    return collect(folder, "s")


def test_independent_errors_have_the_deviation_that_they_are_told_to_have():
    """Each image is right with a probability of its own, independently in each seed: the ratio is one."""
    rng = np.random.default_rng(0)
    share = rng.beta(5, 1, 2_000)
    hits = rng.random((200, 2_000)) < share
    scores = 100 * hits.mean(1)
    assert independent_deviation(hits) == pytest.approx(scores.std(ddof=1), rel=0.1)
    assert independent_deviation(hits) == pytest.approx(100 * np.sqrt((share * (1 - share)).sum()) / 2_000, rel=0.02)


def test_the_ratio_has_its_interval():
    rows = [(10, Scatter(0.93, 1.0, 0.21)), (10, Scatter(0.70, 1.0, 0.21)), (2, Scatter(9.0, 1.0, 0.1))]
    found = excess_noise(rows)
    squares = 9 * (0.93 / 0.21) ** 2 + 9 * (0.70 / 0.21) ** 2
    assert found.ratio == pytest.approx(np.sqrt(squares / 18)), "the row of two seeds is left out"
    assert found.low == pytest.approx(np.sqrt(squares / stats.chi2.ppf(0.975, 18)))
    assert found.high == pytest.approx(np.sqrt(squares / stats.chi2.ppf(0.025, 18)))
    assert excess_noise([(2, Scatter(1.0, 1.0, 0.1)), (5, Scatter(1.0, 1.0, None))]) is None
    assert "train longer, lower the rate or average weights" in excess_line(found, "")
    assert "only more seeds" in excess_line(Excess(1.0, 0.8, 1.3), "")
    assert "too few seeds" in excess_line(Excess(1.5, 0.9, 4.0), " on digits")


def test_the_widths_are_those_of_the_table_and_of_what_more_would_give(tmp_path):
    table = build_table(write_all(tmp_path, SCORES), dataclasses.replace(ROWS, columns=("scatter",)))
    entries = [row.entries["digits"] for row in table.rows]
    told, c = entries[1].scatter, entries[1].comparison
    assert told.half == pytest.approx((c.high - c.low) / 2) and told.one_more < told.half
    assert told.seeds == c.sd and told.images == pytest.approx(100 * np.sqrt(c.mean / 100 * (1 - c.mean / 100) / 400))
    assert told.twice is not None and told.twice <= told.half
    text = to_markdown(table)
    assert "Where the width comes from:" in text and "| one seed more |" in text
    assert "Where the width comes from:" not in to_markdown(dataclasses.replace(table, columns=()))
    alone = build_table(
        write_all(tmp_path / "one", {"none": [90.0], "mixup": [91.0]}), dataclasses.replace(ROWS, columns=("scatter",))
    )
    assert alone.rows[1].entries["digits"].scatter is None and "Where the width" not in to_markdown(alone)


def test_columns_are_added_as_typed():
    assert read_command(["columns+=[scatter]"], "analyze") == ["columns=[scatter]"]


def test_classes_are_compared_by_hand(tmp_path):
    """mixup takes more shirts for coats; coats are alike; no bag is among the images."""
    wrong = {"none": [2, 4, 3], "mixup": [40, 44, 42]}

    def answers(augment, seed, label):
        predicted = label.copy()
        predicted[: wrong[augment][seed]] = 1  # shirts taken for coats
        predicted[200 : 205 + seed] = 0
        return predicted

    table = build_table(answered(tmp_path, 3, answers), dataclasses.replace(ROWS, per_class=True))
    shirt, coat = table.classes
    assert (shirt.name, coat.name, shirt.images) == ("shirt", "coat", 200)
    rates = {name: [100 - n / 2 for n in counts] for name, counts in wrong.items()}
    assert shirt.comparison.delta == pytest.approx(np.mean(rates["mixup"]) - np.mean(rates["none"]))
    assert shirt.comparison.significant and coat.comparison.delta == 0 and not coat.comparison.significant
    groups = [dataclasses.replace(g, values=tuple(v)) for g, v in
              zip([row.entries["digits"].group for row in table.rows], rates.values(), strict=True)]  # fmt: skip
    groups = [dataclasses.replace(g, resolution=0.5) for g in groups]
    (alone,) = compare(groups, [(0, 1)], part=0.5)
    assert (shirt.comparison.low, shirt.comparison.high) == pytest.approx((alone.low, alone.high)), "two classes"
    assert (
        "mixup: the confusion that grew most is shirt taken for coat, 3.0 → 42.0 of 200 images a seed"
        in table.confusions
    )
    assert "classes without test images: bag" in table.confusions
    text = to_markdown(table)
    assert "Per class (intervals hold for all classes of a row together):" in text and "| shirt" in text
    assert classes_csv(table).splitlines()[1].startswith("mixup,none,digits,shirt,200,98.5,79.0,3,-19.5,")


def test_one_seed_has_classes_without_intervals(tmp_path):
    frame = answered(tmp_path, 1, lambda augment, seed, label: np.where(np.arange(400) < 9, 1 - label, label))
    table = build_table(frame, dataclasses.replace(ROWS, per_class=True))
    assert [e.comparison.delta for e in table.classes] == [0, 0] and table.classes[0].comparison.p is None


def test_without_predictions_there_are_no_classes(tmp_path):
    frame = write_all(tmp_path, SCORES)
    for file in tmp_path.glob("c*/predictions.npz"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"per_class: no row and its baseline have records of what was predicted"):
        build_table(frame, dataclasses.replace(ROWS, per_class=True))


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
