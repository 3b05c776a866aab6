"""What a run is: frozen, typed, validated. The one place where keys, defaults and ranges are written."""

from vitlab.config.check import check_cell, check_run, parse_policies
from vitlab.config.choices import choice, options
from vitlab.config.files import find_checkpoint
from vitlab.config.parse import build, parse, register_schemas, suggest
from vitlab.config.schema import (
    GROUPS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentConfig,
    CellConfig,
    Config,
    DatasetConfig,
    FractalConfig,
    ModelConfig,
    PretrainConfig,
    RecipeConfig,
    StudyConfig,
    WandbConfig,
    experiment,
    plain,
)
from vitlab.core.errors import ConfigError

__all__ = [
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
    "options",
    "parse",
    "parse_policies",
    "plain",
    "register_schemas",
    "suggest",
]
