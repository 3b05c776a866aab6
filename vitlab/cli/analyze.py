"""The work of analyze.py: pick the source and the layout, write the table in every format, print it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from vitlab.analysis.compare_cells import describe_difference
from vitlab.analysis.formats.text import classes_csv, to_markdown
from vitlab.analysis.reference import compare_with_reference, read_reference
from vitlab.analysis.sources.deit_logs import collect_logs
from vitlab.analysis.sources.records import Read, collect
from vitlab.analysis.sources.wandb_runs import collect_wandb
from vitlab.analysis.table import build_table
from vitlab.analysis.table_model import Context, Table, TableSpec
from vitlab.cli.outputs import inside_a_record, is_tables, require_folder
from vitlab.cli.values import typed
from vitlab.config import ConfigError, build
from vitlab.config.choices import compose_group
from vitlab.config.paths import with_whole_paths
from vitlab.core.comparisons import Rule
from vitlab.core.files import clean_name, make_folder, require_name, write_text
from vitlab.core.metrics import figure
from vitlab.core.picture_files import save_figure
from vitlab.core.plugins import FORMATS, import_plugins
from vitlab.study.record import Record
from vitlab.study.studies import read_study
from vitlab.study.sync import sync


@dataclass(frozen=True)
class AnalyzeConfig:
    """The keys of conf/analyze.yaml."""

    source: Literal["runs", "wandb", "deit_logs"] = "runs"
    output_dir: str = "runs"
    study: str | None = None
    tables_dir: str = "tables"
    baseline: str | None = None
    statistics: Rule | None = None
    margin: float | None = None
    columns: tuple[Literal["scatter"], ...] = ()
    per_class: bool = False
    pairs: tuple[tuple[str, ...], ...] | None = None
    reference: str | None = None
    metric: str | None = None
    plugins: tuple[str, ...] = ()
    strict: bool = False
    mixed_data: bool = False
    diff: tuple[str, ...] | None = None
    entity: str | None = None
    project: str = "vitlab"
    filters: Mapping[str, object] | None = None
    refresh: bool = False
    sync: bool = False
    watch: bool = False
    logs: str | tuple[str, ...] | None = None


def analyze(composed: Mapping[str, Any], table_name: str | None) -> list[str]:
    """Do what the composed configuration asks; returns the lines to print.

    Raises UserError, also where `strict=true` found gaps.
    """
    values = with_whole_paths(composed)
    layout = values.pop("table", None)
    config: AnalyzeConfig = build(AnalyzeConfig, {k: v for k, v in values.items() if k != "hydra"}, "")
    import_plugins(config.plugins)
    if config.study is not None and config.source == "runs":
        require_name("study", config.study, "study")
    if config.watch:
        from vitlab.cli.live_page import watch_study  # which builds on this module

        return watch_study(config, layout, table_name)
    if config.sync:
        return sync(Path(config.output_dir), config.study, config.entity, config.project)
    if config.diff is not None:
        if len(config.diff) != 2:
            raise ConfigError("diff", f"takes two identities, got {len(config.diff)}; for instance diff='[c1…,c2…]'")
        return describe_difference(Path(config.output_dir), *config.diff)
    if config.source == "runs" and inside_a_record(Path(config.tables_dir), Path(config.output_dir)):
        raise ConfigError(
            "tables_dir",
            f"{config.tables_dir!r} is where the records lie that are read; give another folder, for instance "
            + typed("tables_dir", f"{config.output_dir}/tables"),
        )
    require_folder("tables_dir", Path(config.tables_dir), "tables", is_tables, {})
    table, frame = tabulate(config, layout, table_name)
    lines = write_table(table, frame, Path(config.tables_dir))
    refuse_flags(config, table)
    return lines


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Inside, no garbage is collected: 10,000 records hold none, and looking for it takes a tenth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@without_collection()
def tabulate(
    config: AnalyzeConfig, layout: Mapping[str, Any] | None, table_name: str | None, read: Read | None = None
) -> tuple[Table, pd.DataFrame]:
    """The table that is asked for, and the cells that it was made from, whose records are read by `read`."""
    frame, study = load(config, None if layout is None else layout.get("study"), read)
    recorded = read_study(Path(config.output_dir), study) if config.source == "runs" else None
    named = (recorded or {}).get("table") if config.source == "runs" else _agreed(frame, "table")
    spec = table_spec(layout, table_name, study, named, config)
    table = build_table(frame, spec)
    file = config.reference or spec.reference
    if file:
        table = compare_with_reference(table, read_reference(file), asked=config.reference is not None)
    return table, frame


def refuse_flags(config: AnalyzeConfig, table: Table) -> None:
    """Raise ConfigError where `strict=true` found gaps or confounds."""
    if config.strict and table.flags:
        raise ConfigError("strict", "the table has gaps or confounds: " + "; ".join(table.flags))


def load(config: AnalyzeConfig, table_study: str | None, read: Read | None = None) -> tuple[pd.DataFrame, str]:
    """The cells from the chosen source, and the study's name."""
    folder = Path(config.output_dir)
    if config.source == "deit_logs":
        logs = (config.logs,) if isinstance(config.logs, str) else config.logs or ()
        return collect_logs([Path(log) for log in logs]), "deit_logs"
    if config.source == "wandb":
        study = config.study or table_study
        found = collect_wandb(config.entity, config.project, study, folder, config.refresh, config.filters)
        return found, study or config.project
    study = study_of(config, table_study)
    return collect(folder, study, read), study


def study_of(config: AnalyzeConfig, table_study: str | None) -> str:
    """The name of the study that is meant: the one given, the table's, or the last one. Raises ConfigError for none."""
    study = config.study or table_study
    if study is None:
        last = read_study(Path(config.output_dir))
        if last is None:
            raise ConfigError(
                "output_dir", f"no study in {config.output_dir!r} yet; train one: python run.py -m augment=none,randaug"
            )
        study = str(last["name"])
    return study


def _agreed(frame: pd.DataFrame, column: str) -> str | None:
    """The value of a column where all cells have the same; else None."""
    values = set(frame[column]) if column in frame else set()
    only = values.pop() if len(values) == 1 else None
    return only if isinstance(only, str) else None


def table_spec(
    layout: Mapping[str, Any] | None, name: str | None, study: str, named: str | None, config: AnalyzeConfig
) -> TableSpec:
    """The table's layout: the one asked for, the one that the study `named`, or one for whatever varies."""
    if layout is None and named:
        layout, name = compose_group("table", named), named
    if layout is None:
        factor = "model" if config.source == "deit_logs" else None  # a log holds only its name
        ticks = {} if factor else DEFAULT_TICKS
        spec = TableSpec(clean_name(study, "table"), f"Study {study}", study=study, factor=factor, ticks=ticks)
    else:
        assert name is not None
        spec = build(TableSpec, {"name": name, **layout}, "table")
        require_name("table.name", spec.name, "table")
    pairs = spec.pairs if config.pairs is None else config.pairs
    changes: dict[str, Any] = {"pairs": pairs, "mixed_data": config.mixed_data or spec.mixed_data}
    if config.baseline in ("block", "one"):
        changes["against"] = config.baseline
    elif config.baseline is not None:
        changes["baseline"] = config.baseline
    if config.metric is not None:
        changes["metric"] = config.metric
    if config.statistics is not None:
        changes["statistics"] = config.statistics
    changes["columns"] = tuple(dict.fromkeys((*spec.columns, *config.columns)))
    changes["per_class"] = config.per_class or spec.per_class
    if config.margin is not None:
        changes["margin"] = config.margin
    figure(changes.get("metric", spec.metric))  # refuses an unknown one
    return dataclasses.replace(spec, **changes)


DEFAULT_TICKS = {
    "Auto/RandAug": "augment.auto_augment", "Mixup": "augment.mixup", "CutMix": "augment.cutmix",
    "Jitter": "augment.color_jitter", "Erase": "augment.erase", "Smoothing": "augment.smoothing",
}  # fmt: skip


@without_collection()
def write_table(table: Table, frame: pd.DataFrame, folder: Path) -> list[str]:
    """Write all formats and figures; returns the Markdown and a line naming the files."""
    from vitlab.analysis.formats.plots import draw_classes, draw_cost, draw_curves, draw_differences

    make_folder(folder)
    context = context_of(table, frame, folder)
    texts = {ending: FORMATS[ending](table, context) for ending in FORMATS.names()}
    for ending, text in texts.items():
        write_text(folder / f"{table.name}.{ending}", text)
    figures = {
        "differences": draw_differences(table),
        "curves": draw_curves(context.curves, table.figure, len(table.datasets)),
        "cost": draw_cost(table),
    }
    if table.classes:
        write_text(folder / f"{table.name}_classes.csv", classes_csv(table))
        figures["classes"] = draw_classes(table)
    for name, drawn in figures.items():
        save_figure(drawn, folder / f"{table.name}_{name}")
    return [
        to_markdown(table),
        f"wrote {folder / table.name}.{{{','.join(texts)}}} and "
        f"{folder / table.name}_{{{','.join(figures)}}}.{{png,pdf}}; next: look at {folder / table.name}.html",
    ]


def context_of(table: Table, frame: pd.DataFrame, folder: Path) -> Context:
    """What a file in `folder` holds in addition to the table."""
    links = {str(row["id"]): _link(row, folder) for row in frame.to_dict("records")}
    return Context(_provenance(frame), _curves(table, frame), links)


def _provenance(frame: pd.DataFrame) -> str:
    """One line on what the table was made from; the same for the same cells."""
    commits = sorted({str(c)[:9] for c in frame["commit"].dropna()}) if "commit" in frame else []
    return f"vitlab: {len(frame)} cells ({' '.join(sorted(frame['id']))}); code {', '.join(commits) or 'not recorded'}"


def _curves(table: Table, frame: pd.DataFrame) -> dict[str, list[list[dict[str, Any]]]]:
    folders = dict(zip(frame["id"], frame["folder"], strict=True)) if "folder" in frame else {}
    rows = dict(zip(frame["id"], frame["rows"], strict=True)) if "rows" in frame else {}

    def of(identity: str) -> list[dict[str, Any]]:
        kept = rows.get(identity)
        if isinstance(kept, str):
            return json.loads(kept)
        folder = folders.get(identity)
        return Record(Path(folder)).rows() if isinstance(folder, str) else []

    several = len(table.datasets) > 1
    return {
        f"{row.label} ({dataset})" if several else row.label: [of(i) for i in entry.ids]
        for row in table.rows
        for dataset, entry in row.entries.items()
    }


def _link(row: Mapping[str, Any], folder: Path) -> str:
    if isinstance(row.get("url"), str):
        return str(row["url"])
    target = row.get("folder")
    if not isinstance(target, str):
        return ""
    return os.path.relpath(target, folder)
