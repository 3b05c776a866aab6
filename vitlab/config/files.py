"""Which file a user means. Nothing here reads one."""

from __future__ import annotations

from pathlib import Path

from vitlab.core.errors import ConfigError


def find_checkpoint(name: str, output_dir: str, key: str = "checkpoint") -> Path:
    """A file, a cell's folder (its last.pt), or a cell's identity below `output_dir`.

    Raises ConfigError, naming `key`, where there is none.
    """
    for path in (Path(name), Path(output_dir) / name):
        if path.is_file():
            return path
        if path.is_dir():
            if (path / "last.pt").is_file():
                return path / "last.pt"
            raise ConfigError(key, f"no last.pt in {str(path)!r}; has the cell been trained?")
    raise ConfigError(
        key, f"no file, cell folder or identity {name!r} (also looked in {output_dir!r}); give a checkpoint file"
    )
