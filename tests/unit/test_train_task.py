"""From the plan to the summary: dry runs, failures."""

import json

import pytest
from planned import finish

from vitlab.cli.train_task import command, run_study
from vitlab.core.errors import ConfigError


def test_a_dry_run_trains_nothing(requests_for, capsys, tmp_path):
    requests = requests_for(["seed=0"], ["seed=1"], shared=["study.dry_run=true"])

    def never(*_):
        raise AssertionError("a dry run trains nothing")

    assert run_study(requests, never) == 0
    assert "dry run: nothing was trained" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ConfigError("device", "no such luck"), KeyError("no such key")])
def test_a_summary_shows_the_error_and_fails(requests_for, capsys, tmp_path, error):
    requests = requests_for(["seed=0"], ["seed=1"], ["seed=2"], shared=["study.name=s"])

    def run(plan, view):
        finish(tmp_path, plan.cells[0].config)
        for cell in plan.cells[1:]:
            try:
                raise type(error)(*error.args)
            except Exception as caught:
                plan.record(cell).fail_by(caught)
        return {cell.id: outcome for cell, outcome in zip(plan.cells, ("finished", "failed", "failed"), strict=True)}

    assert run_study(requests, run) == 1
    out = capsys.readouterr().out
    assert "log.txt" in out and "retry_failed" in out and "2 of 3 cells did not finish" in out
    if isinstance(error, ConfigError):
        assert out.count("\n    device: no such luck\n") == 2 and "Traceback" not in out, "the user's: one line"
    else:
        assert out.count("    KeyError: 'no such key'\n") == 2 and "test_train_task.py" in out, "a bug: its traceback"
        assert out.count("| Traceback (most recent call last)") == 1 and "| the traceback is the one above" in out
    assert json.loads((tmp_path / "studies/s.json").read_text(encoding="utf-8"))["cells"][1]["name"] == "none/s1"


def test_the_command_to_continue_is_the_one_that_was_typed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["run.py", "-m", "seed=0,1", "study.rerun=all"])
    assert command(without="study.rerun") == "python run.py -m seed=0,1"
    for key, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("sys.argv", ["run.py", "seed=0"])
    assert command() == "torchrun --nproc-per-node=8 run.py seed=0"
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert command() == "torchrun … run.py seed=0", "how the machines meet is not ours to repeat"
