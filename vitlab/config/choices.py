"""What one option of a group means, without composing a whole run: `choice("augment", "mixup")`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from vitlab.config.parse import build, register_schemas
from vitlab.config.schema import GROUPS
from vitlab.config.suggestions import suggest
from vitlab.core.errors import ConfigError

_IN_WHEEL = Path(__file__).parents[1] / "conf"
CONF = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).parents[2] / "conf"
"""The folder of all choices: beside vitlab/ in a checkout, inside it where a wheel is installed."""


@cache
def choice(group: str, name: str) -> Any:
    """The frozen dataclass that `conf/GROUP/NAME.yaml` describes. Raises ConfigError for an unknown name."""
    register_schemas()
    return build(GROUPS[group], compose_group(group, name), group)


def options(group: str) -> list[str]:
    """The names of a group's options."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def compose_group(group: str, name: str) -> dict[str, Any]:
    """The plain values of one option of a group that has no schema, such as `table`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    if name not in options(group):
        raise ConfigError(group, f"{name!r} is no choice of conf/{group}.{suggest(name, options(group))}")
    if GlobalHydra.instance().is_initialized():
        tree = compose(f"{group}/{name}")
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            tree = compose(f"{group}/{name}")
    return OmegaConf.to_container(tree[group], resolve=True)  # pyright: ignore
