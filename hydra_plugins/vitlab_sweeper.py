"""Hydra's sweep as a study: the whole sweep is composed, checked and planned before the first cell trains."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitlab.cli.command_line import explain, with_whole_commands
from vitlab.cli.flags import split_command
from vitlab.cli.keys import keys_of, location_words, typed_keys
from vitlab.cli.train_task import program
from vitlab.cli.typos import mistakes_in_words
from vitlab.cli.values import readable, typed
from vitlab.config import GROUPS, CellConfig, Config, ConfigError, parse, with_seed
from vitlab.core.errors import UserError, as_user_error
from vitlab.study.identity import Request

# A plain mapping: Hydra loads plugins in a way that dataclasses with postponed annotations do not survive.
_NODE = {"_target_": "hydra_plugins.vitlab_sweeper.StudySweeper", "max_batch_size": None, "params": None}
ConfigStore.instance().store(group="hydra/sweeper", name="study", node=_NODE, provider="vitlab")


class StudySweeper(BasicSweeper):
    """Hydra's basic sweeper, with a plan between the product of overrides and the launcher."""

    def sweep(self, arguments: list[str]) -> Any:
        """Plan and run; raises SystemExit with the study's exit code, or with the line of a user's mistake."""
        try:
            code = self.carry_out(self._requests(arguments))
        except ConfigError as error:
            sys.exit(f"vitlab: {self._with_whole_commands(error, arguments)}")
        except Exception as error:
            if (mistake := as_user_error(error)) is None:
                raise
            sys.exit(f"vitlab: {mistake}")
        sys.exit(code)

    def _requests(self, arguments: list[str]) -> list[Request]:
        try:
            return self.requests(arguments)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error)) from error

    def _with_whole_commands(self, error: ConfigError, arguments: list[str]) -> ConfigError:
        """`error`, naming commands that are accepted in place of what was typed, where there are such."""
        from vitlab.study.preflight import resolved

        def accept(words: list[str]) -> None:
            resolved(self._requests([word for word in words if not word.startswith(("hydra.", "hydra/"))]))

        flags, words = split_command(sys.argv[1:])
        words = words if set(arguments) <= set(words) else arguments
        return with_whole_commands(error, [*program(os.environ).split(), sys.argv[0], *flags], words, accept)

    def requests(self, arguments: list[str]) -> list[Request]:
        """Every cell that the command means, parsed and checked."""
        assert self.hydra_context is not None and self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = _checked(self._parse_config(), "hydra.sweeper.params")
        product = self.split_arguments(parser.parse_overrides([*params, *arguments]), None)[0]
        if isinstance(cells := self.config.study.cells, str):
            listed = typed("study.cells", f'["{cells}"]')
            raise ConfigError("study.cells", f"a list is needed; type {listed}")
        extra = [_words_of(cell, parser) for cell in cells] or [[]]
        combinations = [[*base, *cell] for base in product for cell in extra]
        self._composer = composer = getattr(self, "_composer", None) or _Composer(
            self.hydra_context.config_loader, self.config, parser
        )
        requests = []
        for overrides in combinations:
            try:
                requests.append(Request(tuple(overrides), composer.compose(overrides)))
            except UserError as error:
                raise _in_cell(error, overrides, combinations) from None
            except HydraException as error:
                raise _in_cell(UserError(explain(error)), overrides, combinations) from None
        return requests

    def carry_out(self, requests: list[Request]) -> int:
        """Run the task, or the study, that the requests mean; returns the exit code."""
        from vitlab.cli.train_task import run_study, run_task

        config = requests[0].config
        if config.study.status or config.study.follow or config.study.cancel:
            from vitlab.cli.status_task import run_status

            return run_status(config)
        if config.task != "train":
            return run_task(requests)
        launcher = self._launcher()
        if hasattr(launcher, "run_plan"):
            prove = getattr(launcher, "prove", None)  # absent where other machines train
            about = getattr(launcher, "about_plan", None)
            return run_study(requests, launcher.run_plan, prove, self.cell_of, about, freezes=True)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        from vitlab.study.preflight import prove

        return run_study(requests, self._through_stock_launcher, prove, self.cell_of)

    def _launcher(self) -> Any:
        """Hydra's launcher; ours in place of submitit's for Slurm, which has the same options."""
        if type(self.launcher).__module__ != "hydra_plugins.hydra_submitit_launcher.submitit_launcher":
            return self.launcher
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Stock

        if not isinstance(self.launcher, Stock):
            raise ConfigError(
                "hydra/launcher",
                "submitit_local gives nothing that vitlab's own does not (a process for each cell, on copied code): "
                "leave it out, or give hydra/launcher=local; to leave the terminal, start the command with nohup … &",
            )
        from hydra_plugins.vitlab_slurm_launcher import SlurmLauncher

        assert self.config is not None
        return SlurmLauncher.in_place_of(self.launcher, list(self.config.hydra.overrides.hydra))

    def cell_of(self, overrides: Sequence[str]) -> CellConfig:
        """The cell that overrides mean today. Raises UserError where they mean none."""
        from vitlab.study.preflight import resolved

        try:
            request = Request(tuple(overrides), self._composer.compose(list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error)) from None
        return resolved([request])[0].config.cell

    def _through_stock_launcher(self, plan: Any, view: Any) -> dict[str, str]:
        """Any other launcher of Hydra's: stage by stage, without isolation; what happened is read from the records."""
        assert self.launcher is not None
        outcomes: dict[str, str] = {}
        for stage in sorted({cell.stage for cell in plan.todo}):
            ready = []
            for cell in (c for c in plan.todo if c.stage == stage):
                if why := plan.blocked_by(cell):
                    outcomes[cell.id] = "blocked"
                    view.status(cell.id, "blocked", why)
                else:
                    ready.append(cell)
            jobs = self.launcher.launch([list(cell.overrides) for cell in ready], initial_job_idx=0) if ready else ()
            for job in jobs:
                try:
                    _ = job.return_value
                except Exception as error:
                    view.say(str(as_user_error(error) or "".join(traceback.format_exception(error))))
        return {cell.id: plan.record(cell).state() for cell in plan.todo} | outcomes


def _words_of(cell: str, parser: OverridesParser) -> list[str]:
    """The overrides in one entry of `study.cells`. Raises ConfigError for words that are none, or name nothing."""
    try:
        words = shlex.split(cell)
    except ValueError as error:
        raise ConfigError("study.cells", f"{cell!r} cannot be read ({error})") from None
    words = _checked(words, "study.cells", f" (in {cell!r})")
    sweeps = [override.input_line for override in parser.parse_overrides(words) if override.is_sweep_override()]
    if sweeps:
        raise ConfigError("study.cells", f"{sweeps[0]!r} is a sweep, and an entry is one cell; give an entry for each")
    return words


def _checked(words: list[str], where: str, entry: str = "") -> list[str]:
    """Overrides inside a value, as Hydra can read them. Raises ConfigError, naming `where`, for a mistake."""
    context = location_words(sys.argv[1:])
    if wrong := mistakes_in_words([*context, *words]):
        raise ConfigError(where, f"{wrong[0]}{entry}")
    keys = keys_of("config", context)
    return [readable(word, keys) for word in words]


def _in_cell(error: UserError, overrides: list[str], combinations: list[list[str]]) -> UserError:
    """`error` with the cell that it is about, by the overrides that not all cells have; as it is where there is one."""
    shared = set(combinations[0]).intersection(*combinations)
    own = [override for override in overrides if override not in shared]
    return error.in_cell(shlex.join(own)) if own else error


class _Composer:
    """Composes once per combination of group choices (100 ms each) and sets plain values in place (a tenth of a ms)."""

    def __init__(self, loader: Any, master: DictConfig, parser: OverridesParser) -> None:
        self.loader, self.master, self.parser = loader, master, parser
        self._trees: dict[tuple[str, ...], tuple[DictConfig, dict[str, str], dict[str, Any] | None]] = {}
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._seeded: dict[tuple[str, ...], Config] = {}
        """What was typed for a cell, but for its seed → the configuration of the first one of them."""

    def compose(self, overrides: list[str]) -> Config:
        """What Hydra's full composition of `overrides` means, parsed once for cells that differ in the seed alone."""
        parsed = [self._parse(text) for text in overrides]
        seeds = [o for o in parsed if o.key_or_group == "seed" and self._may_set(o)]
        alike = tuple("seed" if any(o is s for s in seeds) else o.input_line or "" for o in parsed)
        if seeds and alike in self._seeded:
            return with_seed(self._seeded[alike], seeds[-1].value())
        config, shares = self._compose(parsed)
        if seeds and shares:
            self._seeded[alike] = config
        return config

    def _compose(self, parsed: list[Override]) -> tuple[Config, bool]:
        """The configuration, and whether it holds for every seed but for the seed itself."""
        plain = [o for o in parsed if self._may_set(o)]
        tree, labels, values = self._tree(self._rest(parsed, plain))
        known = [o for o in plain if _has(tree, o.key_or_group)]
        if len(known) < len(plain):  # keys that other values bring, or that do not exist: Hydra knows
            nested = [o for o in plain if o not in known]
            apart = all(not _nested(o.key_or_group, p.key_or_group) for o in known for p in nested)
            plain = known if apart else []
            tree, labels, values = self._tree(self._rest(parsed, plain))
        if values is None:  # some value refers to another, which may be one that is set here
            tree = tree.copy()
            for override in plain:
                OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
            values, shares = OmegaConf.to_container(tree, resolve=True), False  # pyright: ignore
        else:
            for override in plain:
                values = _with(values, override.key_or_group.split("."), override.value())
            shares = any(o.key_or_group == "seed" for o in plain) and "'paired'" not in repr(values)
        return parse(values, labels, typed_keys(parsed)), shares  # pyright: ignore[reportArgumentType]

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = self.parser.parse_override(text)
        return self._parsed[text]

    def _rest(self, parsed: list[Override], plain: list[Override]) -> tuple[str, ...]:
        return tuple(o.input_line or "" for o in parsed if not any(o is p for p in plain))

    def _tree(self, choices: tuple[str, ...]) -> tuple[DictConfig, dict[str, str], dict[str, Any] | None]:
        """The composed tree, the chosen options, and its plain values unless any of them refers to another."""
        if choices not in self._trees:
            whole = self.loader.load_sweep_config(self.master, list(choices))
            made = whole.hydra.runtime.choices
            if several := [group for group in GROUPS if group in whole and group not in made]:
                raise ConfigError(several[0], "a list of choices was given; a cell has one, and a sweep has commas")
            labels = {k: str(v) for k, v in made.items() if not k.startswith("hydra")}
            tree = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
            linked = "${" in OmegaConf.to_yaml(tree)
            self._trees[choices] = (tree, labels, None if linked else OmegaConf.to_container(tree))  # pyright: ignore
        return self._trees[choices]

    def _may_set(self, override: Override) -> bool:
        """Whether this only gives a key another value; anything else is Hydra's to compose."""
        if override.is_delete() or override.is_add() or override.package is not None:
            return False
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = bool(self.loader.get_group_options(key))
        value = override.value()
        return not (self._groups[key] or key.startswith("hydra.") or isinstance(value, dict) or "${" in str(value))


def _with(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """`values` with another value at `path`; shares everything else with it."""
    first, *rest = path
    return values | {first: _with(values[first], rest, value) if rest else value}


def _nested(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _has(tree: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        if not isinstance(node, DictConfig) or node._is_none() or parent not in node:
            return False
        node = node[parent]
    return isinstance(node, DictConfig) and not node._is_none() and last in node
