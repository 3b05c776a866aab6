"""The configuration of a run: frozen, typed, validated. Keys, defaults and ranges are written only here."""

from vitlab.config.check import check_cell, check_run, parse_policies
from vitlab.config.choices import choice, options
from vitlab.config.parse import build, named_after_folder, parse, register_schemas, with_seed
from vitlab.config.paths import find_checkpoint
from vitlab.config.run_schema import Config, StudyConfig, WandbConfig
from vitlab.config.schema import (
    FROM_ROOT,
    GROUPS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentConfig,
    CellConfig,
    DatasetConfig,
    FractalConfig,
    ModelConfig,
    PretrainConfig,
    RecipeConfig,
    experiment,
    plain,
)
from vitlab.config.suggestions import suggest
from vitlab.core.errors import ConfigError

__all__ = [
    "FROM_ROOT",
    "GROUPS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AugmentConfig",
    "CellConfig",
    "Config",
    "ConfigError",
    "DatasetConfig",
    "FractalConfig",
    "ModelConfig",
    "PretrainConfig",
    "RecipeConfig",
    "StudyConfig",
    "WandbConfig",
    "build",
    "check_cell",
    "check_run",
    "choice",
    "experiment",
    "find_checkpoint",
    "named_after_folder",
    "options",
    "parse",
    "parse_policies",
    "plain",
    "register_schemas",
    "suggest",
    "with_seed",
]
