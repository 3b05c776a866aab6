"""The cells of a study from W&B: through its API, or from offline .wandb files whose records are gone."""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.analysis.sources.records import experiment_columns, frame, result_columns
from vitlab.analysis.sources.wandb_files import merge_runs, offline_runs
from vitlab.config import ConfigError
from vitlab.study.mixture import attempts

_TRIES = 4
_STATES = {
    "finished": "finished", "running": "running", "pending": "running", "preempting": "running", "failed": "failed",
}  # fmt: skip
"""W&B's state → a record's; anything else (crashed, killed, preempted) is an interrupted cell, not a low number."""
_FINAL = ("not find", "permission", "api_key", "login", "401", "403", "unauthorized", "filter")
"""What a server says that will say the same if asked again."""


def collect_wandb(
    entity: str | None = None,
    project: str = "vitlab",
    study: str | None = None,
    output_dir: str | Path = "runs",
    refresh: bool = False,
    filters: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The runs of a W&B project (of one study, where given), as `collect` gives records.

    With `entity`, the server is asked once per page of 100 runs and the answer kept in `output_dir/wandb_cache`;
    `refresh` asks again; `filters` are W&B's own (`{"state": "finished"}`, `{"tags": "paper"}`). Without, the offline
    runs below `output_dir` are read. Raises ConfigError where there are none or the server refuses, naming what was
    asked, ValueError where two finished runs of one cell disagree or a figure is not a number.
    """
    folder = Path(output_dir)
    if entity is None:
        if filters:
            raise ConfigError("filters", "W&B's server applies them; give entity=NAME, or leave filters out")
        runs = offline_runs(folder)
        where = f"offline below {folder}; for the server give entity=NAME"
    else:
        runs = merge_runs(_from_server(entity, project, study, folder, refresh, filters or {}))
        where = f"in {entity}/{project}"
    runs = [run for run in runs if run["config"].get("vitlab", {}).get("part", "cell") == "cell"]
    runs = [run for run in runs if "vitlab" in run["config"]]
    if study is not None:
        runs = [run for run in runs if run["config"]["vitlab"]["study"] == study]
    if not runs:
        raise ConfigError("source", f"no run of vitlab's{f' of study {study!r}' if study else ''} {where}")
    runs.sort(key=_place)
    return frame(_row(run) for run in runs)


def _place(run: Mapping[str, Any]) -> tuple[bool, int, str, str]:
    """In the order of the study, as far as it is known."""
    about = run["config"]["vitlab"]
    place = about.get("place")
    return place is None, place or 0, about["name"], run["id"]


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    config, summary = dict(run["config"]), run["summary"]
    about = config.pop("vitlab")
    state = _STATES.get(run["state"], "interrupted")
    if state == "finished" and "last/top1" not in summary:  # saved and stopped before its end
        state = "interrupted"
    row = {"id": about.get("id", run["id"]), "name": about["name"], "state": state, "table": about.get("table")}
    row |= experiment_columns({k: v for k, v in config.items() if not k.startswith("_")}, about["labels"])
    row |= {key: about[key] for key in ("devices", "commit", "dirty", "device_name")}
    row["attempts"] = json.dumps(about.get("attempts") or attempts(about))
    if state == "finished":
        row |= result_columns(_nest(summary) | {"id": row["id"]}) | {"hits": summary.get("hits")}
    if state == "failed" and "failure" in summary:
        row["failure"] = summary["failure"]
    if run.get("url"):
        row["url"] = run["url"]
    curve = [{"epoch": e, "eval/top1": top1} for e, top1 in json.loads(summary.get("curve") or "[]")]
    return row | {"rows": json.dumps(run.get("history") or curve)}


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`last/top1: 3` → `{"last": {"top1": 3}}`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split("/")
        node = tree
        for parent in parents:
            child = node.get(parent)
            node[parent] = child if isinstance(child, dict) else {}
            node = node[parent]
        node[name] = value
    return tree


def _from_server(
    entity: str, project: str, study: str | None, output_dir: Path, refresh: bool, filters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    asked = json.dumps([entity, project, study, filters], sort_keys=True)
    cache = output_dir / "wandb_cache" / f"{project}_{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"
    if cache.is_file() and not refresh:
        try:
            return json.loads(cache.read_text(encoding="utf-8"))["runs"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError("source", f"{cache} is damaged; ask W&B again with refresh=true") from error
    runs = _ask(entity, project, ({"group": study} if study else {}) | dict(filters))
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"asked": asked, "runs": runs}), encoding="utf-8")
    temporary.replace(cache)
    return runs


def _require_server(address: str) -> None:
    """Raise URLError where nobody answers: W&B's own client would try for half a minute and not say so."""
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError:
        return  # an answer, if not a page


def _ask(entity: str, project: str, filters: dict[str, Any]) -> list[dict[str, Any]]:
    """One query per page; a page is asked for again, after growing pauses, when the server is busy or out of reach."""
    import wandb

    found = None
    for attempt in range(_TRIES):
        try:
            if found is None:
                _require_server(wandb.setup().settings.base_url)
                api = wandb.Api(timeout=30)
                found = api.runs(f"{entity}/{project}", filters=filters, per_page=100, lazy=False)
            return [
                {"id": run.id, "state": run.state, "config": dict(run.config), "url": run.url,
                 "summary": dict(run.summary_metrics or {})}
                for run in found  # begins anew after an error, with the pages that are here already
            ]  # fmt: skip
        except Exception as error:
            if attempt == _TRIES - 1 or any(word in str(error).lower() for word in _FINAL):
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(
                    "source",
                    f"W&B gave no runs of {entity}/{project} ({reason}); check entity, project, the network "
                    "and the API key (`wandb login`)",
                ) from error
            print(f"W&B: {type(error).__name__}; trying again in {2**attempt} s")
            time.sleep(2.0**attempt)
    raise AssertionError("the last attempt returns or raises")
