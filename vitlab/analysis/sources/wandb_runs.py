"""The cells of a study from W&B: through its API, or from offline .wandb files whose records are gone."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vitlab.analysis.sources.records import experiment_columns, frame, result_columns
from vitlab.analysis.sources.wandb_files import merge_runs, offline_runs
from vitlab.config import GROUPS, ConfigError
from vitlab.core.files import make_folder, write_text
from vitlab.core.integrity import DIGEST, DamagedError, Shape, digest_of, misfit, read_mapping, sealed, texts
from vitlab.core.metrics import figure
from vitlab.core.wandb import unpack_curve, unpack_hits
from vitlab.study.mixture import attempts
from vitlab.study.record import FILES, ROW, SCHEMA_VERSION, experiment_digest, summary_figures

_TRIES = 4
_STATES = {
    "finished": "finished", "running": "running", "pending": "running", "preempting": "running", "failed": "failed",
    "damaged": "damaged",
}  # fmt: skip
"""W&B's state → a record's; anything else (crashed, killed, preempted) is an interrupted cell, not a low number."""
_FROM_RECORDS = "take the table from the records (source=runs), or remove the run"
_RUN = {"id": str, "state": str, "config": dict, "summary": dict, "url?": str}
_CONFIG = {"seed": int} | {group: dict for group in GROUPS} | {
    "vitlab": {
        "id?": str, "name": str, "study": str, "labels": texts, "table?": str, "devices": int, "commit?": str,
        "dirty?": bool, "device_name?": str, "attempts?": [dict],
    },
}  # fmt: skip
_FINAL = ("not find", "permission", "api_key", "login", "401", "403", "unauthorized", "filter")
"""Status codes for which another attempt is useless."""


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
    asked; DamagedError where the kept answer cannot be read. Damaged runs become rows that say so (`faults`).
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
    rows = [(_place(run, study), _row(run)) for run in runs if _is_asked_for(run, study)]
    if not rows:
        raise ConfigError("source", f"no run of vitlab's{f' of study {study!r}' if study else ''} {where}")
    return frame(row for _, row in sorted(rows, key=lambda found: found[0]))


def _about(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """What vitlab recorded in a run's configuration; empty where another program logged it."""
    about = run["config"].get("vitlab")
    return about if isinstance(about, Mapping) else {}


def _is_asked_for(run: Mapping[str, Any], study: str | None) -> bool:
    """Whether a run is a cell's, of the study, or one that it shares. Damaged ones without a study's name might be."""
    about = _about(run)
    if not about:
        return bool(run.get("faults"))
    return about.get("part", "cell") == "cell" and (
        study is None or about.get("study", study) == study or study in _places(about)
    )


def _places(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """Study → a cell's place in it, of every study that listed the cell when the run was last written."""
    known = about.get("studies")
    return known if isinstance(known, Mapping) else {}


def _place(run: Mapping[str, Any], study: str | None) -> tuple[bool, int, str, str]:
    """In the order of the study, as far as it is known."""
    about = _about(run)
    place = _places(about).get(str(study), about.get("place") if about.get("study") == study or study is None else None)
    return not isinstance(place, int), place if isinstance(place, int) else 0, str(about.get("name")), str(run["id"])


def _row(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as a cell's row. Damage raises nothing: `faults` names it, and what cannot be trusted is missing."""
    where = run.get("url") or run.get("origin") or f"run {run['id']}"
    faults = [str(fault) for fault in run.get("faults", ())]
    about, config, summary = _about(run), run["config"], run["summary"]

    def note(problem: str | None) -> bool:
        """Whether there is no problem; one that there is becomes a fault."""
        if problem:
            faults.append(str(DamagedError(where, problem, _FROM_RECORDS)))
        return not problem

    def changed(of: Mapping[str, Any], digest: Callable[[], str], what: str) -> str | None:
        return f"damaged ({what} has changed since it was written)" if of.get(DIGEST, d := digest()) != d else None

    row: dict[str, Any] = {"id": str(about.get("id", run["id"])), "state": _STATES.get(run["state"], "interrupted")}
    known = config and note(_misfit(config, _CONFIG))
    if known and note(changed(about, lambda: experiment_digest(config), "its configuration")):
        row |= {"name": about["name"], "table": about.get("table")}
        row |= experiment_columns({key: config[key] for key in ("seed", *GROUPS)}, about["labels"])
        row |= {key: about.get(key) for key in ("devices", "commit", "dirty", "device_name")}
        row["attempts"] = json.dumps(about.get("attempts") or attempts(about))
        row["data"] = json.dumps(about.get("data"))
    else:  # not even known which cell it is
        row["state"] = "damaged"
    if row["state"] == "finished" and figure().summary_key not in summary:  # saved and stopped before its end
        row["state"] = "interrupted"
    if row["state"] == "finished":
        other, result = changed(summary, lambda: digest_of(summary_figures(summary)), "its summary"), _nest(summary)
        if note(other or _misfit(result, _SUMMARY)):
            row |= result_columns(result) | {"hits": summary.get("hits")}
        else:
            row["state"] = "damaged"
    if row["state"] == "failed" and isinstance(summary.get("failure"), str):
        row["failure"] = summary["failure"]
    if run.get("url"):
        row["url"] = run["url"]
    history = run.get("history") or _curve(summary.get("curve"))
    if note(_misfit({"history": history}, {"history": [ROW]})):
        row["rows"] = json.dumps(history)
    return row | ({"faults": "\n".join(dict.fromkeys(faults))} if faults else {})


def _misfit(value: Any, shape: Shape) -> str | None:
    problem = misfit(value, shape)
    return problem and f"damaged ({problem})"


def _unpacks(packed: Any) -> bool:
    try:
        return bool(len(unpack_hits(packed)))
    except (ValueError, AttributeError, zlib.error):
        return False


_SUMMARY = FILES["result.json"] | {"hits?": _unpacks, "bad_images?": object}


def _curve(packed: Any) -> Any:
    """The rows of a summary's `curve`; anything else is returned unchanged for the caller to check."""
    try:
        return unpack_curve(packed or "[]")
    except (ValueError, TypeError):
        return packed


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
    remedy = "ask W&B again with refresh=true"
    if not refresh and (known := read_mapping(cache, remedy, SCHEMA_VERSION)) is not None:
        if problem := misfit(known, {"asked?": str, "runs": [_RUN]}):
            raise DamagedError(cache, f"damaged ({problem})", remedy)
        if known.get("asked", asked) != asked:
            raise DamagedError(cache, f"of another question ({known['asked']})", remedy)
        return known["runs"]
    # a study's name is a tag of cells that it shares with the study that they were trained in
    of_study = {"$or": [{"group": study}, {"tags": study}]} if study else {}
    wanted = {"$and": [of_study, dict(filters)]} if of_study and "$or" in filters else of_study | dict(filters)
    runs = _ask(entity, project, wanted)
    if cache.is_dir():  # damage
        shutil.rmtree(cache)
    make_folder(cache.parent)
    write_text(cache, json.dumps(sealed({"asked": asked, "runs": runs})))
    return runs


def _require_server(address: str) -> None:
    """Raise URLError where no server answers: W&B's own client would retry for half a minute without a message."""
    try:
        urllib.request.urlopen(address, timeout=10).close()
    except urllib.error.HTTPError:
        return  # an answer, if not a page


def _ask(entity: str, project: str, filters: dict[str, Any]) -> list[dict[str, Any]]:
    """One query per page; a page is requested again, after growing pauses, when the server is busy or unreachable."""
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
                for run in found  # begins again after an error, with the pages that are here already
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
