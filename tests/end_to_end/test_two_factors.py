"""A study of two factors by its commands: trained, laid out block by block, every interval recomputed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import run

from vitlab.core.welch import critical_value

TINY = ["recipe.epochs=1", "recipe.warmup_epochs=0", "dataset.train_per_class=16", "wandb.mode=disabled"]
GRID = ["-m", "augment=none,erase", "model.depth=1,2", "seed=0,1,2", *TINY]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factors")
    done = run("run.py", *GRID, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def recorded(folder):
    """(augment, depth) → top-1 by seed, read from the records themselves."""
    (file,) = (folder / "runs/studies").glob("digits*.json")
    study = json.loads(file.read_text(encoding="utf-8"))
    found: dict[tuple[str, int], dict[int, float]] = {}
    for cell in study["cells"]:
        result = json.loads((folder / "runs" / cell["id"] / "result.json").read_text(encoding="utf-8"))
        experiment = cell["experiment"]
        key = (cell["labels"]["augment"], experiment["model"]["depth"])
        found.setdefault(key, {})[experiment["seed"]] = result["last"]["top1"]
    return {key: [values[s] for s in sorted(values)] for key, values in found.items()}


def interval(first, second, count):
    half_image = 100 / 360 / 2
    errors = [max(np.std(v, ddof=1), half_image) ** 2 / len(v) for v in (first, second)]
    critical = float(critical_value(errors[0] / sum(errors), 2, 2, 1 - 0.95 ** (1 / count)))
    half = critical * np.sqrt(sum(errors))
    delta = np.mean(second) - np.mean(first)
    return [delta, delta - half, delta + half]


def test_blocks_are_as_computed_by_hand(swept):
    done = run("analyze.py", "margin=50", cwd=swept)
    assert done.returncode == 0, done.stderr
    values = recorded(swept)
    table = json.loads(next((swept / "tables").glob("*.json")).read_text(encoding="utf-8"))
    rows = {row["label"]: row["entries"]["digits"] for row in table["rows"]}
    assert list(rows) == [f"{a} / vit_micro(depth={d})" for d in (1, 2) for a in ("none", "erase")]
    for depth in (1, 2):
        ours = rows[f"erase / vit_micro(depth={depth})"]
        wanted = interval(values["none", depth], values["erase", depth], 2)
        assert [ours["comparison"][key] for key in ("delta", "low", "high")] == pytest.approx(wanted)
        assert ours["versus"] == f"none / vit_micro(depth={depth})"
    assert "Δ to none of the same model" in done.stdout and "erase / vit_micro(depth=2)" in done.stdout


def test_one_baseline_and_asserted_scatter_as_typed(swept):
    done = run("analyze.py", "baseline=one", cwd=swept)
    assert done.returncode == 0 and "Δ to none / vit_micro(depth=1) with 95 %" in done.stdout, done.stderr
    pooled = run("analyze.py", "statistics=pooled", "baseline=block", cwd=swept)
    assert pooled.returncode == 0 and "asserted by statistics=pooled" in pooled.stdout, pooled.stderr
    wrong = run("analyze.py", "margin=-1", cwd=swept)
    assert wrong.returncode == 1 and "margin: got -1, allowed: more than 0" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    typo = run("analyze.py", "statistics=poled", cwd=swept)
    assert typo.returncode == 1 and "give statistics=pooled" in typo.stderr
