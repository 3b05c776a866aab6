"""Hydra's sweep as a study: the whole sweep is composed, checked and planned before the first cell trains."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab.config import Config, ConfigError, parse
from vitlab.study.plan import Request

# A plain mapping: Hydra loads plugins in a way that dataclasses with postponed annotations do not survive.
_NODE = {"_target_": "hydra_plugins.vitlab_sweeper.StudySweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=_NODE, provider="vitlab")


class StudySweeper(BasicSweeper):
    """Hydra's basic sweeper, with a plan between the product of overrides and the launcher."""

    def sweep(self, arguments: list[str]) -> Any:
        """Plan and run; raises SystemExit with the study's exit code, CompactHydraException for a user's mistake."""
        try:
            requests = self.requests(arguments)
            code = self.carry_out(requests)
        except (ConfigError, OSError, ValueError) as error:
            raise CompactHydraException(f"vitlab: {error}") from None
        except OmegaConfBaseException as error:
            raise CompactHydraException(f"vitlab: {str(error).splitlines()[0]}") from None
        sys.exit(code)

    def requests(self, arguments: list[str]) -> list[Request]:
        """Every cell that the command means, parsed and checked."""
        assert self.hydra_context is not None and self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        try:
            swept = parser.parse_overrides([*self._parse_config(), *arguments])
        except OverrideParseException as error:
            raise ConfigError(str(error)) from None
        product = self.split_arguments(swept, None)[0]
        extra = [shlex.split(cell) for cell in self.config.study.cells] or [[]]
        combinations = [[*base, *cell] for base in product for cell in extra]
        composer = _Composer(self.hydra_context.config_loader, self.config, parser)
        return [Request(tuple(o), composer.compose(o)) for o in combinations]

    def carry_out(self, requests: list[Request]) -> int:
        """Run the task, or the study, that the requests mean; returns the exit code."""
        from vitlab.study.command import run_study, run_task

        config = requests[0].config
        if config.task != "train":
            if len(requests) > 1:
                raise ConfigError(f"task={config.task} takes one configuration, not a sweep of {len(requests)}")
            return run_task(config)
        launcher = self.launcher
        if hasattr(launcher, "run_plan"):
            return run_study(requests, launcher.run_plan)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        return run_study(requests, self._through_stock_launcher)

    def _through_stock_launcher(self, plan: Any, view: Any) -> dict[str, str]:
        """Any other launcher of Hydra's: stage by stage, without isolation; what happened is read from the records."""
        assert self.launcher is not None
        for stage in sorted({cell.stage for cell in plan.todo}):
            overrides = [list(cell.overrides) for cell in plan.todo if cell.stage == stage]
            for job in self.launcher.launch(overrides, initial_job_idx=0):
                try:
                    _ = job.return_value
                except Exception as error:
                    view.say(f"{type(error).__name__}: {error}")
        return {cell.id: plan.record(cell).state() for cell in plan.todo}


class _Composer:
    """Composes once per combination of group choices (100 ms each) and sets plain values in place (1 ms)."""

    def __init__(self, loader: Any, master: DictConfig, parser: OverridesParser) -> None:
        self.loader, self.master, self.parser = loader, master, parser
        self._trees: dict[tuple[str, ...], tuple[DictConfig, dict[str, str], bool]] = {}

    def compose(self, overrides: list[str]) -> Config:
        parsed = self.parser.parse_overrides(overrides)
        plain = [o for o in parsed if self._sets_value(o)]
        choices = tuple(o.input_line or "" for o in parsed if o not in plain)
        tree, labels, linked = self._tree(choices)
        if not plain:
            return parse(OmegaConf.to_container(tree, resolve=True), labels)  # pyright: ignore
        if linked:
            tree = tree.copy()
            for override in plain:
                OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
            return parse(OmegaConf.to_container(tree, resolve=True), labels)  # pyright: ignore
        values: Any = OmegaConf.to_container(tree)
        for override in plain:
            *parents, last = override.key_or_group.split(".")
            node = values
            for parent in parents:
                node = node[parent]
            node[last] = override.value()
        return parse(values, labels)

    def _tree(self, choices: tuple[str, ...]) -> tuple[DictConfig, dict[str, str], bool]:
        """The composed tree, the chosen options, and whether any value refers to another."""
        if choices not in self._trees:
            whole = self.loader.load_sweep_config(self.master, list(choices))
            labels = {k: str(v) for k, v in whole.hydra.runtime.choices.items() if not k.startswith("hydra")}
            tree = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
            linked = "${" in OmegaConf.to_yaml(tree)
            self._trees[choices] = (tree, labels, linked)
        return self._trees[choices]

    def _sets_value(self, override: Override) -> bool:
        """Whether this only gives another value to an existing key; anything else is Hydra's to compose."""
        if override.is_delete() or override.is_add() or override.package is not None:
            return False
        if self.loader.get_group_options(override.key_or_group):
            return False
        tree, _, _ = self._tree(())
        try:
            exists = OmegaConf.select(tree, override.key_or_group, throw_on_missing=False) is not None or _has(
                tree, override.key_or_group
            )
        except OmegaConfBaseException:
            exists = False
        value = override.value()
        return exists and not isinstance(value, dict) and "${" not in str(value)


def _has(tree: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        if not isinstance(node, DictConfig) or parent not in node:
            return False
        node = node[parent]
    return isinstance(node, DictConfig) and last in node
