"""Offline W&B runs give the same table as the records, and what is broken in them is said."""

import dataclasses
import json
import re
from typing import Any

import pytest
from written_records import SPEC, write_all, write_cell

from vitlab.analysis import collect_wandb
from vitlab.analysis.formats.latex import to_latex
from vitlab.analysis.formats.text import to_csv, to_json, to_markdown
from vitlab.analysis.sources import wandb_runs
from vitlab.analysis.sources.wandb_files import merge_runs, offline_runs
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import TableSpec
from vitlab.config import ConfigError
from vitlab.core.integrity import DamagedError
from vitlab.study.record import Record


def test_offline_wandb_gives_the_same_table(tmp_path):
    frame = write_all(tmp_path / "runs", {"none": [90.0, 91.0], "mixup": [92.0, 93.5]}, offline=True)
    spec = dataclasses.replace(SPEC, rows=("none", "mixup"))
    ours = build_table(frame, spec)
    theirs = build_table(collect_wandb(study="s", output_dir=tmp_path / "runs"), spec)
    for render in (to_markdown, to_latex, to_csv, to_json):
        assert render(ours) == render(theirs)
    run = offline_runs(tmp_path / "runs")[0]
    assert [row["epoch"] for row in run["history"]] == [1, 2, 3]


def test_a_torn_wandb_file_is_a_crashed_run(tmp_path):
    write_all(tmp_path / "runs", {"none": [90.0]}, offline=True)
    (file,) = (tmp_path / "runs").rglob("run-*.wandb")
    file.write_bytes(file.read_bytes()[:-200])
    assert [r["state"] for r in offline_runs(tmp_path / "runs")] == ["crashed"]
    frame = collect_wandb(study="s", output_dir=tmp_path / "runs")
    assert list(frame["state"]) == ["interrupted"] and "last.top1" not in frame, "no low number"
    file.write_bytes(b"nonsense")
    (fault,) = offline_runs(tmp_path / "runs")[0]["faults"]
    assert re.search(
        r"run-c\w+\.wandb: not a \.wandb file; take the table from the records \(source=runs\)", str(fault)
    )
    with pytest.raises(ConfigError, match="no run of vitlab's"):
        collect_wandb(output_dir=tmp_path / "empty")


def test_finished_runs_of_one_cell_that_disagree_are_refused(tmp_path):
    for place, score in (("a", 90.0), ("b", 91.0)):
        write_all(tmp_path / place, {"none": [score], "mixup": [80.0] if place == "a" else []}, offline=True)
    frame = collect_wandb(study="s", output_dir=tmp_path)
    assert dict(zip(frame["name"], frame["state"], strict=True)) == {"none/s0": "damaged", "mixup/s0": "finished"}
    text = to_markdown(build_table(frame, dataclasses.replace(SPEC, rows=("none", "mixup"))))
    assert re.search(r"two finished runs of cell c\w+ disagree \(last/top1 90\.0 and 91\.0;", text) and "80.00" in text


def test_the_order_gaps_and_found_rows_are_the_studys(tmp_path):
    """Without a layout: rows in the order of the plan, a failure with its reason, from either source."""
    frame = write_all(tmp_path, {"none": [90.0, 90.5], "randaug": [80.0, None], "autoaug": [85.0, 86.0]}, offline=True)
    spec = TableSpec("s", "Study s", study="s")
    ours, theirs = (build_table(f, spec) for f in (frame, collect_wandb(study="s", output_dir=tmp_path)))
    assert [row.label for row in theirs.rows] == ["none", "randaug", "autoaug"]
    assert to_markdown(ours) == to_markdown(theirs) and "randaug/s1 failed (ValueError: no luck)" in to_markdown(theirs)


def test_a_run_saved_before_its_end_is_no_result(tmp_path):
    write_all(tmp_path, {"none": [90.0]}, offline=True)
    write_cell(tmp_path, "mixup", 0, None, state="interrupted", offline=True)
    frame = collect_wandb(study="s", output_dir=tmp_path)
    assert dict(zip(frame["name"], frame["state"], strict=True)) == {"none/s0": "finished", "mixup/s0": "interrupted"}
    (cell,) = [
        r for r in map(Record, tmp_path.glob("c[0-9a-f]*")) if (r.read("config.yaml") or {}).get("name") == "mixup/s0"
    ]
    assert cell.state() == "interrupted", "as the records say"


def run_of(state, top1=None, epochs=(), **about):
    summary = {} if top1 is None else {"last/top1": top1}
    config = {"vitlab": {"id": "c1", "name": "none/s0", "study": "s", "labels": {}} | about}
    return {"id": "other", "state": state, "config": config, "summary": summary,
            "history": [{"epoch": e, "eval/top1": 50.0 + e} for e in epochs]}  # fmt: skip


def test_attempts_at_one_cell_are_one_run():
    requeued = merge_runs([run_of("crashed", epochs=[1, 2]), run_of("finished", 90.0, epochs=[2, 3])])
    assert len(requeued) == 1 and requeued[0]["state"] == "finished"
    assert [row["epoch"] for row in requeued[0]["history"]] == [1, 2, 3]
    stray = merge_runs([run_of("finished", 90.0), run_of("crashed", 12.0)])
    assert stray[0]["state"] == "finished" and stray[0]["summary"]["last/top1"] == 90.0
    assert len(merge_runs([run_of("finished", 90.0), run_of("finished", 90.0)])) == 1
    (both,) = merge_runs([run_of("finished", 90.0), run_of("finished", 91.0)])
    assert both["state"] == "damaged" and "two finished runs of cell c1 disagree" in str(both["faults"][0])


def test_a_cell_that_two_studies_share_is_in_both_tables(tmp_path, monkeypatch):
    def run(identity, study, **places):
        found = run_of("finished", 90.0, id=identity, study=study, place=places[study], studies=places)
        found["config"]["vitlab"] |= {"devices": 1, "commit": "a", "dirty": False, "device_name": "CPU"}
        return found | {"id": identity, "url": f"https://example.org/{identity}"}

    runs = [run("c1", "s", s=0, t=1), run("c2", "s", s=1), run("c3", "t", t=0)]
    asked = []
    monkeypatch.setattr(wandb_runs, "_ask", lambda entity, project, wanted: asked.append(wanted) or runs)

    def ids(study, **filters):
        return list(collect_wandb("me", study=study, output_dir=tmp_path, refresh=True, filters=filters)["id"])

    assert ids("s") == ["c1", "c2"] and ids("t") == ["c3", "c1"], "in the order of each study"
    assert asked[0] == {"$or": [{"group": "s"}, {"tags": "s"}]}
    with pytest.raises(ConfigError, match="no run of vitlab's of study 'paper'"):
        ids("paper")  # a tag that a user has given is no study
    assert ids("t", state="finished") == ["c3", "c1"] and asked[-1]["state"] == "finished"
    ids("t", **{"$or": [{"tags": "a"}, {"tags": "b"}]})
    assert asked[-1] == {"$and": [asked[1], {"$or": [{"tags": "a"}, {"tags": "b"}]}]}, "neither takes the other's place"


def test_archived_attempts_do_not_count(tmp_path):
    write_all(tmp_path, {"none": [90.0]}, offline=True)
    (record,) = (Record(folder) for folder in tmp_path.glob("c[0-9a-f]*"))
    record.archive()
    write_all(tmp_path, {"none": [91.0]}, offline=True)
    assert list(collect_wandb(study="s", output_dir=tmp_path)["last.top1"]) == [91.0]


def test_damage_and_mistakes_are_one_message(tmp_path):
    write_all(tmp_path, {"none": [90.0]}, offline=True)
    with pytest.raises(ConfigError, match="filters: W&B's server applies them"):
        collect_wandb(output_dir=tmp_path, filters={"tags": "paper"})
    cached = tmp_path / "wandb_cache"
    run: dict[str, Any] = offline_runs(tmp_path)[0] | {"url": "https://example.org"}
    run["summary"]["last/top1"] = "NaN"  # what W&B makes of it
    cached.mkdir()

    def keep(text):
        import hashlib

        name = hashlib.sha256(json.dumps(["me", "vitlab", "s", {}], sort_keys=True).encode()).hexdigest()[:12]
        (cached / f"vitlab_{name}.json").write_text(text, encoding="utf-8")

    keep(json.dumps({"runs": [run]}))
    frame = collect_wandb("me", study="s", output_dir=tmp_path)
    assert list(frame["state"]) == ["damaged"] and "https://example.org: damaged" in frame["faults"][0]
    keep('{"runs": [')
    with pytest.raises(DamagedError, match=r"wandb_cache/.*: damaged .*; ask W&B again with refresh=true"):
        collect_wandb("me", study="s", output_dir=tmp_path)


def test_pre_trainings_are_no_rows(tmp_path, monkeypatch):
    runs = [run_of("finished", 90.0), run_of("finished", 1.0, part="pretraining", id="c2")]
    for run in runs:
        run["config"]["vitlab"] |= {"devices": 1, "commit": "a", "dirty": False, "device_name": "CPU"}
        run["summary"] |= {"device_seconds": 3.0}
    monkeypatch.setattr("vitlab.analysis.sources.wandb_runs.offline_runs", lambda folder: runs)
    assert list(collect_wandb(output_dir=tmp_path)["id"]) == ["c1"]
