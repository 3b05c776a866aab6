"""`task=export`: a checkpoint as timm or transformers reads it, with a model card, in a folder or on the hub."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vitlab.cli.outputs import inside_a_record, read_places, require_folder
from vitlab.config import Config, ConfigError, build, find_checkpoint, plain
from vitlab.config.schema import GROUPS
from vitlab.core.errors import UserError
from vitlab.core.files import make_folder, write_text
from vitlab.core.hub import require_token, upload
from vitlab.core.integrity import read_mapping
from vitlab.models.export import WEIGHTS, export_timm, export_transformers
from vitlab.models.restore import Restored, restore

_MARK = "made by vitlab (task=export)"


@dataclass(frozen=True)
class ExportConfig:
    """The keys of `export` in conf/task/export.yaml."""

    to: str | None = None
    """A new folder, or one of an earlier export."""
    format: Literal["timm", "transformers"] = "timm"
    push: str | None = None
    """USER/NAME on the Hugging Face hub; null: the folder stays here."""


def run_export(config: Config) -> list[str]:
    """Write the checkpoint that `config.checkpoint` names; returns the lines to print.

    Raises ConfigError for a checkpoint that cannot be read, a model that the format cannot hold, or a folder that
    holds something else.
    """
    options: ExportConfig = build(ExportConfig, config.options, "export")
    if len(config.checkpoints) != 1:
        raise ConfigError("checkpoint", "task=export writes one; give a file, a cell's folder or its identity")
    if not options.to:
        raise ConfigError("export.to", "a folder is needed; give export.to=FOLDER")
    folder = Path(options.to)
    source = find_checkpoint(config.checkpoints[0], config.output_dir)
    reads = read_places(config)
    if (source.parent / "config.yaml").exists() or source.parent.resolve() == folder.resolve():  # a cell's, or itself
        reads["checkpoint"] = source.parent
    require_folder("export.to", folder, "export", _is_export, reads)
    if inside_a_record(folder, Path(config.output_dir)):
        raise ConfigError("export.to", f"{options.to!r} is among the records; give another folder")
    if options.push:
        require_token(options.push, "export.push")
    restored = restore(config, config.checkpoints[0])
    make_folder(folder)
    write = export_timm if options.format == "timm" else export_transformers
    write(restored, folder)
    write_text(folder / "README.md", model_card(config, restored, options))
    lines = [*restored.describe(), f"wrote {folder}: config.json, {WEIGHTS}, README.md"]
    if options.push:
        lines.append(f"uploaded to {upload(folder, options.push, 'export.push')}")
    return [*lines, f"to read it: {_loading(options, str(folder))}"]


def _is_export(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and _MARK in card.read_text(encoding="utf-8", errors="replace")


def _loading(options: ExportConfig, folder: str | None) -> str:
    """The Python that reads the folder; None: from the hub, where it is there, else from FOLDER."""
    if options.format == "timm":
        place = f"local-dir:{folder or 'FOLDER'}" if folder or not options.push else f"hf-hub:{options.push}"
        return f"timm.create_model({place!r}, pretrained=True)"
    return f"transformers.AutoModelForImageClassification.from_pretrained({folder or options.push or 'FOLDER'!r})"


def model_card(config: Config, restored: Restored, options: ExportConfig) -> str:
    """README.md of the folder: the cell's result, its configuration, and the command that trains it again."""
    record = restored.weights.path.parent
    about = read_mapping(record / "config.yaml", "") if (record / "config.yaml").exists() else None
    head = {"library_name": options.format, "tags": ["image-classification", "vitlab"]}
    name = str((about or {}).get("name") or restored.weights.path.stem)
    height, width = restored.input_size
    lines = [
        "---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {name}", "", f"{restored.model.name}, "
        f"{height} x {width} pixels, {restored.num_classes} classes ({restored.dataset.name}); {_MARK}.", "",
        "```python", "import timm" if options.format == "timm" else "import transformers", "",
        f"model = {_loading(options, None)}",
        "```", "", "Pictures: shorter side to "
        f"{int(max(height, width) / restored.dataset.eval_crop)} ({restored.dataset.eval_interpolation}), "
        f"central {height} x {width}, mean "
        f"{list(restored.dataset.mean)}, std {list(restored.dataset.std)}.", "",
    ]  # fmt: skip
    if about is None:
        origin = f"From {restored.weights.path.name} ({restored.weights.kind})."
        return "\n".join([*lines, origin, *restored.weights.chosen, *restored.weights.said, ""])
    lines += _results(record, about, config)
    if command := _command(record, about):
        lines += ["## To train it again", "", "```", command, "```", ""]
    text = yaml.safe_dump(plain(about.get("experiment") or {}), sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, "## Configuration", "", "```yaml", text.strip(), "```", ""])


def _results(record: Path, about: dict[str, Any], config: Config) -> list[str]:
    """The cell's row."""
    result = read_mapping(record / "result.json", "") or {}
    figures = (result.get("ema") or {}).get("last") if config.weights == "ema" else result.get("last")
    if not isinstance(figures, dict) or "top1" not in figures:
        return ["Not trained to its end.", ""]
    labels = about.get("labels") or {}
    columns = {
        "cell": about.get("id", ""), **{group: labels[group] for group in GROUPS if group in labels},
        "seed": (about.get("experiment") or {}).get("seed", 0), "epoch": figures.get("epoch", ""),
        "top-1 (%)": f"{figures['top1']:.2f}", "top-5 (%)": f"{figures['top5']:.2f}", "loss": f"{figures['loss']:.4f}",
    }  # fmt: skip
    row = [f"| {' | '.join(map(str, part))} |" for part in (columns, ["---"] * len(columns), columns.values())]
    return ["## Result", "", f"The last epoch, {config.weights} weights.", "", *row, ""]


def _command(record: Path, about: dict[str, Any]) -> str | None:
    """The command that trains this cell, by the overrides of a study that lists it."""
    for file in sorted((record.parent / "studies").glob("*.json")):
        try:
            cells = (read_mapping(file, "") or {}).get("cells") or []
        except UserError:
            continue
        for cell in cells:
            if isinstance(cell, dict) and cell.get("id") == about.get("id"):
                return shlex.join(["python", "run.py", *map(str, cell.get("overrides") or [])])
    return None
