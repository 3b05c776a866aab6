"""What of a cell reaches W&B: its run, with the cell's identity as its id, and what became of a study's runs.

The truth is on the disk. W&B mirrors it, and whatever goes wrong there harms no cell.
"""

from __future__ import annotations

import contextlib
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from vitlab.config import WandbConfig
from vitlab.core.errors import UserError, one_line
from vitlab.core.integrity import DIGEST, digest_of
from vitlab.core.wandb import Choice, choose_mode, pack_curve, pack_hits, start_run
from vitlab.study.contents import load_predictions
from vitlab.study.record import Record, summary_figures
from vitlab.study.studies import places
from vitlab.train.events import Interrupted

SYNCED = "synced.json"
"""In a cell's folder: what `analyze.py sync=true` has uploaded."""
OUTCOME = "wandb.json"
"""In a cell's folder: how its last attempt was logged, and whether all of it reached the server."""
TAG_SECONDS = 30
"""How long the server is asked for a run that is to get another tag."""


class CellRun:
    """A W&B run with the cell's identity as its id. `mode=disabled` costs nothing: wandb is not imported."""

    def __init__(
        self, wandb: WandbConfig, *, identity: str, name: str, study: str, folder: Path, config: dict[str, Any]
    ) -> None:
        self._run: Any = None
        self._record = Record(folder)
        self._outcome: dict[str, Any] = {}
        choice = choose_mode(wandb.mode)
        if choice.mode == "disabled":
            self._note(mode="disabled", why="asked", uploaded=False)
            return
        studies = dict.fromkeys([study, *places(folder.parent, identity)])
        about = dict(
            project=wandb.project, entity=wandb.entity, id=identity, name=name, group=study, config=config,
            tags=[*studies, *wandb.tags], dir=str(folder), resume="allow",
        )  # fmt: skip
        self._outcome |= {"studies": list(studies), "project": wandb.project, "entity": wandb.entity}
        error = self._start(choice, about)
        if error is not None and choice.mode == "online":  # it answered, and would not have the run
            error = self._start(Choice("offline", "no answer", choice.url), about, one_line(error))
        if error is not None:
            self._give_up(error)

    def _start(self, choice: Choice, about: dict[str, Any], error: str = "") -> Exception | None:
        """Begin the run; returns what went wrong."""
        try:
            self._run = start_run(choice, **about)
        except Exception as wrong:
            return wrong
        page = self._run.url if choice.mode == "online" else None
        self._note(mode=choice.mode, why=choice.why, server=choice.url, page=page, error=error, uploaded=False)
        return None

    def _note(self, **changes: Any) -> None:
        self._outcome |= changes
        with contextlib.suppress(OSError, UserError):  # the record itself says when a disk is full
            self._record.write(OUTCOME, self._outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """End the run where `finish` has not: as failed for an error, as it is for `Interrupted`."""
        if isinstance(error, Interrupted) or error is None:
            self.finish(None)
        elif isinstance(error, Exception):
            self.finish({"failure": one_line(error)}, exit_code=1)

    def describe(self, config: dict[str, Any]) -> None:
        """Set further keys of the run's configuration, or other values."""
        if self._run is not None:
            try:
                self._run.config.update(config, allow_val_change=True)
            except Exception as error:
                self._give_up(error)

    def log(self, row: Mapping[str, Any]) -> None:
        if self._run is not None:
            try:
                self._run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])
            except Exception as error:
                self._give_up(error)

    def finish(self, summary: dict[str, Any] | None, exit_code: int = 0) -> None:
        """End the run; `summary` holds the headline figures, flat."""
        if self._run is not None:
            try:
                figures = summary_figures(summary or {})
                self._run.summary.update((summary or {}) | ({DIGEST: digest_of(figures)} if figures else {}))
                self._run.finish(exit_code=exit_code)
                self._run = None
                self._note(uploaded=self._outcome.get("mode") == "online")
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._note(error=one_line(error))
        self._record.log(f"W&B: {one_line(error)} (the record on disk is complete)")


def tag_runs(records: Sequence[Record], study: str) -> None:
    """Give the uploaded runs of cells that this study shares with another one its name as a tag, and their place in it;
    what W&B refuses is printed, and tried again by the next command."""
    for record in records:
        outcome = _outcome(record) or {}
        if not (outcome.get("uploaded") and outcome.get("page")) or study in outcome.get("studies", (study,)):
            continue
        try:
            import wandb

            run = wandb.Api(timeout=TAG_SECONDS).run("/".join(urlsplit(outcome["page"]).path.split("/")[1:]))
            run.tags = list(dict.fromkeys([*run.tags, study]))  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(about := run.config.get("vitlab"), Mapping):
                run.config["vitlab"] = {**about, "studies": places(record.folder.parent, record.id)}
            run.update()
            record.write(OUTCOME, outcome | {"studies": [*outcome["studies"], study]})
        except Exception as error:
            print(f"W&B: {record.id} could not be given the tag {study!r} ({one_line(error)})")
            return


def summary_of(record: Record, result: dict[str, Any]) -> dict[str, Any]:
    """What the summary of a finished cell's run holds: the figures of `result`, hits and learning curve, flat."""
    arrays = load_predictions(record)
    hits = None if arrays is None else pack_hits(arrays["label"] == arrays["top5"][:, 0])
    return _flat(result) | {"hits": hits, "curve": pack_curve(record.rows())}


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    """result.json's figures as W&B summary keys: last/top1, ema/best/top1, num_parameters, …"""
    flat: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, dict) and key != "derived":
            flat |= {f"{key}/{inner}": v for inner, v in _flat(value).items()}
        elif not isinstance(value, dict):
            flat[key] = value
    return flat


def describe_uploads(records: Sequence[Record], output_dir: Path) -> list[str]:
    """The lines on the cells of these records that have been trained; none for cells without a run of W&B's."""
    kinds: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        if outcome := _outcome(record):
            kinds[_kind(outcome, record)].append(record)
    return [_line(kind, cells, output_dir) for kind, cells in kinds.items()]


def _outcome(record: Record) -> dict[str, Any] | None:
    try:
        outcome = record.read(OUTCOME)
    except (UserError, ValueError):  # it is no part of the result
        outcome = None
    synced = record.read_intact(SYNCED)
    if synced and synced.get("finished"):
        return (outcome or {}) | {"uploaded": True, "page": synced["page"], "studies": synced["studies"]}
    if outcome is None and _unsynced(record):  # of a vitlab that kept no such file
        return {"mode": "offline", "why": "asked", "uploaded": False}
    return outcome


def _kind(outcome: dict[str, Any], record: Record) -> tuple[str, ...]:
    """What cells with the same line have in common: what happened, the server, the error."""
    mode, why, error = (str(outcome.get(key) or "") for key in ("mode", "why", "error"))
    if mode == "disabled":
        return ("disabled", "", "")
    if outcome.get("uploaded"):
        return ("uploaded", str(outcome.get("page") or outcome.get("server")).partition("/runs/")[0], "")
    if not _unsynced(record):
        return ("nothing kept", "", error) if error else ("synced", "", "")
    if mode == "online":
        return ("cut off", str(outcome.get("server") or ""), error)
    return (why, str(outcome.get("server") or ""), error)


def _line(kind: tuple[str, ...], cells: list[Record], output_dir: Path) -> str:
    what, where, error = kind
    count = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
    because = f" ({error})" if error else ""
    folder = shlex.quote(str(cells[0].folder)) if len(cells) == 1 else f"{shlex.quote(str(output_dir))}/*"
    later = f"to upload: wandb sync {folder}/wandb/{'run-*' if what == 'cut off' else 'offline-run-*'}"
    return {
        "disabled": "W&B: off (wandb.mode=disabled)",
        "uploaded": f"W&B: {count} at {where}",
        "synced": f"W&B: {count} logged offline and uploaded since",
        "nothing kept": f"W&B: {count} not logged{because}; the records on disk are complete",
        "cut off": f"W&B: {where} did not take all of {count}{because}; {later}",
        "no key": f"W&B: {count} logged offline, since no key is configured (to have one: wandb login); {later}",
        "no answer": f"W&B: {where} did not answer{because}, so {count} logged offline; {later}",
        "key refused": f"W&B: {where} does not accept the key (another one: wandb login --relogin), so {count} logged "
        f"offline; {later}",
    }.get(what, f"W&B: {count} logged offline, as asked (wandb.mode=offline or WANDB_MODE); {later}")


def _unsynced(record: Record) -> list[Path]:
    """The folders of runs that `wandb sync` has not uploaded yet; it leaves a file next to what it has."""
    folders = record.folder.glob("wandb/*run-*")
    return [f for f in folders if any(f.glob("run-*.wandb")) and not any(f.glob("run-*.wandb.synced"))]
