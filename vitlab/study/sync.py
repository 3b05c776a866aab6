"""Uploading cells to W&B from their records: for compute nodes without a network, from any machine that has one.

What the server has is noted in `synced.json`, so that a later call uploads only what is new, also while a study runs. A
run's id is the cell's identity: uploading twice changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.config import WandbConfig
from vitlab.core.errors import ConfigError, UserError, one_line
from vitlab.core.files import locked
from vitlab.core.integrity import DIGEST, digest_of
from vitlab.core.wandb import Choice, ask_server, asked_mode, base_url, has_key, start_run
from vitlab.study.mixture import SETTINGS, attempts
from vitlab.study.record import Record, experiment_digest, summary_figures
from vitlab.study.studies import Entry, places, read_studies
from vitlab.study.uploads import OUTCOME, SYNCED, summary_of


def sync_unasked(output_dir: Path, study: str, wandb: WandbConfig) -> list[str]:
    """The same of one study where this machine has what its cells lack: a key and a network. What a user has asked to
    be kept offline stays so; a server that does not answer is asked again by the next call."""
    if asked_mode(wandb.mode) in ("disabled", "offline") or not has_key():
        return []
    kept = (
        Record(output_dir / entry["id"]) for name, cells in read_studies(output_dir) if name == study for entry in cells
    )
    if not any(_is_offline(record) for record in kept):
        return []
    try:
        return sync(output_dir, study, wandb.entity, wandb.project, asked=False)
    except UserError as error:
        return [str(error)]


def _is_offline(record: Record) -> bool:
    """Whether a cell could not reach the server, and has something that was not uploaded since."""
    outcome, known = record.read_intact(OUTCOME) or {}, record.read_intact(SYNCED) or {}
    return outcome.get("mode") == "offline" and outcome.get("why") != "asked" and not known.get("finished")


def sync(output_dir: Path, study: str | None, entity: str | None, project: str, *, asked: bool = True) -> list[str]:
    """Upload what W&B's server lacks of the cells of a study, or of all below `output_dir`; returns closing lines.

    `entity` and `project` are those of cells that were recorded without; `asked` is whether the user has asked for it,
    so that cells are uploaded that were to be kept offline. Raises ConfigError where there is no key, no
    such study or no answer.
    """
    cells: dict[str, tuple[str, int, Entry]] = {}
    for name, entries in read_studies(output_dir):
        if study in (None, name):
            for place, entry in enumerate(entries):
                cells.setdefault(entry["id"], (name, place, entry))
    if not cells:
        raise ConfigError("study", f"no study {study!r} in {output_dir}/" if study else f"no study in {output_dir}/")
    if not has_key():
        raise ConfigError("sync", "no key of W&B's is configured; type `wandb login`")
    if (answer := ask_server(url := base_url())) != "ready":
        said = "does not accept the key (wandb login --relogin)" if answer == "key refused" else "does not answer"
        raise ConfigError("sync", f"{url} {said}; nothing was uploaded, and nothing is lost")
    counts: dict[str, int] = {}
    for name, place, entry in cells.values():
        record = Record(output_dir / entry["id"])
        if not asked and not _is_offline(record):
            continue
        with locked(record.folder / "sync.lock", wait=0) if record.folder.is_dir() else _nothing() as held:
            what = _sync(record, name, place, entry, entity, project, url) if held else "left to another command"
        if what.startswith("error"):
            return [f"W&B: {url}: {what.removeprefix('error: ')}; what is missing is uploaded by the same command"]
        counts[what] = counts.get(what, 0) + 1
    return [
        f"W&B: {url}: {', '.join(f'{count} {what}' for what, count in counts.items() if what)} of {len(cells)} cells"
    ]


@contextlib.contextmanager
def _nothing() -> Any:
    yield True


def _sync(record: Record, study: str, place: int, entry: Entry, entity: str | None, project: str, url: str) -> str:
    """Upload one cell's new rows, and its end; returns what became of it."""
    outcome = record.read_intact(OUTCOME) or {}
    config, origin = record.read_intact("config.yaml"), record.read_intact("provenance.json")
    if config is None or origin is None:
        return "not begun"
    if outcome.get("mode") == "disabled":
        return "without W&B"
    if outcome.get("uploaded") or (outcome.get("mode") == "online" and record.is_locked()):
        return "uploaded by the cell itself"
    known: Mapping[str, Any] = record.read_intact(SYNCED) or {}
    result, rows = record.read_intact("result.json"), record.rows()
    done = min(int(known.get("rows", 0)), len(rows))
    known_places = places(record.folder.parent, record.id)
    names = list(dict.fromkeys([study, *known_places]))
    is_known = bool(known.get("finished")) == (result is not None) and set(names) <= set(known.get("studies", names))
    if done == len(rows) and is_known:
        return "complete already" if result else "without anything new"
    try:
        run = start_run(
            Choice("online", "key", url), project=outcome.get("project") or project,
            entity=entity or outcome.get("entity"), id=record.id, name=config["name"], group=study, tags=names,
            dir=str(record.folder), resume="allow", config=_config(config, origin, study, place, entry, known_places),
        )  # fmt: skip
        for row in rows[done:]:
            run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])
        if result is not None:
            summary = summary_of(record, result)
            run.summary.update(summary | {DIGEST: digest_of(summary_figures(summary))})
        page = run.url
        run.finish()
    except Exception as error:
        return f"error: {one_line(error)}"
    about = {"id": record.id, "rows": len(rows), "finished": result is not None, "page": page, "server": url}
    record.write(SYNCED, about | {"studies": names})
    return "complete now" if result else f"up to date ({study} goes on)"


def _config(
    config: Mapping[str, Any], origin: Mapping[str, Any], study: str, place: int, entry: Entry, studies: dict[str, int]
) -> dict[str, Any]:
    """The configuration of a cell's run, as the cell itself would give it."""
    experiment = config["experiment"]
    about = {"id": config["id"], "name": config["name"], "study": study, "labels": config["labels"]}
    about |= {"part": entry["part"], "place": place, "attempts": attempts(origin), "data": origin.get("data")}
    about["studies"] = studies
    about |= {key: origin.get(key) for key in SETTINGS} | {DIGEST: experiment_digest(experiment)}
    return dict(experiment) | {"vitlab": about}
