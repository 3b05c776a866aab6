"""The flags of a command: Hydra's are separated from overrides and checked; DeiT's are translated."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from vitlab.cli.keys import keys_of
from vitlab.cli.values import typed

PROGRAMS = {"config": "run.py", "analyze": "analyze.py"}
"""A root file under conf/ → the command that starts from it."""


class _WrongFlagError(Exception):
    pass


def split_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags with their values, and the overrides, each in the order in which they were typed."""
    try:
        given, unknown = _parse(words)
    except _WrongFlagError:
        return [], list(words)
    left, flags = Counter(given.overrides), []
    for word in words:
        if left[word]:
            left[word] -= 1
        else:
            flags.append(word)
    return flags, [word for word in given.overrides if word not in unknown]


@contextlib.contextmanager
def hydra_on_new_python() -> Iterator[None]:
    """Inside, Hydra can make its parser: argparse checks every help text since Python 3.14, and refuses Hydra's object
    that makes one only when it is shown (all releases up to 1.3.8)."""
    check = getattr(argparse.ArgumentParser, "_check_help", None)
    if check is not None:
        argparse.ArgumentParser._check_help = lambda self, action: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        if check is not None:
            argparse.ArgumentParser._check_help = check  # pyright: ignore[reportAttributeAccessIssue]


def _parse(words: Sequence[str]) -> tuple[Any, list[str]]:
    with hydra_on_new_python():
        parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise _WrongFlagError(message)

    parser.error = refuse
    return parser.parse_known_intermixed_args(list(words))


def mistakes_in_flags(words: Sequence[str], root: str) -> list[str]:
    """Lines for flags that do not exist or exclude each other; `root` is the command's file under conf/."""
    program = f"python {PROGRAMS[root]}"
    try:
        given, unknown = _parse(words)
    except _WrongFlagError as error:
        text = str(error).removeprefix("argument ")
        return [f"{text}; {program} --help lists them"]
    if unknown:
        return hints_for_flags(unknown) or [_unknown_flag(unknown[0], words, root)]
    if given.experimental_rerun is not None:
        return ["--experimental-rerun: type the command itself again; what is finished is not trained a second time"]
    modes = [given.run, given.multirun, given.cfg is not None, given.info is not None, given.shell_completion]
    if sum(modes) > 1:
        return ["--multirun, --run, --cfg and --info: give one of them"]
    if given.resolve and given.cfg is None and not given.help:
        return ["--resolve: goes with --cfg; type --cfg job --resolve"]
    if root == "analyze" and given.multirun:
        return ["--multirun: analyze.py makes one table at a time; leave it out, and type a command for each table"]
    return []


def _unknown_flag(word: str, words: Sequence[str], root: str) -> str:
    """The error line for a flag that neither Hydra nor the book's command has: `--recipe.lr=3` and `--recipe.lr 0.1`
    too.
    """
    flag, equals, value = word.partition("=")
    key = flag.lstrip("-").replace("-", "_")
    following = words[words.index(word) + 1 :]
    if not equals and following and not following[0].startswith("-"):
        value = following[0]
    keys = keys_of(root)
    if key in keys.types or keys.is_group(key):
        return f"{flag}: keys are typed without dashes; type {typed(key, value) if value else f'{key}=VALUE'}"
    program = PROGRAMS[root]
    return f"{flag}: there is no such flag; options are typed as key=value: python {program} --help lists them"


PAGE = "docs/from_the_book.md"

NAMES: Mapping[str, Mapping[str, str]] = {
    "dataset": {
        "ImageNet": "imagenet1k", "IMNET": "imagenet1k", "imagenet": "imagenet1k", "ImageNet-1k": "imagenet1k",
        "CIFAR10": "cifar10", "CIFAR-10": "cifar10", "CIFAR": "cifar100", "CIFAR100": "cifar100",
        "CIFAR-100": "cifar100", "FractalDB-1k": "fractaldb1k", "FractalDB": "fractaldb1k",
        "FashionMNIST": "fashion_mnist",
    },
    "model": {
        "vit_tiny_patch16_224": "vit_tiny_16_224", "vit_small_patch16_224": "vit_small_16_224",
        "vit_base_patch16_224": "vit_base_16_224", "deit_tiny_patch16_224": "vit_tiny_16_224",
        "deit_small_patch16_224": "vit_small_16_224", "deit_base_patch16_224": "vit_base_16_224",
    },
    "augment": {
        "original": "autoaug", "AutoAug": "autoaug", "autoaugment": "autoaug", "RandAug": "randaug",
        "randaugment": "randaug", "rand-m9-mstd0.5-inc1": "randaug", "no-aug": "none", "color-jitter": "jitter",
        "color_jitter": "jitter", "reprob": "erase", "Mixup": "mixup", "CutMix": "cutmix", "DeiT": "deit",
    },
    "pretrain": {"FractalDB-1k": "fractaldb", "fractaldb1k": "fractaldb", "finetune": "checkpoint", "none": "scratch"},
}  # fmt: skip
"""Group → a name from elsewhere → our choice."""

FLAGS: Mapping[str, str] = {
    "--model": "model=vit_tiny_16_224",
    "--data-set": "dataset=imagenet1k, fractaldb1k, cifar10 or cifar100",
    "--data-path": "dataset.root=FOLDER, the folder that itself holds train/ and val/",
    "--batch-size": "recipe.batch_size=N, of all devices together: 8 processes of 512 are 4096",
    "--epochs": "recipe.epochs=N",
    "--lr": "recipe.lr=X, per 512 images",
    "--opt": "recipe.optimizer=adamw or sgd",
    "--weight-decay": "recipe.weight_decay=X",
    "--momentum": "recipe.momentum=X",
    "--opt-eps": "recipe.eps=X",
    "--clip-grad": "recipe.clip_grad=X",
    "--sched": "recipe.schedule=cosine or constant",
    "--min-lr": "recipe.min_lr=X",
    "--warmup-lr": "recipe.warmup_lr=X",
    "--warmup-epochs": "recipe.warmup_epochs=N",
    "--drop-path": "recipe.drop_path=X",
    "--model-ema": "recipe.ema_decay=X; 0 keeps none",
    "--no-model-ema": "recipe.ema_decay=0",
    "--model-ema-decay": "recipe.ema_decay=X",
    "--input-size": "model.image_size=N",
    "--no-aug": "augment=none (the default)",
    "--aa": "augment.auto_augment=original or rand-m9-mstd0.5-inc1; null is off",
    "--mixup": "augment.mixup=X",
    "--cutmix": "augment.cutmix=X",
    "--mixup-prob": "augment.mixup_prob=X",
    "--mixup-switch-prob": "augment.mixup_switch_prob=X",
    "--smoothing": "augment.smoothing=X",
    "--train-interpolation": "augment.interpolation=bicubic or bilinear",
    "--reprob": "augment.erase=X",
    "--color-jitter": "augment.color_jitter=X",
    "--repeated-aug": "recipe.repeated_augmentation=3",
    "--no-repeated-aug": "recipe.repeated_augmentation=1",
    "--output_dir": "output_dir=FOLDER",
    "--eval": "task=evaluate checkpoint=FILE",
    "--resume": "the same command again, which continues; to evaluate: task=evaluate checkpoint=FILE",
    "--finetune": "pretrain=checkpoint pretrain.path=FILE",
    "--checkpoint": "checkpoint=FILE",
    "--eval-crop-ratio": "dataset.eval_crop=X",
    "--dist-eval": "nothing: evaluation is shared out exactly over devices=N",
    "--device": "device=auto, cpu, cuda or mps",
    "--seed": "seed=N",
    "--num_workers": "workers=N",
    "--nproc_per_node": "devices=N",
    "--use_env": "nothing: devices=N starts the processes",
}
"""A flag of the book's commands → what to type here."""


def hint_for(group: str, name: str) -> str | None:
    """`"dataset=ImageNet is dataset=imagenet1k here …"` for a name from the book, DeiT or timm; None for any other."""
    names = NAMES.get(group, {})
    lowered = {key.lower(): value for key, value in names.items()}
    ours = names.get(name) or lowered.get(name.lower())
    return f"{group}={name} is {group}={ours} here ({PAGE})" if ours and ours != name else None


def hint_for_flag(word: str) -> str | None:
    """The same for a flag such as `--data-set` or `--mixup=0`."""
    flag, _, value = word.partition("=")
    ours = FLAGS.get(flag) or FLAGS.get(flag.replace("_", "-"))
    if ours and value:  # where only the value is missing, the override is complete
        ours = re.sub(r"^([\w.]+)=(N|X|FOLDER|FILE)$", lambda match: shlex.quote(f"{match[1]}={value}"), ours)
    return f"{flag}: type {ours} ({PAGE})" if ours else None


def hints_for_flags(words: Sequence[str]) -> list[str]:
    """A line for each flag of the book's commands."""
    return list(dict.fromkeys(line for word in words if word.startswith("--") and (line := hint_for_flag(word))))
