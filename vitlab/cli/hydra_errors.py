"""Hydra's and OmegaConf's errors in one line each: what was typed, and what to type."""

from __future__ import annotations

import re

from hydra.errors import MissingConfigException, OverrideParseException

from vitlab.config.suggestions import suggest

_NOISE = ("See https://", "Set the environment variable", "full_key:", "object_type=", "reference_type=")


def explain(error: Exception) -> str:
    """One line that says what a composition's error means to the person who typed the command."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; quote what is not plain: '{_quoted(error.override)}'"
    for pattern, answer in _ANSWERS:
        if match := pattern.search(text):
            return match.expand(answer)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(_NOISE)]
    return "; ".join(lines[:2]) or type(error).__name__


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return f'{key}="{value}"'


def _missing_choice(error: MissingConfigException) -> str:
    missing = str(error.missing_cfg_file or "")
    group, _, name = missing.rpartition("/")
    if error.options is not None and group:
        return f"{group}={name}: there is no such choice.{suggest(name, error.options)}"
    return str(error).splitlines()[0]


_ANSWERS = tuple(
    (re.compile(pattern, re.DOTALL), answer)
    for pattern, answer in {
        r"Could not override '([^'@]+)@([^']+)'": r"\1@\2: nothing is composed there; pretrain=fractaldb has a data "
        r"set, augmentation and recipe of its own, as in recipe@pretrain.recipe=book",
        r"Could not override '(hydra\.launcher\.[^']+)'": r"\1: the launcher has no such option; those of Slurm need "
        r"hydra/launcher=slurm",
        r"Could not override '([^']+)'": r"\1: there is no such key",
        r"Could not append to config\. An item is already at '([^']+)'": r"\1: exists; type it without the +",
        r"Could not delete from config\. '?([^'\s]+)'? does not exist": r"~\1: there is no such key to take away",
        r"Could not delete\. No match for '?([^'\s]+)'?": r"~\1: nothing is chosen there that could be taken away",
        r"Multiple values for ([\w/@.]+)\. To override": r"\1: two files choose it; write `override` in the second",
        r"Ambiguous value for argument '([^']+)'": r"\1: one value is needed here, not a sweep",
        r"Environment variable '([^']+)' not found": r"the environment variable \1 is not set",
        r"Interpolation key '([^']+)' not found": r"${\1}: there is no such key to take a value from",
        r"Error merging override ([^\n]+)\n([^\n]+)": r"\1: \2",
        r"Additional config directory '([^']+)' not found": r"--config-dir: there is no folder \1",
        r"Primary config directory not found": r"--config-path: there is no such folder",
        r"Primary config module": r"--config-path: there is no such module",
        r"Cannot find primary config '([^']+)'": r"--config-name: no file \1.yaml in the configuration folders",
    }.items()
)
"""Hydra's text → ours."""
