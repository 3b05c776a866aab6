"""Mixtures of code, packages, devices, threads and compilation, judged by one function."""

import functools
import importlib

import pytest

from vitlab.study import provenance
from vitlab.study.mixture import attempts, mixtures

ONE = {
    "code": "aaaaaaaa11111111", "commit": "0123456789ab", "dirty": False,
    "packages": {"timm": "1.0.20", "wandb": "0.1"},
    "device_name": "x86_64 CPU", "devices": 1, "threads": 1, "compiled": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        ({}, []),
        ({"commit": "ffffffffffff"}, []),
        ({"commit": None, "dirty": True}, []),
        ({"packages": {"timm": "1.0.20", "wandb": "0.2"}}, []),
        ({"packages": None, "devices": None, "compiled": None, "threads": None}, []),
        (
            {"code": "bbbbbbbb22222222", "dirty": True},
            ["2 versions of the code (aaaaaaaa: commit 012345678, bbbbbbbb: commit 012345678 with changes)"],
        ),
        ({"packages": {"timm": "1.0.31"}}, ["versions of packages (timm 1.0.20 and 1.0.31)"]),
        ({"device_name": "NVIDIA A100"}, ["2 kinds of device (NVIDIA A100, x86_64 CPU)"]),
        ({"devices": 8}, ["2 device counts (1, 8)"]),
        ({"threads": 4}, ["2 counts of CPU threads (1, 4)"]),
        ({"compiled": True}, ["compiled and uncompiled models"]),
    ],
)
def test_what_two_attempts_mix(change, phrases):
    assert mixtures([ONE, ONE | change]) == phrases


def test_threads_do_not_count_on_a_gpu():
    gpu = ONE | {"device_name": "NVIDIA A100"}
    assert mixtures([gpu, gpu | {"threads": 8}]) == []


def test_records_without_a_fingerprint_are_judged_by_their_commit():
    old = {key: value for key, value in ONE.items() if key != "code"}
    assert mixtures([old, ONE]) == [], "a clean commit that is known with a fingerprint is that code"
    assert mixtures([old, old | {"commit": "fedcba987654"}]) == [
        "2 versions of the code (commit 012345678, commit fedcba987)"
    ]
    assert mixtures([old | {"dirty": True}, ONE]) == [
        "2 versions of the code (aaaaaaaa: commit 012345678, commit 012345678 with changes)"
    ]
    assert mixtures([{"device_name": "X"}, ONE | {"device_name": "X"}]) == [], "what is not recorded is not judged"


def test_attempts_that_the_weights_owe_nothing_to_do_not_count():
    first, second, third = ({"code": c, "from_step": s} for c, s in (("a", 0), ("b", 0), ("c", 44)))
    recorded = third | {"earlier": [first, second]}
    assert [a["code"] for a in attempts(recorded)] == ["b", "c"]
    assert attempts(None) == [] and [a["code"] for a in attempts({"code": "a"})] == ["a"]


def test_the_codes_fingerprint_follows_what_can_change_a_number(tmp_path, monkeypatch):
    for name in ("vitlab/train/loop.py", "vitlab/analysis/table.py", "hydra_plugins/sweeper.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    fingerprint = functools.partial(provenance.code_fingerprint.__wrapped__, tmp_path)

    def after(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return fingerprint()

    before = fingerprint()
    assert before == after("README.md", "other") == after("vitlab/analysis/table.py", "x = 2\n")
    changed = after("vitlab/train/loop.py", "x = 2\n")
    assert changed != before and after("vitlab/train/loop.py", "x = 1\n") == before
    assert after("vitlab/train/new.py", "") != before


def test_the_files_of_plugins_are_part_of_the_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "my_plugin_of_the_fingerprint.py"
    file.write_text("x = 1\n", encoding="utf-8")
    importlib.import_module(file.stem)
    before = provenance.code_with([file.stem])
    assert before != provenance.code_with([]) == provenance.code_fingerprint()
    file.write_text("x = 2\n", encoding="utf-8")
    assert provenance.code_with([file.stem]) != before


def test_every_room_that_training_may_import_is_in_the_fingerprint():
    from test_layers import ALLOWED

    rooms = {folder.removeprefix("vitlab/") for folder in provenance._TRAINS if folder.startswith("vitlab/")}
    assert ALLOWED["train"] | ALLOWED["study"] == rooms
