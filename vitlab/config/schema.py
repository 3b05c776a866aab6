"""The typed schema of a cell: every key of its groups, its type, neutral default and range, written once.

0 or null means off. The files under `conf/` hold values; nothing here reads them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


SEEDS = 2**63 - 1
"""The largest seed: what every generator takes (torch's are signed)."""


def number(default: Any = dataclasses.MISSING, *, low: float | None = None, high: float | None = None) -> Any:
    """A field that holds a number within these bounds."""
    return field(default=default, metadata={"low": low, "high": high})


@functools.cache
def neutral_value(cls: type, name: str) -> Any:
    """The value of a field that changes nothing: its `neutral`, where that is not its default."""
    (found,) = (f for f in dataclasses.fields(cls) if f.name == name)
    return found.metadata.get("neutral", found.default)


def _speed(default: Any, *, low: float | None = None) -> Any:
    """A field that changes speed, place or bookkeeping, never the numbers: it is not part of a cell's identity."""
    return field(default=default, metadata={"low": low, "identity": False})


def _later(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A field that came after cells had been trained: it is part of an identity only where it is not `default`, which
    means what was done before there was a choice, and must never change."""
    return field(default=default, metadata={"neutral": default, "low": low, "high": high})


@dataclass(frozen=True)
class ModelConfig:
    """A Vision Transformer: timm's architecture `name`, with the sizes given here in place of timm's own."""

    name: str
    image_size: int = number(224, low=1)
    """Side of the square input in pixels."""
    patch_size: int | None = number(None, low=1)
    embed_dim: int | None = number(None, low=1)
    depth: int | None = number(None, low=1)
    num_heads: int | None = number(None, low=1)
    grad_checkpointing: bool = _speed(False)


@dataclass(frozen=True)
class FractalConfig:
    """How a FractalDB is generated (Kataoka et al., "Pre-training without Natural Images", ACCV 2020)."""

    categories: int = number(1000, low=1, high=1_000_000)
    instances: int = number(1000, low=1, high=1_000_000)
    """Images per category."""
    image_size: int = number(362, low=16, high=2048)
    """Side in pixels; 6 on each edge stay empty."""
    num_points: int = number(200_000, low=1000, high=1 << 26)
    threshold: float = number(0.2, low=0, high=0.38)
    """Smallest share of filled pixels for a category to be accepted; the search's 100,000 points fill at most 0.381."""
    degenerate: Literal["keep", "resample"] = "keep"
    fresh_masks: bool = False
    """Draw new 3x3 masks every epoch instead of one set for good."""
    search_seed: int = number(1, low=0, high=2**32 - 1)
    mask_seed: int = number(0, low=0, high=SEEDS)


def share(count: int, fraction: float) -> int:
    """The number of images in a fraction of `count`."""
    return round(count * fraction)


FROM_ROOT = "from_root"
"""The name of a data set that takes its folder's (see `parse.named_after_folder`)."""


@dataclass(frozen=True)
class DatasetConfig:
    """A data set: where its images come from, its statistics, and how an image becomes a square input."""

    name: str
    kind: str
    """Who reads it: digits, fashion_mnist, cifar10, cifar100, stl10, svhn, folder, fractal, or a plugin's."""
    num_classes: int | None = number(None, low=1)
    num_train: int | None = number(None, low=1)
    """Images of the training split. Null (folder): read from the recorded class list."""
    num_eval: int | None = number(None, low=0)
    """Images of the evaluation split; 0: there is none."""
    version: str = "1"
    """Raised when the same name would yield other images (a split, a rendering)."""
    root: str | None = _speed(None)
    table: str | None = _speed(None)
    """CSV, TSV or parquet file that labels the files in `root`."""
    eval_table: str | None = _speed(None)
    """A second one, of the images to evaluate on."""
    file_column: str | None = _speed(None)
    """Column of `table` with the files' names; null: the one that is usually called so."""
    label_column: str | None = _speed(None)
    split_column: str | None = _speed(None)
    pack: str | None = _speed(None)
    stage: str | None = _speed(None)
    """A folder on a disk of the node, to which tars, parquet files or a pack are copied once and read from; a variable
    in it, such as $TMPDIR, is looked up on the node."""
    pack_id: str | None = None
    """Fingerprint of the pack, read from its manifest."""
    class_list: str | None = _speed(None)
    """File of a recorded class list, so that a plan needs no data."""
    image_size: int | None = number(None, low=1)
    """Native side in pixels of data sets whose images all have one size."""
    verify: Literal["sizes", "contents"] = _speed("sizes")
    """How the files are compared with those that a record was made with: by names and sizes, or by every byte."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    train_crop: Literal["random_resized", "pad", "resize"] = "random_resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area (random_resized)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = number(0, low=0)
    """Pixels of zero padding around the native image before a crop of the native size (pad)."""
    hflip: float = number(0.5, low=0, high=1)
    eval_crop: float = number(0.875, low=0.01, high=1)
    """Share of the resized image's side that the centre crop keeps; 1: the whole image."""
    val_fraction: float = number(0.0, low=0, high=0.9)
    """Share of the training images set aside, by class, for evaluating in place of the evaluation split."""
    train_per_class: int | None = number(None, low=1)
    """Use only so many training images of each class (the same ones for every seed)."""
    train_fraction: float = _later(1.0, low=1e-6, high=1)
    """Use only this share of the training images, by class: the same ones for every seed, a smaller share a part of a
    larger one."""
    subset_seed: int | Literal["paired"] | None = _later(None, low=0, high=SEEDS)
    """Which images `train_per_class` or `train_fraction` keeps: drawn by this seed, or by the cell's own (`paired`,
    which is read as that number); null: the same ones always."""
    eval_split: Literal["val", "valid", "validation", "test"] | None = _later(None)
    """Which published split is evaluated on; null: the first of val, valid, validation and test that is there."""
    bad_images: Literal["error", "skip"] = "error"
    grey16: Literal["range", "minmax"] = _later("range")
    """Grey files of more than 8 bits: scaled by the range of their format, or each by its own extremes."""
    exif: Literal["ignore", "apply"] = _later("ignore")
    """Whether a photo is turned upright by its EXIF orientation."""
    eval_interpolation: Literal["bicubic", "bilinear"] = _later("bicubic")
    """How images to evaluate on are resized; training's is `augment.interpolation`."""
    fractal: FractalConfig | None = None

    @property
    def train_images(self) -> int:
        """Images that an epoch draws from, after `val_fraction`, `train_fraction` and `train_per_class`."""
        assert self.num_train is not None and self.num_classes is not None, "resolve the class list first"
        kept = share(self.num_train - share(self.num_train, self.val_fraction), self.train_fraction)
        return min(kept, self.train_per_class * self.num_classes) if self.train_per_class else kept


@dataclass(frozen=True)
class AugmentConfig:
    """The study's subject. Every record has all of these columns; 0 or null means off."""

    auto_augment: str | None = None
    """`original` (AutoAugment's ImageNet policy) or a RandAugment string of timm's, such as rand-m9-mstd0.5-inc1."""
    mixup: float = number(0.0, low=0)
    """The alpha of mixup's Beta(alpha, alpha)."""
    cutmix: float = number(0.0, low=0)
    mixup_prob: float = number(1.0, low=0, high=1)
    mixup_switch_prob: float = number(0.5, low=0, high=1)
    """Chance of cutmix where both are on."""
    mix_group: int = number(32, low=1)
    """Samples that share one lambda and are one another's partners, whatever the number of devices."""
    color_jitter: float = number(0.0, low=0, high=1)
    """Strength actually applied to brightness, contrast and saturation."""
    erase: float = number(0.0, low=0, high=1)
    """Chance of random erasing."""
    smoothing: float = number(0.0, low=0, high=0.99)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class RecipeConfig:
    """How a model is trained. `batch_size` is the global batch: hardware never changes it."""

    epochs: int = number(low=1)
    batch_size: int = number(low=1)
    lr: float = number(low=0)
    """Peak learning rate, per `lr_base_batch` images of the global batch under the linear rule."""
    lr_rule: Literal["linear", "constant"] = "linear"
    lr_base_batch: int = number(512, low=1)
    optimizer: str = "adamw"
    """adamw, sgd, or any other of timm's names (lamb, lion, muon, …) with timm's constants."""
    weight_decay: float = number(0.05, low=0)
    """Not applied to one-dimensional parameters, class and position tokens (DeiT)."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = number(1e-8, low=0)
    momentum: float = number(0.9, low=0, high=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_by: Literal["step", "epoch"] = "step"
    warmup_epochs: float = number(0, low=0)
    warmup_lr: float = number(1e-6, low=0)
    min_lr: float = number(1e-5, low=0)
    clip_grad: float | None = number(None, low=0)
    drop_path: float = number(0.0, low=0, high=0.99)
    ema_decay: float = number(0.0, low=0, high=0.999999999)
    """Decay per step of the weights' moving average; 0: none is kept."""
    ema_warmup: bool = True
    """Use min(decay, (1 + step) / (10 + step)), so that short runs average something."""
    repeated_augmentation: int = number(1, low=1)
    """Copies of an image in a row in an epoch's order (Hoffer et al., CVPR 2020); the epoch's length stays."""
    precision: Literal["fp32", "bf16"] = "fp32"
    train_mode: Literal["train", "eval"] = "train"
    """`eval` switches stochastic depth off while training, as the book's fine-tuning does."""
    eval_every: int = number(1, low=1)
    compile: bool = _speed(False)
    keep_every: int = _speed(0, low=0)
    """Keep the checkpoint of every so many epochs; 0: only last and best."""

    @property
    def peak_lr(self) -> float:
        return self.lr * self.batch_size / self.lr_base_batch if self.lr_rule == "linear" else self.lr


@dataclass(frozen=True)
class PretrainConfig:
    """Where the weights start: noise, a checkpoint file, or the last epoch of another cell."""

    kind: Literal["scratch", "checkpoint", "cell"] = "scratch"
    path: str | None = _speed(None)
    digest: str | None = None
    """SHA-256 of the checkpoint file, read by `parse`."""
    weights: Literal["raw", "ema", "student"] = "raw"
    """`student`: of a self-distillation such as DINO's, whose raw weights are the teacher's."""
    keep_head: bool = False
    """Keep the old classifier where the shapes match (what the book's fine-tuning does)."""
    seed: int | Literal["paired"] = number(0, low=0, high=SEEDS)
    """Of the pre-training; `paired` is read as the cell's own, so that each seed has a pre-training of its own."""
    dataset: DatasetConfig | None = None
    augment: AugmentConfig | None = None
    recipe: RecipeConfig | None = None


@dataclass(frozen=True)
class CellConfig:
    """Everything that can change a cell's result: one point of an ablation study."""

    model: ModelConfig
    dataset: DatasetConfig
    augment: AugmentConfig
    pretrain: PretrainConfig
    recipe: RecipeConfig
    seed: int = number(0, low=0, high=SEEDS)

    @property
    def pretraining(self) -> CellConfig | None:
        """The cell that this one starts from, or None."""
        start = self.pretrain
        if start.kind != "cell":
            return None
        assert start.dataset and start.augment and start.recipe, "checked by parse"
        seed = self.seed if start.seed == "paired" else start.seed
        return CellConfig(self.model, start.dataset, start.augment, PretrainConfig(), start.recipe, seed)


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "dataset": DatasetConfig,
    "augment": AugmentConfig,
    "pretrain": PretrainConfig,
    "recipe": RecipeConfig,
}
"""The configuration groups that make a cell, each with its schema."""


def plain(value: Any) -> Any:
    """A config as plain dicts, lists and scalars, for YAML, JSON and checkpoints."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def experiment(value: Any) -> Any:
    """`plain`, without the fields that cannot change a result: what an identity is the hash of."""
    return copied(shared_experiment(value))


@functools.lru_cache(maxsize=8192)
def shared_experiment(value: Any) -> Any:
    """`experiment` of a config, for those who change nothing in it: cells with a group in common share its part."""
    kept = [f for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
    kept = [f for f in kept if "neutral" not in f.metadata or getattr(value, f.name) != f.metadata["neutral"]]
    values = {f.name: getattr(value, f.name) for f in kept}
    return {
        name: shared_experiment(inner) if dataclasses.is_dataclass(inner) else plain(inner)
        for name, inner in values.items()
    }


def copied(tree: Any) -> Any:
    """A copy of plain dicts and lists, which shares none of them."""
    if type(tree) is dict:
        return {key: copied(value) if type(value) in (dict, list) else value for key, value in tree.items()}
    return [copied(value) for value in tree] if type(tree) is list else tree
