"""Registries: what a configuration can name beyond what ships, and the user's modules that add to them.

`plugins=[mypackage.mymodule]` imports a module before the configuration is checked; its decorators (`register_…`) add
augmentation policies and operations, kinds of data sets, metrics and output formats. Models are registered with timm's
own `register_model`. What ships is registered in the same way, by modules that are imported when they are first asked
for, so that checking a configuration needs no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vitlab.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered thing, the module that registered it, and facts that are needed before it is imported."""

    value: T
    module: str
    about: Mapping[str, Any]


class Registry(Generic[T]):
    """Names of one kind of thing. `shipped` maps the names that vitlab brings to the modules that register them."""

    def __init__(self, kind: str, shipped: Mapping[str, str], about: Mapping[str, Mapping[str, Any]] = {}) -> None:
        self.kind, self._shipped, self._about = kind, dict(shipped), dict(about)
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, **about: Any) -> Callable[[T], T]:
        """A decorator that registers what it decorates. Raises ConfigError for a name that another module has taken."""

        def decorate(value: T) -> T:
            module = getattr(value, "__module__", "")
            owner = self._shipped.get(name) or (self._entries[name].module if name in self._entries else module)
            if owner != module:
                raise ConfigError("plugins", f"{module} registers the {self.kind} {name!r}, which {owner} has already")
            self._entries[name] = Entry(value, module, about)
            return value

        return decorate

    def names(self) -> tuple[str, ...]:
        """Every name: the shipped ones first."""
        return (*self._shipped, *(name for name in self._entries if name not in self._shipped))

    def __contains__(self, name: object) -> bool:
        return name in self._shipped or name in self._entries

    def __getitem__(self, name: str) -> T:
        """What is registered as `name`. Raises KeyError for an unknown name."""
        if name not in self._entries and name in self._shipped:
            importlib.import_module(self._shipped[name])
        return self._entries[name].value

    def about(self, name: str) -> Mapping[str, Any]:
        """The facts given with a name, without importing what ships."""
        return self._entries[name].about if name in self._entries else self._about.get(name, {})

    def plugin(self, name: str) -> str | None:
        """The module of a plugin that registered `name`; None for what ships."""
        return None if name in self._shipped or name not in self._entries else self._entries[name].module


_AUGMENT = "vitlab.data.augment"
POLICIES: Registry[Callable[..., Any]] = Registry(
    "augmentation policy",
    {
        "original": f"{_AUGMENT}.policies", "rand": f"{_AUGMENT}.policies", "trivial": f"{_AUGMENT}.trivial",
        "three": f"{_AUGMENT}.three", "augmix": f"{_AUGMENT}.augmix",
    },
    {
        "rand": {"options": ("m", "mstd", "mmax", "inc", "n", "p"), "example": "rand-m9-mstd0.5-inc1"},
        "augmix": {"options": ("m", "w", "d", "a", "mstd"), "example": "augmix-m5-w4"},
    },
)  # fmt: skip
"""First part of `augment.auto_augment` → `(options, draws) → Plan or Stage`."""


def register_policy(name: str, *, options: Iterable[str] = (), example: str | None = None) -> Callable[[T], T]:
    """Register a policy as `augment.auto_augment=NAME` or, with numbers for `options`, `NAME-p0.2`.

    The function takes a mapping of the options that were given (name → float) and the batch's `Draws`, and returns a
    `Plan` (operations by name) or a `Stage`.
    """
    return POLICIES.register(name, options=tuple(options), example=example or name)  # pyright: ignore


OPERATIONS: Registry[Callable[..., Any]] = Registry(
    "operation on images",
    {
        **dict.fromkeys(("grayscale", "gaussian_blur"), f"{_AUGMENT}.three"),
        **dict.fromkeys(
            (f"nearest_{name}" for name in ("shear_x", "shear_y", "shift_x", "shift_y", "rotate")),
            f"{_AUGMENT}.trivial",
        ),
    },
)
"""Name in a `Plan` → `(images (n, 3, H, W) uint8, values (n,)) → images`, in addition to those of AutoAugment."""


def register_operation(name: str) -> Callable[[T], T]:
    """Register a function of images (n, 3, H, W) uint8 and a value per image (n,) float32, which returns new images.

    What it does to an image must not depend on the others in the batch, nor draw random numbers: those come in as
    values, from the policy's `Draws`.
    """
    return OPERATIONS.register(name)  # pyright: ignore


_SOURCES = "vitlab.data.sources"
TRANSFER_SETS = ("flowers102", "pets", "cars", "food101", "dtd", "eurosat")
"""Kinds of data sets of image files that torchvision reads."""
DATASETS: Registry[Callable[..., Any]] = Registry(
    "kind of data set",
    {
        **dict.fromkeys(("digits", "fashion_mnist", "cifar10", "cifar100", "stl10", "svhn"), f"{_SOURCES}.arrays"),
        **dict.fromkeys(TRANSFER_SETS, f"{_SOURCES}.transfer_sets"),
        "folder": f"{_SOURCES}.folder", "fractal": "vitlab.data.formula.source",
    },
)  # fmt: skip
"""`dataset.kind` → `(dataset: DatasetConfig, split: "train" or "eval") → Source`."""


def register_dataset(kind: str) -> Callable[[T], T]:
    """Register a reader of data sets as `dataset.kind=KIND`: a function of the `DatasetConfig` and the split ("train"
    or "eval") that returns a `Source`, for instance an `ArraySource` of images in memory."""
    return DATASETS.register(kind)  # pyright: ignore


_FORMATS = "vitlab.analysis.formats"
FORMATS: Registry[Callable[..., str]] = Registry(
    "output format",
    {
        "md": f"{_FORMATS}.text", "tex": f"{_FORMATS}.latex", "csv": f"{_FORMATS}.text", "json": f"{_FORMATS}.text",
        "html": f"{_FORMATS}.html",
    },
)  # fmt: skip
"""Ending of a file in `tables_dir` → `(table, context) → text`."""


def register_format(ending: str) -> Callable[[T], T]:
    """Register a function of a `Table` and its `Context` (provenance, curves, links) that returns a file's text.

    `analyze.py` writes it as `tables/NAME.ENDING`, with the formats that ship.
    """
    return FORMATS.register(ending)  # pyright: ignore


def import_plugins(names: Iterable[str]) -> None:
    """Import the user's modules, from the working directory or any installed package.

    Raises ConfigError for a module that is not found; an error inside a module is raised as it is.
    """
    for name in names:
        if name in sys.modules:
            continue
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
        try:
            found = importlib.util.find_spec(name)
        except (ModuleNotFoundError, ValueError):
            found = None
        if found is None:
            raise ConfigError(
                "plugins", f"no module {name!r} in the working directory or among the installed packages; "
                "give a dotted name such as plugins=[mypackage.mymodule]"
            )  # fmt: skip
        importlib.import_module(name)


def source_digest(module: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a plugin's file. Raises ConfigError where it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError("plugins", f"the module {module!r} has no source file")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
