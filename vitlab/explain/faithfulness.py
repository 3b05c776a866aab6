"""How faithful a map is: how fast the model loses a class when what the map marks is removed; explain=faithfulness."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlab.config import Config, ConfigError
from vitlab.core.device import pick_device
from vitlab.core.files import make_folder, write_text
from vitlab.explain.attention import rollout_map
from vitlab.explain.explained_model import Subject
from vitlab.explain.figures import METHOD_TITLES, draw_perturbation_curves, save
from vitlab.explain.methods import relevance
from vitlab.explain.options import ExplainConfig, MethodName
from vitlab.explain.pictures import evaluation_pictures, load_pictures

STEPS = tuple(i / 10 for i in range(11))
"""Shares of the patches that are taken away."""
PERTURBATION = 10
"""Positive and negative perturbation (Chefer et al.) average the accuracy over the shares 0 to 0.9."""


@dataclass(frozen=True)
class Curves:
    """The perturbation curves of a method's maps over N images; `share` (S,) of patches, curves (S, N)."""

    share: Tensor
    most_first: Tensor
    """1 where the class is still the top prediction, the most relevant patches removed first."""
    least_first: Tensor
    """The same, the least relevant patches removed first."""
    deletion: Tensor
    """The class's probability, the most relevant patches removed first (Petsiuk et al., RISE)."""
    insertion: Tensor
    """The class's probability, the most relevant patches given first, onto an empty image."""

    def scores(self) -> dict[str, tuple[float, float]]:
        """Areas under the curves in percent, as (mean over images, standard error).

        `positive` and `deletion`: lower is better. `negative` and `insertion`: higher is better.
        """
        part = slice(0, PERTURBATION)
        areas = {
            "positive": _area(self.most_first[part], self.share[part]),
            "negative": _area(self.least_first[part], self.share[part]),
            "deletion": _area(self.deletion, self.share),
            "insertion": _area(self.insertion, self.share),
        }
        return {name: (float(a.mean()), _standard_error(a)) for name, a in areas.items()}


def _area(curve: Tensor, share: Tensor) -> Tensor:
    """Mean height (N,) of curves (S, N) in percent, by trapezia over the span of `share`."""
    return 100 * torch.trapezoid(curve, share, dim=0) / (share[-1] - share[0])


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")


@torch.no_grad()
def perturbation_curves(
    model: nn.Module, images: Tensor, targets: Tensor, maps: Tensor, *, batch: int = 64, fill: Tensor | None = None
) -> Curves:
    """Curves for images (N, 3, H, W), classes (N,) and maps (N, gh, gw); higher in a map is more relevant.

    Removed patches become `fill` (3, 1, 1), by default 0: the mean colour of normalised images, as in Chefer's
    evaluation. Ties are broken by place.
    """
    maps = maps.to(images.device)
    size = images.shape[-2:]
    empty = torch.zeros(3, 1, 1, device=images.device) if fill is None else fill.to(images.device)
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1).view_as(maps)  # 0: most relevant
    count = rank[0].numel()
    curves: dict[str, list[Tensor]] = {"most_first": [], "least_first": [], "deletion": [], "insertion": []}
    for share in STEPS:
        removed = round(share * count)
        for names, kept in (
            (("most_first", "deletion"), rank >= removed),
            (("least_first",), rank < count - removed),
            (("insertion",), rank < removed),
        ):
            hit, probability = _ask(model, images, targets, kept, empty, size, batch)
            for name in names:
                curves[name].append(hit if name.endswith("first") else probability)
    return Curves(torch.tensor(STEPS), **{name: torch.stack(rows) for name, rows in curves.items()})


def _ask(
    model: nn.Module, images: Tensor, targets: Tensor, kept: Tensor, empty: Tensor, size: torch.Size, batch: int
) -> tuple[Tensor, Tensor]:
    """Whether the class is still first, and its probability, both (N,) on the CPU, with only `kept` patches visible."""
    hits, probabilities = [], []
    for i in range(0, len(images), batch):
        part = slice(i, i + batch)
        visible = F.interpolate(kept[part].unsqueeze(1).to(images.dtype), tuple(size), mode="nearest")
        chances = model(images[part] * visible + empty * (1 - visible)).softmax(-1)
        hits.append(chances.argmax(1) == targets[part])
        probabilities.append(chances.gather(1, targets[part].unsqueeze(1)).squeeze(1))
    return torch.cat(hits).float().cpu(), torch.cat(probabilities).float().cpu()


def random_maps(count: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    """Uniform noise (count, gh, gw): the baseline that every method must beat."""
    return torch.rand(count, *grid, generator=torch.Generator().manual_seed(seed))


def score_table(curves: Mapping[str, Curves]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of text, a row per method."""
    titles = {
        "positive": "positive pert. ↓", "negative": "negative pert. ↑", "deletion": "deletion ↓",
        "insertion": "insertion ↑",
    }  # fmt: skip
    rows = []
    for method, curve in curves.items():
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in curve.scores().values()]
        rows.append([method, *cells])
    return ["method", *titles.values()], rows


PERTURBED_AT_ONCE = 64
SCENES = 256


def measure_faithfulness(
    subjects: Sequence[Subject], options: ExplainConfig, folder: Path, output_dir: str
) -> tuple[list[Path], list[str]]:
    """Measure each checkpoint; returns the files and the tables' lines."""
    files: list[Path] = []
    lines: list[str] = []
    for subject in subjects:
        curves, asked = _curves(subject, options, output_dir)
        count = curves["random"].deletion.shape[1]
        title = f"Faithfulness over {count} images, {asked}\n{subject.label}"
        stem = folder / f"faithfulness_{subject.stem}"
        files += save(draw_perturbation_curves(curves, title=title), stem)
        header, rows = score_table(curves)
        files += _write_table(header, rows, stem)
        lines += [
            f"{subject.label}: {count} images, {asked}; areas in percent, ± standard error",
            *_aligned(header, rows),
        ]
    return files, lines


def _curves(subject: Subject, options: ExplainConfig, output_dir: str) -> tuple[dict[str, Curves], str]:
    restored = subject.restored
    restored.require_classifier("explain=faithfulness")
    size = restored.input_size
    if options.images is None:
        pictures = evaluation_pictures(restored.dataset, size, output_dir, options.num_images)
    else:
        pictures = load_pictures(options.images, restored.dataset, size, output_dir)
    images = subject.inputs(pictures)
    if options.target == "label":
        labels = [p.label for p in pictures if p.label is not None]
        if len(labels) < len(pictures):
            raise ConfigError("explain.target", "label needs images whose class is known; use explain.target=predicted")
        targets, asked = torch.tensor(labels), "for the labelled class"
    else:
        targets, asked = subject.probabilities(images, options.batch).argmax(1), "for the predicted class"
    curves: dict[str, Curves] = {}
    grid = (1, 1)
    for method in options.methods:
        maps = subject.maps(method, images, targets.unsqueeze(1), options)[:, 0]
        grid = (maps.shape[1], maps.shape[2])
        curves[method] = _curve(subject, images, targets, maps)
    curves["random"] = _curve(subject, images, targets, random_maps(len(images), grid))
    return curves, asked


def _curve(subject: Subject, images: torch.Tensor, targets: torch.Tensor, maps: torch.Tensor) -> Curves:
    network = subject.restored.network
    return perturbation_curves(network, images, targets.to(images.device), maps, batch=PERTURBED_AT_ONCE)


def measure_scenes(config: Config, options: ExplainConfig, folder: Path) -> tuple[list[Path], list[str]]:
    """The two-object test: train a small model, then see whether each method points at what it is asked for."""
    from vitlab.explain.synthetic import build_scene_model, draw_scenes, pointing, scene_accuracy, train_scene_model

    device = pick_device(config.device)
    seed = config.cell.seed
    model = train_scene_model(seed, options.synthetic_steps, device=device, report=lambda line: print(line, flush=True))
    untrained = build_scene_model(seed + 1).to(device)
    generator = torch.Generator().manual_seed(99)
    one, two = draw_scenes(SCENES, 1, generator).to(device), draw_scenes(SCENES, 2, generator).to(device)

    def explain(
        network: torch.nn.Module, method: MethodName, images: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        return (
            rollout_map(network, images) if method == "rollout" else relevance(network, images, classes, method=method)
        )

    rows, curves = [], {}
    for method in options.methods:
        trained = pointing(lambda x, c, m=method: explain(model, m, x, c), two)
        noise = pointing(lambda x, c, m=method: explain(untrained, m, x, c), two)
        rows.append(
            [METHOD_TITLES[method], *(f"{v:.3f}" for v in (trained.mass, trained.swap, noise.mass, noise.swap))]
        )
        maps = explain(model, method, one.images, one.classes[:, 0])
        curves[method] = perturbation_curves(model, one.images, one.classes[:, 0], maps)
    grid = (two.patches.shape[2], two.patches.shape[3])
    maps = random_maps(SCENES, grid).to(device)
    curves["random"] = perturbation_curves(model, one.images, one.classes[:, 0], maps)
    chance = pointing(lambda x, c: maps, two)
    rows.append(["random", f"{chance.mass:.3f}", f"{chance.swap:.3f}", "", ""])
    header = ["method", "mass on the object ↑", "swap ↑", "untrained: mass", "untrained: swap"]
    accuracy = f"{100 * scene_accuracy(model, one, 1):.1f} % and {100 * scene_accuracy(model, two, 2):.1f} %"
    title = f"Scenes of objects, seed {seed}: the model names one object, and both of two, in {accuracy} of scenes"
    stem = folder / f"two_objects_seed{seed}"
    files = [*save(draw_perturbation_curves(curves, title=title), stem), *_write_table(header, rows, stem)]
    curve_header, curve_rows = score_table(curves)
    files += _write_table(curve_header, curve_rows, folder / f"two_objects_perturbation_seed{seed}")
    return files, [title, *_aligned(header, rows), "", *_aligned(curve_header, curve_rows)]


def _write_table(header: list[str], rows: list[list[str]], stem: Path) -> list[Path]:
    make_folder(stem.parent)
    table = stem.with_name(stem.name + ".csv")
    content = io.StringIO(newline="")
    csv.writer(content).writerows([header, *rows])
    write_text(table, content.getvalue())
    text = stem.with_name(stem.name + ".md")
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    write_text(text, "\n".join(lines) + "\n")
    return [table, text]


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
