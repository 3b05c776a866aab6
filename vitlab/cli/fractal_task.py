"""`task=fractaldb`: generate a FractalDB's geometry and, optionally, export its images and draw a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitlab.cli.outputs import read_places, require_folder, require_picture
from vitlab.config import Config, ConfigError, FractalConfig, build
from vitlab.core.files import default_cache_dir
from vitlab.data.formula.image_export import MANIFEST, Format, Layout, contact_sheet, export
from vitlab.data.formula.source import FractalSource


@dataclass(frozen=True)
class FractaldbConfig:
    """The keys of `fractaldb` in conf/task/fractaldb.yaml."""

    export: str | None = None
    """Folder for image files."""
    layout: Layout = "train"
    format: Format = "png"
    preview: str | None = None
    """File for a contact sheet."""


def run_fractaldb(config: Config) -> list[str]:
    """Do what `config.options` ask with the FractalDB that is the run's data set; returns the lines to print.

    Raises ConfigError where the data set is no generated FractalDB, and as `run_fractaldb_task` does.
    """
    options: FractaldbConfig = build(FractaldbConfig, config.options, "fractaldb")
    dataset = config.cell.dataset
    if dataset.fractal is None:
        raise ConfigError("dataset", f"{dataset.name} is not generated; give dataset=fractaldb1k or fractaldb60")
    reads = read_places(config)
    if options.export:
        require_folder("fractaldb.export", Path(options.export), "fractaldb", lambda f: (f / MANIFEST).exists(), reads)
    if options.preview:
        require_picture("fractaldb.preview", Path(options.preview), reads)
    return run_fractaldb_task(
        dataset.fractal,
        default_cache_dir(),
        Path(options.export) if options.export else None,
        options.layout,
        options.format,
        Path(options.preview) if options.preview else None,
        threads=max(config.threads, config.workers),
        name=dataset.name,
    )


def run_fractaldb_task(
    spec: FractalConfig,
    cache_dir: Path,
    export_to: Path | None,
    layout: Layout = "train",
    format: Format = "png",
    preview: Path | None = None,
    threads: int = 1,
    name: str = "fractaldb1k",
) -> list[str]:
    """Generate the geometry and, optionally, an export and a contact sheet. Returns the lines to print.

    Raises ConfigError for options that no FractalDB can be made of, DiskError where something cannot be written.
    """
    source = FractalSource(spec, cache_dir, threads=threads)
    lines = [f"geometry of {spec.categories} categories in {source.folder}"]
    if export_to is not None:
        tree = export(source, export_to, layout=layout, format=format, threads=threads)
        lines.append(f"{len(source)} images of {spec.categories} classes in {tree}")
        if format == "png":
            root = export_to if layout == "train" else tree
            lines.append(f"train on these files: python run.py dataset={name} dataset.root={root}")
    if preview is not None:
        contact_sheet(source, preview)
        lines.append(f"contact sheet in {preview}")
    if export_to is None:
        lines.append(f"training needs no more than this: python run.py dataset={name}")
    return lines
