"""Every file of docs/extend.md as printed there, in a folder outside the tree: it trains, and its table is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import run
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
MODULES = re.findall(r"^## [^\n]*: `(\w+)\.py`\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
YAML = dict(re.findall(r"`conf/(\w+/\w+\.yaml)`[^\n]*(?:\n[^\n]+)*?:?\n\n((?:    .*\n)+)", TEXT))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The modules and YAML files of the document, and a small .npz file."""
    folder = tmp_path_factory.mktemp("outside")
    for name, code in MODULES:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    for name, text in YAML.items():
        file = folder / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(re.sub(r"^    ", "", text, flags=re.MULTILINE), encoding="utf-8")
    bunch = load_digits()
    images = np.repeat(np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None], 3, 3)
    parts = {"train": slice(0, 600), "eval": slice(600, 700)}
    arrays = {f"{split}_images": images[rows] for split, rows in parts.items()}
    arrays |= {f"{split}_labels": bunch.target[rows] for split, rows in parts.items()}
    np.savez(folder / "digits.npz", **arrays)
    return folder


def typed(place, script, *words):
    done = run(script, *words, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_document_holds_a_file_of_each_kind():
    assert [name for name, _ in MODULES] == ["half_dark", "npz_images", "narrow_vit", "brier", "tsv_table"]
    assert {"augment/mine.yaml", "dataset/mine.yaml", "dataset/npz_images.yaml"} <= set(YAML)


QUICK = ("recipe.epochs=1", "recipe.warmup_epochs=0", "wandb.mode=disabled")


def test_a_policy_a_model_a_metric_and_a_format(place):
    words = [
        "plugins=[half_dark,narrow_vit,brier]",
        "model.name=narrow_vit",
        "model.image_size=8",
        "study.name=s",
        *QUICK,
    ]
    typed(place, "run.py", "-m", "augment=none", "augment.auto_augment=null,half_dark-p0.2", *words)
    results = [json.loads(file.read_text(encoding="utf-8")) for file in place.glob("runs/c*/result.json")]
    assert len(results) == 2 and len({r["last"]["loss"] for r in results}) == 2, "the policy acts"
    assert all(0 < r["last"]["brier"] < 2 for r in results)
    assert {r["num_parameters"] for r in results} == {results[0]["num_parameters"]}
    out = typed(place, "analyze.py", "plugins=[brier,tsv_table]", "metric=brier")
    assert "Brier score" in out and "lower is better" in out
    lines = (place / "tables/s.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and "Brier score" in lines[0].split("\t")


def test_a_kind_of_data_set(place):
    typed(
        place, "run.py", f"hydra.searchpath=[file://{place}/conf]", "plugins=[npz_images]", "dataset=npz_images",
        "dataset.root=digits.npz", "study.name=npz", "output_dir=npz_runs", *QUICK,
    )  # fmt: skip
    (result,) = place.glob("npz_runs/c*/result.json")
    content = json.loads(result.read_text(encoding="utf-8"))
    assert (content["num_train"], content["num_eval"]) == (600, 100)
