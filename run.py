"""vitlab's one entry point for doing: `python run.py --help`, README.md."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from vitlab.config import parse, register_schemas
from vitlab.config.hints import hints_for_words
from vitlab.config.words import mistakes_in_words
from vitlab.study.tasks import TASKS

TASKS["explain"] = "vitlab.explain.task:run_explain"  # only here: studies know nothing of explanations


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(tree: DictConfig) -> str:
    """One cell, for Hydra's own launchers. A command's study is planned by hydra_plugins/vitlab_sweeper.py."""
    from hydra.core.hydra_config import HydraConfig

    from vitlab.study.command import run_one

    labels = {key: str(value) for key, value in HydraConfig.get().runtime.choices.items()}
    return run_one(parse(OmegaConf.to_container(tree, resolve=True), labels))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    if hints := hints_for_words(sys.argv[1:]) or mistakes_in_words(sys.argv[1:]):
        sys.exit("\n".join(f"vitlab: {hint}" for hint in hints))
    register_schemas()
    main()
