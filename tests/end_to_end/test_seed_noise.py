"""Twelve short trainings: how far their seeds scatter beyond converged ones, and what McNemar's test makes of it."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from commands import run

from vitlab.analysis.scatter import independent_deviation
from vitlab.analysis.statistics import compare_checkpoints

SHORT = ["recipe.epochs=6", "recipe.warmup_epochs=1", "recipe.eval_every=6", "wandb.mode=disabled"]


@pytest.mark.slow()
def test_seed_noise_is_found_and_mcnemar_is_not_asked_about_conditions(tmp_path):
    seeds = "seed=" + ",".join(map(str, range(6)))
    done = run("run.py", "-m", "augment=none,erase", seeds, *SHORT, "study.name=noise", cwd=tmp_path, seconds=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    table = run("analyze.py", "study=noise", "columns+=[scatter]", cwd=tmp_path)
    assert table.returncode == 0, table.stderr

    found = re.search(r"seed noise (\d+\.\d)× \(95 % (\d+\.\d) to (\d+\.\d)\) that of converged training", table.stdout)
    assert found, table.stdout
    ratio, low, high = map(float, found.groups())
    assert low < ratio < high and low > 1.2, "six epochs do not converge"
    assert "train longer, lower the rate or average weights before adding seeds" in table.stdout
    assert "McNemar" not in table.stdout and "Where the width comes from" in table.stdout

    study = json.loads((tmp_path / "runs/studies/noise.json").read_text(encoding="utf-8"))
    hits: dict[str, list[np.ndarray]] = {}
    for cell in study["cells"]:
        with np.load(tmp_path / "runs" / cell["id"] / "predictions.npz") as content:
            hits.setdefault(cell["labels"]["augment"], []).append(content["label"] == content["top5"][:, 0])
    squares = [(100 * np.mean(h, axis=1)).std(ddof=1) / independent_deviation(np.stack(h)) for h in hits.values()]
    assert ratio == pytest.approx(float(np.sqrt(np.mean(np.square(squares)))), abs=0.06), "by hand"

    pairs = [pair for cells in hits.values() for pair in itertools.combinations(cells, 2)]
    called = sum(compare_checkpoints(a, b, resamples=10).p < 0.05 for a, b in pairs)
    print(f"McNemar calls {called} of {len(pairs)} pairs of one condition different; seed noise {ratio}×")
    assert len(pairs) == 30 and called > 6, "as a test of conditions it would err four times as often as it says"

    one = run("run.py", "-m", "augment=none,erase", "seed=0", *SHORT, "study.name=one", cwd=tmp_path)
    assert "nothing to train" in one.stdout
    alone = run("analyze.py", "study=one", cwd=tmp_path).stdout
    findings, below = alone.split("These two checkpoints, not their conditions:")
    assert "McNemar" not in findings and "no conclusion about the condition" in findings and "exact McNemar" in below
