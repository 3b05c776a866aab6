"""`task=explain`: draw what checkpoints look at, under `output_dir/explain/`."""

from __future__ import annotations

from pathlib import Path

from vitlab.cli.outputs import is_figures, read_places, require_folder
from vitlab.config import Config, ConfigError
from vitlab.core.wandb import require_key
from vitlab.explain.options import named_checkpoints, parse_options


def run_explain(config: Config) -> list[str]:
    """Draw what the options ask for; returns the lines to print. Raises ConfigError, before torch is imported where
    the options are wrong or a checkpoint is not there, else naming the checkpoint or image."""
    options = parse_options(config.options)
    require_key(config.wandb.mode)
    if options.output:
        named = (options.images,) if isinstance(options.images, str) else options.images or ()
        shown = {f"explain.images={name}": Path(name) for name in named if Path(name).is_dir()}
        require_folder("explain.output", Path(options.output), "figures", is_figures, read_places(config) | shown)
    names = [] if options.synthetic else named_checkpoints(config)

    import torch

    from vitlab.core.wandb import log_figures
    from vitlab.explain.explained_model import load_subjects
    from vitlab.explain.faithfulness import measure_faithfulness, measure_scenes
    from vitlab.explain.features import draw_features
    from vitlab.explain.position import draw_position
    from vitlab.explain.reports import draw_panels
    from vitlab.study.provenance import require_evaluated_data

    torch.set_num_threads(config.threads)
    folder = Path(options.output) if options.output else Path(config.output_dir) / "explain"
    lines: list[str] = []
    subjects = []
    if options.synthetic:
        if config.checkpoint is not None:
            raise ConfigError("checkpoint", "explain.synthetic=true trains a model of its own and reads none")
        files, lines = measure_scenes(config, options, folder)
    else:
        options = parse_options(config.options, len(names))
        subjects = load_subjects(config, options, names)
        lines += [line for subject in subjects for line in subject.restored.describe()]
        for subject in subjects if options.reads_evaluation_images else ():
            require_evaluated_data(subject.restored.weights.path, subject.restored.dataset)
        if options.kind == "position":
            files = draw_position(subjects, options, folder, config.output_dir)
        elif options.kind == "faithfulness":
            files, table = measure_faithfulness(subjects, options, folder, config.output_dir)
            lines += table
        elif options.kind == "features":
            files, said = draw_features(subjects, options, folder, config.output_dir)
            lines += said
        else:
            files = draw_panels(subjects, options, folder, config.output_dir)
    wandb = config.wandb
    log_figures(
        wandb.mode, [f for f in files if f.suffix == ".png"], project=wandb.project, entity=wandb.entity,
        name=f"explain-{options.kind}", job_type="explain", tags=["explain", *wandb.tags],
        config={"explain": dict(config.options), "checkpoint": config.checkpoint},
    )  # fmt: skip
    figures = [str(f) for f in files if f.suffix in (".png", ".md")]
    rest = len(files) - len(figures)
    if (
        options.images is None
        and options.kind in ("rollout", "features", "relevance")
        and subjects[0].restored.model.image_size < 64
    ):
        lines.append("these are photographs; the checkpoint's own evaluation images: explain.images=eval")
    return [
        *lines,
        *(f"wrote {name}" for name in figures),
        f"and {rest} more there: pdf, raw maps (.npy), tables",
        *_next(options.kind, all(subject.restored.num_classes for subject in subjects)),
    ]


def _next(kind: str, classifies: bool) -> list[str]:
    """Suggest the next command."""
    if not classifies:
        following = {"position": "explain=features", "rollout": "explain=features", "features": "explain=position"}
        return [f"next: {following[kind]}"] if kind in following else []
    following = {
        "position": "explain=rollout, or explain=relevance for a class of your choice",
        "rollout": "explain=relevance explain.top_k=3, or explain.compare=true for all methods",
        "features": "explain=relevance for a class of your choice",
        "relevance": "explain.compare=true for all methods side by side; explain=faithfulness measures them",
        "faithfulness": "explain=relevance explain.method=… with the method that did best",
    }
    return [f"next: {following[kind]}"]
