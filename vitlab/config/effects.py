"""A table of the conditions under which a field has an effect, and functions that apply it.

A field without an entry acts in every cell. One that cannot act in a cell has its neutral value there, so that two
spellings of one experiment are one cell; one that a user typed and that acts in none of the cells is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vitlab.config.run_schema import Config
from vitlab.config.schema import GROUPS, CellConfig, DatasetConfig, neutral_value
from vitlab.core.errors import UserError
from vitlab.core.plugins import TRANSFER_SETS

_VITS = re.compile(r"vit_|deit")
"""Names of timm's models that have no batch normalisation; of the others nothing is known here."""
PARTS = ("dataset", "augment", "recipe")
"""What a pre-training has of its own, below `pretrain`."""


@dataclass(frozen=True)
class Acts:
    """`key` acts only where `acts(part, cell)`: `part` is the key's group; `cell` is None where it is not known."""

    key: str
    only: str
    """Completes "acts only …"."""
    acts: Callable[[Any, CellConfig | None], bool]

    @functools.cached_property
    def group(self) -> str:
        return self.key.partition(".")[0]

    @functools.cached_property
    def field(self) -> str:
        return self.key.partition(".")[2]


def evaluates(data: DatasetConfig) -> bool:
    """Whether there are images to evaluate on."""
    return data.num_eval != 0 or data.val_fraction > 0


def _has_files(data: DatasetConfig) -> bool:
    """Whether the images are files of various sizes."""
    return data.kind == "folder" or data.kind in TRANSFER_SETS


RULES = (
    Acts("dataset.root", "with a data set that is read from files, such as dataset=folder",
         lambda d, c: d.kind != "digits"),
    Acts("dataset.table", "with image files, such as dataset=folder", lambda d, c: d.kind == "folder"),
    *(Acts(f"dataset.{name}", "with dataset.table", lambda d, c: bool(d.table))
      for name in ("eval_table", "file_column", "label_column", "split_column")),
    Acts("dataset.stage", "with image files in tars, parquet files or a pack (dataset=folder and its like)",
         lambda d, c: d.kind == "folder" or bool(d.pack or d.pack_id)),
    Acts("dataset.class_list", "with a tree of image files, such as dataset=folder", lambda d, c: d.kind == "folder"),
    Acts("dataset.image_size", "where all images have one size (a claim that is compared with the data)",
         lambda d, c: not _has_files(d) and d.kind != "fractal"),
    Acts("dataset.crop_scale", "with dataset.train_crop=random_resized", lambda d, c: d.train_crop == "random_resized"),
    Acts("dataset.crop_ratio", "with dataset.train_crop=random_resized", lambda d, c: d.train_crop == "random_resized"),
    Acts("dataset.pad", "with dataset.train_crop=pad", lambda d, c: d.train_crop == "pad"),
    Acts("dataset.eval_crop", "where there are images to evaluate on", lambda d, c: evaluates(d)),
    Acts("dataset.eval_interpolation", "where images to evaluate on are resized",
         lambda d, c: _resizes_to_evaluate(d, c)),
    Acts("dataset.subset_seed", "with dataset.train_per_class, or dataset.train_fraction below 1",
         lambda d, c: bool(d.train_per_class) or d.train_fraction < 1),
    Acts("dataset.bad_images", "with image files (dataset=folder and its like, or a pack)",
         lambda d, c: _has_files(d) or bool(d.pack or d.pack_id)),
    Acts("dataset.eval_split", "with image files that have a split to evaluate on, without dataset.val_fraction",
         lambda d, c: d.kind == "folder" and d.num_eval != 0 and d.val_fraction == 0),
    Acts("dataset.grey16", "with image files (dataset=folder and its like)", lambda d, c: _has_files(d)),
    Acts("dataset.exif", "with image files (dataset=folder and its like)", lambda d, c: _has_files(d)),
    Acts("augment.mixup", "with augment.mixup_prob above 0 and, where cutmix is on, augment.mixup_switch_prob below 1",
         lambda a, c: a.mixup_prob > 0 and not (a.cutmix and a.mixup_switch_prob == 1)),
    Acts("augment.cutmix", "with augment.mixup_prob above 0 and, where mixup is on, augment.mixup_switch_prob above 0",
         lambda a, c: a.mixup_prob > 0 and not (a.mixup and a.mixup_switch_prob == 0)),
    Acts("augment.mixup_prob", "with mixup or cutmix", lambda a, c: a.mixes),
    Acts("augment.mix_group", "with mixup or cutmix", lambda a, c: a.mixes),
    Acts("augment.mixup_switch_prob", "with both mixup and cutmix", lambda a, c: a.mixup > 0 and a.cutmix > 0),
    Acts("augment.interpolation", "where images are resized or rotated", lambda a, c: c is None or _resamples(a, c)),
    Acts("recipe.lr_base_batch", "with recipe.lr_rule=linear", lambda r, c: r.lr_rule == "linear"),
    Acts("recipe.betas", "with recipe.optimizer=adamw", lambda r, c: r.optimizer == "adamw"),
    Acts("recipe.eps", "with recipe.optimizer=adamw", lambda r, c: r.optimizer == "adamw"),
    Acts("recipe.momentum", "with recipe.optimizer=sgd", lambda r, c: r.optimizer == "sgd"),
    Acts("recipe.min_lr", "with recipe.schedule=cosine", lambda r, c: r.schedule == "cosine"),
    Acts("recipe.warmup_lr", "with recipe.warmup_epochs above 0", lambda r, c: r.warmup_epochs > 0),
    Acts("recipe.schedule_by", "with recipe.schedule=cosine or recipe.warmup_epochs above 0",
         lambda r, c: r.schedule == "cosine" or r.warmup_epochs > 0),
    Acts("recipe.ema_warmup", "with recipe.ema_decay above 0", lambda r, c: r.ema_decay > 0),
    Acts("recipe.drop_path", "with recipe.train_mode=train", lambda r, c: r.train_mode == "train"),
    Acts("recipe.train_mode", "with recipe.drop_path above 0, or a model with batch normalisation",
         lambda r, c: r.drop_path > 0 or (c is not None and not _VITS.match(c.model.name))),
    Acts("recipe.eval_every", "where there are images to evaluate on", lambda r, c: c is None or evaluates(c.dataset)),
    Acts("pretrain.path", "with pretrain=checkpoint", lambda p, c: p.kind == "checkpoint"),
    Acts("pretrain.digest", "with pretrain=checkpoint", lambda p, c: p.kind == "checkpoint"),
    Acts("pretrain.weights", "with a start that is trained (pretrain=checkpoint, pretrain=fractaldb, …)",
         lambda p, c: p.kind != "scratch"),
    Acts("pretrain.keep_head", "with a start that is trained and has as many classes as the data set",
         lambda p, c: p.kind != "scratch" and (c is None or _same_head(c))),
    Acts("pretrain.seed", "with a pre-training (pretrain=fractaldb, …)", lambda p, c: p.kind == "cell"),
    *(Acts(f"pretrain.{part}", "with a pre-training (pretrain=fractaldb, …)", lambda p, c: p.kind == "cell")
      for part in PARTS),
)  # fmt: skip
"""Field → when it acts. A pre-training's own parts obey the same rules, below `pretrain`."""

NAMES = ("dataset.name", "dataset.version")
"""Fields that say which data are meant: they are compared with nothing and change no figure, and are part of a name."""
CLAIMS = ("dataset.num_classes", "dataset.num_train", "dataset.num_eval", "dataset.image_size", "dataset.pack_id")
"""Fields that say what the data hold: they are compared with the data, and refused where these say otherwise."""
_SYNONYMS = {("recipe", "clip_grad"): {0.0: None}}
"""Values that mean the same → the one that is used."""
OF_TRAINING = {
    "weights": "acts only with task=evaluate or task=explain; whose weights to start from is pretrain.weights"
}


def _resamples(augment: Any, cell: CellConfig) -> bool:
    data = cell.dataset
    return bool(augment.auto_augment) or data.train_crop == "random_resized" or data.image_size != cell.model.image_size


def _resizes_to_evaluate(data: DatasetConfig, cell: CellConfig | None) -> bool:
    if cell is None or data.image_size is None:
        return evaluates(data)
    return evaluates(data) and int(cell.model.image_size / data.eval_crop) != data.image_size


def _same_head(cell: CellConfig) -> bool:
    """Whether the classifier of the start may fit; of a checkpoint's nothing is known here."""
    old = cell.pretrain.dataset.num_classes if cell.pretrain.dataset else None
    return None in (old, cell.dataset.num_classes) or old == cell.dataset.num_classes


@functools.cache
def _rules_of(group: str) -> tuple[Acts, ...]:
    return tuple(rule for rule in RULES if rule.group == group)


def settle_group(group: str, part: Any, cell: CellConfig | None = None) -> Any:
    """One group of a cell with its idle fields at their neutral values; `cell` None: an option by itself."""
    for (of, name), same in _SYNONYMS.items():
        if of == group and getattr(part, name) in same:
            part = dataclasses.replace(part, **{name: same[getattr(part, name)]})
    for rule in _rules_of(group):
        if not rule.acts(part, cell):
            neutral = neutral_value(type(part), rule.field)
            if getattr(part, rule.field) != neutral:
                part = dataclasses.replace(part, **{rule.field: neutral})
    if group == "pretrain" and cell is None:
        own = {name: settle_group(name, value) for name in PARTS if (value := getattr(part, name)) is not None}
        part = dataclasses.replace(part, **own)
    return part


def settle(cell: CellConfig) -> CellConfig:
    """The cell with every field that cannot act in it at its neutral value."""
    while True:
        before = cell
        for group in GROUPS:
            part = settle_group(group, getattr(cell, group), cell)
            if part is not getattr(cell, group):
                cell = dataclasses.replace(cell, **{group: part})
        if cell.pretraining is not None:
            own = settle(cell.pretraining)
            start = dataclasses.replace(cell.pretrain, **{part: getattr(own, part) for part in PARTS})
            if start != cell.pretrain:
                cell = dataclasses.replace(cell, pretrain=start)
        if cell == before:
            return cell


def idle_fields(cell: CellConfig) -> dict[str, str]:
    """The fields that cannot act in `cell` as it is given → "acts only …"."""
    idle = {r.key: f"acts only {r.only}" for r in RULES if not r.acts(getattr(cell, r.group), cell)}
    if cell.pretraining is not None:
        own = idle_fields(cell.pretraining)
        idle |= {f"pretrain.{key}": only for key, only in own.items() if key.partition(".")[0] in PARTS}
    return idle


def idle_among(typed: Collection[str], idle: Mapping[str, str]) -> dict[str, str]:
    """Those of the `typed` keys that are `idle`, or lie below one that is → "acts only …"."""
    found = {key: next((idle[k] for k in (key, *_above(key)) if k in idle), None) for key in typed}
    return {key: only for key, only in found.items() if only is not None}


def require_effect(configs: Collection[Config]) -> None:
    """Raise UserError for keys that were typed and act in none of the cells for which they were typed."""
    found: dict[str, str] = {}
    for config in configs:
        found |= config.idle
    wrong = [key for key in found if all(key in c.idle for c in configs if key in c.typed)]
    if wrong:
        it, them = ("it changes", "it") if len(wrong) == 1 else ("they change", "them")
        raise UserError(f"{'; '.join(f'{key} {found[key]}' for key in wrong)}: {it} nothing here; leave {them} out")


def _above(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
