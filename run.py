"""vitlab's entry point for training and its other tasks (`python run.py --help`). The path of a cell:

compose  hydra_plugins/vitlab_sweeper.py   the command line → one validated `Config` per cell
plan     vitlab/study/plan.py              which cells are finished, and which to train in what order
cell     vitlab/study/cell.py              `run_cell`: the lock, the record and W&B around one training
fit      vitlab/train/loop.py              the training loop
table    analyze.py                        from records to tables
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from vitlab.cli.command_line import command_line
from vitlab.config import parse, register_schemas


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(tree: DictConfig) -> str:
    """One cell, for Hydra's own launchers. A command's study is planned by hydra_plugins/vitlab_sweeper.py."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from vitlab.cli.keys import typed_keys
    from vitlab.cli.train_task import run_one

    labels = {key: str(value) for key, value in HydraConfig.get().runtime.choices.items()}
    typed = typed_keys(OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)))
    values = OmegaConf.to_container(tree, resolve=True)
    return run_one(parse(values, labels, typed))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    register_schemas()
    with command_line("config"):
        main()
