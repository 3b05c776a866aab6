"""A detached study, looked at, followed and cancelled from another command."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from lab import ROOT, Lab
from trained_cells import rows

pytestmark = pytest.mark.slow


def asked(lab: Lab, key: str) -> str:
    command = [sys.executable, str(ROOT / "run.py"), f"study.{key}=true"]
    done = subprocess.run(
        command, cwd=lab.folder, capture_output=True, encoding="utf-8", timeout=300, env=lab.cluster.environment
    )
    assert done.stderr == ""
    return done.stdout


def test_a_detached_study_is_seen_and_cancelled(lab):
    words = ["seed=0,1,2", "recipe.epochs=2000", "dataset.train_per_class=128", "study.name=s"]
    code, _ = lab.run(*words, "study.detach=true", "hydra.launcher.array_parallelism=1")
    assert code == 0
    cell = lab.until_epoch(2)
    lab.until(lambda: lab.queue().count("PENDING") == 2)
    output = asked(lab, "status")
    job = lab.jobs()[cell.name]
    assert output.startswith("study s: 1 running, 2 queued of 3\n"), output
    assert re.search(rf"running on \S+ as {job}, epoch \d+ of 2000, [\d,]+ img/s, about .* left \(until ", output), (
        output
    )
    assert output.count("(JobArrayTaskLimit)") == 2, output
    assert "s: 3 of its jobs cancelled; what was trained is saved" in asked(lab, "cancel")
    lab.until(lambda: not lab.queue())
    assert (cell / "last.pt").exists() and not (cell / "failure.json").exists()
    output = asked(lab, "status")
    assert f"interrupted after epoch {len(rows(cell))} of 2000" in output and "2 not begun" in output, output


def test_a_detached_study_is_followed_to_its_end(lab):
    code, _ = lab.run("seed=0,1", "recipe.epochs=20", "study.name=s", "study.detach=true")
    assert code == 0
    output = asked(lab, "follow")
    assert output.splitlines()[-1] == "study s: 2 finished of 2", output


def test_the_page_of_a_detached_study_is_kept_current(lab):
    words = ["augment=none,mixup", "seed=0", "recipe.epochs=60", "study.name=s"]
    code, _ = lab.run(*words, "study.detach=true", "hydra.launcher.array_parallelism=1")
    assert code == 0
    command = [sys.executable, str(ROOT / "analyze.py"), "watch=true"]
    watching = subprocess.Popen(
        command, cwd=lab.folder, env=lab.cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8",
    )  # fmt: skip
    lab.commands.append(watching)
    page = lab.runs / "studies/s.html"
    seen: list[str] = []

    def ended() -> bool:
        if page.exists() and (text := page.read_text(encoding="utf-8")) not in seen:
            seen.append(text)
        return watching.poll() is not None

    lab.until(ended)
    assert lab.end(watching)[1].splitlines() == [
        "page: runs/studies/s.html, written again after each evaluation",
        "study s: 2 finished of 2",
        "next: python analyze.py study=s",
    ]
    job = lab.jobs()[lab.cells()[0].name].partition("_")[0]
    assert any(re.search(rf"running <small>on \S+ as {job}_\d", text) for text in seen), "a running cell and its job"
    assert any(re.search(rf"queued <small>as {job}_\d \(JobArrayTaskLimit\)", text) for text in seen), "why one waits"
    assert any("not yet" in text for text in seen)
    assert len(seen) > 3 and 'http-equiv="refresh"' in seen[0] and "refresh" not in seen[-1]


def test_cells_without_a_network_are_uploaded_by_the_attached_command(lab, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests/end_to_end")
    from wandb_stand_in import StandIn

    key = "0123456789" * 4
    lab.cluster.environment.pop("WANDB_MODE", None)
    with StandIn() as server:
        about = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": key}
        monkeypatch.setattr(lab.cluster, "environment", lab.cluster.environment | about)
        apart = f"hydra.launcher.setup=['export WANDB_BASE_URL=http://127.0.0.1:9 WANDB_API_KEY={key}']"
        code, output = lab.run("seed=0,1", "recipe.epochs=3", "wandb.mode=auto", "wandb.entity=me", apart)
        assert code == 0 and f"W&B: {server.url}: 2 complete now of 2 cells" in output, output
        assert {name: len(run["rows"]) for name, run in server.runs.items()} == {c.name: 3 for c in lab.cells()}
        assert "W&B: 2 cells at " in output, output
