"""From Hydra's composed mapping to a `Config`, or one clear error.

Nothing here imports torch: a wrong key is reported in well under a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from vitlab.config.check import check_cell, check_run
from vitlab.config.effects import OF_TRAINING, idle_among, idle_fields, settle
from vitlab.config.paths import find_checkpoint, with_whole_paths
from vitlab.config.run_schema import Config, StudyConfig, WandbConfig
from vitlab.config.schema import FROM_ROOT, GROUPS, CellConfig, DatasetConfig, FractalConfig
from vitlab.config.suggestions import meant, suggest
from vitlab.core.errors import ConfigError
from vitlab.core.files import clean_name, text_of
from vitlab.core.hub import look_up, named_on_hub, weights_digest
from vitlab.core.plugins import import_plugins


def register_schemas() -> None:
    """Give Hydra each group's fields and neutral defaults, as the option `schema` that every choice starts from.

    Choices under `conf/` say `defaults: [schema]` and then only what they set, yet any field can be overridden.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for group, cls in GROUPS.items():
        store.store(group=group, name="schema", node=_neutral(cls))
    store.store(group="dataset", name="fractal_schema", node={"fractal": _neutral(FractalConfig)})
    for name, cls in (("wandb", WandbConfig), ("study", StudyConfig)):
        store.store(name=f"{name}_schema", node={name: _neutral(cls)})


def _neutral(cls: type) -> dict[str, Any]:
    """A schema's defaults as a plain mapping; `???` where the choice must give a value."""
    values = {f.name: "???" if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(cls)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def parse(composed: Mapping[str, Any], labels: Mapping[str, str] | None = None, typed: Collection[str] = ()) -> Config:
    """The run that a composed configuration (plain mapping, interpolations resolved) describes.

    `labels` maps groups to the chosen options; `typed` are the keys that the user gave values to. Fields that cannot
    act in the cell get their neutral values. Raises `ConfigError` at the first mistake.
    """
    values = with_whole_paths({key: value for key, value in composed.items() if key != "hydra"})
    import_plugins(_convert(_hints(Config)["plugins"], values.get("plugins") or (), "plugins"))
    labels = dict(labels or {})
    if isinstance(values.get("model"), Mapping):
        from vitlab.config.choices import own_sizes  # choices are built by this module

        values["model"], label = own_sizes(values["model"], labels.get("model"), typed)
        labels |= {"model": label} if label else {}
    cell = _with_seeds(build(CellConfig, {key: values.pop(key) for key in (*GROUPS, "seed") if key in values}, ""))
    cell = _with_digests(cell, str(values.get("output_dir", "runs")))
    check_cell(cell)
    idle = idle_among(typed, idle_fields(cell) | OF_TRAINING) if values.get("task") == "train" else {}
    cell = settle(cell)
    tasks = typing.get_args(_hints(Config)["task"])
    options = {name: values.pop(name) for name in tasks if name in values}
    task = values.get("task")
    given = {"cell": cell, "options": options.get(str(task)) or {}, "labels": labels, "typed": tuple(typed)}
    config = build(Config, values, "", given=given | {"idle": idle})
    check_run(config)
    return config


def with_seed(config: Config, seed: Any) -> Config:
    """What `parse` makes of the values of `config`, none of which is `paired`, with another seed.

    Raises `ConfigError` for a seed that is none.
    """
    (entry,) = (f for f in dataclasses.fields(CellConfig) if f.name == "seed")
    seed = _field(entry, _hints(CellConfig)["seed"], seed, "seed")
    return dataclasses.replace(config, cell=dataclasses.replace(config.cell, seed=seed))


def _with_seeds(cell: CellConfig) -> CellConfig:
    """`paired` as the cell's seed, so that a cell has one name however its seeds were given."""
    data, start = cell.dataset, cell.pretrain
    if start.seed == "paired":
        start = dataclasses.replace(start, seed=cell.seed)
    if start.dataset is not None and start.dataset.subset_seed == "paired":
        seed = start.seed
        start = dataclasses.replace(start, dataset=dataclasses.replace(start.dataset, subset_seed=seed))
    if data.subset_seed == "paired":
        data = dataclasses.replace(data, subset_seed=cell.seed)
    return dataclasses.replace(cell, dataset=data, pretrain=start)


def build(cls: type, values: Any, where: str, given: Mapping[str, Any] | None = None) -> Any:
    """An instance of the frozen dataclass `cls` from a plain mapping, with types and ranges checked.

    `where` is the key prefix for error messages; `given` are fields that are already built.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(values, Mapping):
        raise ConfigError(where or "the configuration", f"expected a group of keys, got {values!r}")
    given = dict(given or {})
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields or key in given:
            raise ConfigError(
                f"{prefix}{key}", f"no such key.{suggest(str(key), [k for k in fields if k not in given])}"
            )
    hints = _hints(cls)
    for name, entry in fields.items():
        if name in given:
            continue
        if name not in values:
            if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{prefix}{name}", "a value is needed and none was given")
            continue
        given[name] = _field(entry, hints[name], values[name], prefix + name)
    return cls(**given)


def _built(cls: type, values: Any, where: str) -> Any:
    """`build`, once for equal values: most groups are the same in many cells of a sweep."""
    known = (cls, where, repr(values))  # plain values: their texts differ where they, or their types, do
    if known not in _BUILT:
        if len(_BUILT) >= 4096:
            _BUILT.clear()
        _BUILT[known] = build(cls, values, where)
    return _BUILT[known]


_BUILT: dict[tuple[type, str, str], Any] = {}


def _field(entry: dataclasses.Field[Any], hint: Any, value: Any, key: str) -> Any:
    """A field's value with its type and range checked; an error names the override that may have been meant."""

    def accepts(other: Any) -> bool:
        try:
            _check_range(entry, _convert(hint, other, key), key)
        except ConfigError:
            return False
        return True

    try:
        converted = _convert(hint, value, key)
        _check_range(entry, converted, key)
    except ConfigError as error:
        if error.key != key or error.ways or value == "???":
            raise
        raise ConfigError(key, error.text, meant(key, hint, value, accepts)) from None
    return converted


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """`value` as the annotated type, without guessing: int → float, list → tuple, and a whole number → text.

    A number with a fraction is not made text: `1.10` would arrive here as 1.1.
    """
    if value == "???":
        raise ConfigError(key, "a value is needed and none was given")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        for option in (a for a in arguments if a is not type(None)):
            try:
                return _convert(option, value, key)
            except ConfigError:
                if len([a for a in arguments if a is not type(None)]) == 1:
                    raise
        raise ConfigError(key, f"got {value!r}, expected {_describe(hint)}")
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise ConfigError(key, f"got {value!r}, allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(key, f"got {value!r}, expected a list")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(value) != len(inner):
            raise ConfigError(key, f"got {len(value)} values {value!r}, expected {len(inner)}")
        return tuple(_convert(t, v, f"{key}[{i}]") for i, (t, v) in enumerate(zip(inner, value, strict=True)))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(key, f"got {value!r}, expected keys and values")
        return {_convert(arguments[0], k, key): _convert(arguments[1], v, f"{key}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return _built(typing.cast(type, hint), value, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(key, f"got {value!r} ({type(value).__name__}), expected {_describe(hint)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(key, f"got {value!r}, expected a finite number")
    return value


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    return " or ".join(
        ", ".join(map(str, typing.get_args(o))) if typing.get_origin(o) is Literal else names.get(o, str(o))
        for o in options
    )


def _check_range(entry: dataclasses.Field[Any], value: Any, key: str) -> None:
    low, high = entry.metadata.get("low"), entry.metadata.get("high")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ConfigError(key, f"got {value}, allowed: {bounds}")


def _with_digests(cell: CellConfig, output_dir: str) -> CellConfig:
    """Fill in what identifies the files that a configuration points at: the checkpoint's and the pack's digests."""
    start, data = cell.pretrain, named_after_folder(cell.dataset)
    if start.kind == "checkpoint" and start.digest is None:
        if not start.path:
            raise ConfigError(
                "pretrain.path",
                "pretrain=checkpoint needs a file; give pretrain.path=FILE, or a model on the Hugging Face hub, for "
                "instance pretrain.path=hf-hub:timm/vit_tiny_patch16_224.augreg_in21k",
            )
        on_hub = None if Path(start.path).exists() else named_on_hub(start.path)
        if on_hub is not None:  # its metadata tell the digest: nothing is downloaded to plan
            found = look_up(on_hub, "pretrain.path")
            start = dataclasses.replace(start, path=found.name, digest=found.digest)
        else:
            file = find_checkpoint(start.path, output_dir, "pretrain.path")
            start = dataclasses.replace(start, path=str(file), digest=_digest(file, file.stat().st_mtime_ns))
    if data.pack and data.pack_id is None:
        manifest = Path(data.pack) / "manifest.json"
        if not manifest.is_file():
            raise ConfigError("dataset.pack", f"no manifest.json in {data.pack!r}; make a pack with task=pack")
        try:
            data = dataclasses.replace(
                data, pack_id=str(json.loads(manifest.read_text(encoding="utf-8"))["fingerprint"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "dataset.pack", f"{manifest} is no manifest of a pack; make it again with task=pack"
            ) from error
    if start.dataset is not None:
        try:
            start = dataclasses.replace(start, dataset=_with_counts(named_after_folder(start.dataset)))
        except ConfigError as error:
            raise error.under("pretrain") from None
    return dataclasses.replace(cell, pretrain=start, dataset=_with_counts(data))


def named_after_folder(dataset: DatasetConfig) -> DatasetConfig:
    """`dataset=folder` without a name of its own, under the name of its folder, or under the name that its pack was
    made with; any other data set as it is."""
    if dataset.name != FROM_ROOT:
        return dataset
    name = "folder"
    if dataset.pack:
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError
        ):  # reading the pack raises the error that explains
            name = json.loads((Path(dataset.pack) / "manifest.json").read_text(encoding="utf-8"))["dataset"]
    elif where := dataset.root or dataset.class_list:
        path = Path(where).absolute()
        whole = dataset.root and path.suffix.lower() not in (".tar", ".parquet")  # birds.tar holds what birds/ does
        name = clean_name(text_of(path.name if whole else path.stem), name)
    return dataclasses.replace(dataset, name=name)


def _with_counts(dataset: DatasetConfig) -> DatasetConfig:
    """A FractalDB's class and image counts, which follow from how it is generated."""
    fractal = dataset.fractal
    if fractal is None:
        return dataset
    images = fractal.categories * fractal.instances
    for key, count in (("num_classes", fractal.categories), ("num_train", images), ("num_eval", 0)):
        if getattr(dataset, key) not in (None, count):
            raise ConfigError(
                f"dataset.{key}",
                f"got {getattr(dataset, key)}, and {fractal.categories:,} categories of {fractal.instances:,} images "
                f"make it {count:,}; give dataset.fractal.categories and dataset.fractal.instances, or train on a part "
                "of them with dataset.train_fraction",
            )
    return dataclasses.replace(dataset, num_classes=fractal.categories, num_train=images, num_eval=0)


@functools.lru_cache(maxsize=64)
def _digest(file: Path, _modified: int) -> str:
    return weights_digest(file)
