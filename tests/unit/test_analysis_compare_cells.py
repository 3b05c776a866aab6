"""Tables whose cells were trained or evaluated on different images."""

import dataclasses

import pytest
from written_records import IMAGES, SPEC, write_all, write_cell

from vitlab.analysis import collect
from vitlab.analysis.formats.text import to_markdown
from vitlab.analysis.table import build_table

SCORES = {"none": [90.0, 90.4], "mixup": [91.0, 91.5]}
TABLE = dataclasses.replace(SPEC, rows=tuple(SCORES))
OTHER = {split: value | {"sample": "other"} for split, value in IMAGES.items()}


def images(**splits):
    return IMAGES | splits


def built(folder, *changed, mixed_data=False, scores=None, **options):
    """The table of SCORES; `changed` are (augment, seed, the data that its record names)."""
    scores = scores or SCORES
    write_all(folder, scores, **options)
    for augment, seed, data in changed:
        write_cell(folder, augment, seed, scores[augment][seed], data=data)
    spec = dataclasses.replace(TABLE, rows=tuple(scores), mixed_data=mixed_data)
    return build_table(collect(folder, "s"), spec)


def test_a_cell_evaluated_on_other_images_is_left_out(tmp_path):
    table = built(tmp_path, ("mixup", 1, images(eval=OTHER["eval"])))
    assert [row.entries["digits"].values["last.top1"] for row in table.rows] == [(90.0, 90.4), (91.0,)]
    (flag,) = [f for f in table.flags if "evaluated on other images than none/s0" in f and "mixed_data=true" in f]
    (identity,) = collect(tmp_path, "s").query("name == 'mixup/s1'")["id"]
    assert f"and left out: mixup/s1. study.rerun='[{identity}]'" in flag
    assert "mixup/s1 left out: evaluated on other images than none/s0" in table.rows[1].notes
    assert "| mixup" in to_markdown(table) and flag in to_markdown(table)


def test_mixed_data_shows_them_with_a_note(tmp_path):
    table = built(tmp_path, ("mixup", 1, images(eval=OTHER["eval"])), mixed_data=True)
    assert table.rows[1].entries["digits"].values["last.top1"] == (91.0, 91.5)
    note = "the cells were evaluated on 2 different sets of images: none/s0, none/s1, mixup/s0 | mixup/s1"
    assert note in table.flags and note in table.notes


def test_most_cells_count_and_of_equally_many_the_first(tmp_path):
    other = images(eval=OTHER["eval"])
    table = built(tmp_path / "most", *(("mixup", s, other) for s in (0, 1)), ("none", 1, other))
    assert [row.entries["digits"].values.get("last.top1") for row in table.rows] == [(90.4,), (91.0, 91.5)]
    table = built(tmp_path / "tie", *(("mixup", s, other) for s in (0, 1)))
    assert [row.entries["digits"].values.get("last.top1") for row in table.rows] == [(90.0, 90.4), None]
    assert table.rows[1].entries["digits"].device_hours is None


def test_other_training_images_are_a_note(tmp_path):
    table = built(tmp_path, ("mixup", 0, images(train=OTHER["train"])))
    assert table.rows[1].entries["digits"].values["last.top1"] == (91.0, 91.5)
    assert "the cells were trained on 2 different sets of images: none/s0, none/s1, mixup/s1 | mixup/s0" in table.notes


def test_the_bytes_count_only_where_both_know_them(tmp_path):
    read = {split: value | {"contents": "bytes"} for split, value in IMAGES.items()}
    assert not built(tmp_path / "a", ("mixup", 0, read)).flags
    other = {split: value | {"contents": "others"} for split, value in IMAGES.items()}
    table = built(tmp_path / "b", ("mixup", 0, read), ("mixup", 1, other))
    assert any("evaluated on other images" in flag for flag in table.flags)


@pytest.mark.parametrize(
    ("data", "paired"), [(IMAGES, True), (OTHER, False), (None, False), ("aa-bb", False)],
    ids=["same", "other", "unknown", "older"],
)  # fmt: skip
def test_images_gained_and_lost_need_the_same_images(tmp_path, data, paired):
    table = built(tmp_path, ("mixup", 0, data), mixed_data=True, scores={"none": [90.0], "mixup": [91.0]})
    entry = table.rows[1].entries["digits"]
    assert (entry.checkpoint is not None) == paired
    said = "not compared image by image with none: the records do not name the same evaluation images"
    assert (said in table.rows[1].notes) != paired


def test_records_of_older_vitlabs_are_compared_with_one_another(tmp_path):
    old = built(tmp_path / "old", ("mixup", 0, "aa-cc"), data="aa-bb")
    assert any("left out: mixup/s0" in flag for flag in old.flags)
    assert not built(tmp_path / "both", ("mixup", 0, "aa-cc")).flags, "one text cannot be compared with the new ones"


def test_the_mirror_knows_the_images_too(tmp_path):
    from vitlab.analysis.sources.wandb_runs import collect_wandb

    write_all(tmp_path, {"none": [90.0], "mixup": [91.0]}, offline=True)
    write_cell(tmp_path, "erase", 0, 90.0, offline=True, data=images(eval=OTHER["eval"]), place=2)
    table = build_table(collect_wandb(output_dir=tmp_path), dataclasses.replace(SPEC, rows=("none", "mixup", "erase")))
    assert any("left out: erase/s0" in flag for flag in table.flags)
