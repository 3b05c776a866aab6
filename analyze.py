"""vitlab's one entry point for reading: results in, tables out. `python analyze.py --help`, README.md."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from vitlab.cli.command_line import command_line


@hydra.main(version_base="1.3", config_path="conf", config_name="analyze")
def main(tree: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from vitlab.cli.analyze import analyze
    from vitlab.core.errors import as_user_error

    chosen = HydraConfig.get().runtime.choices.get("table")
    composed = OmegaConf.to_container(tree, resolve=True)
    try:
        for line in analyze(composed, chosen):  # pyright: ignore[reportArgumentType]
            print(line)
    except Exception as error:
        if (mistake := as_user_error(error)) is None:
            raise
        sys.exit(f"vitlab: {mistake}")


if __name__ == "__main__":
    with command_line("analyze"):
        main()
