"""`pip wheel .`: the wheel holds every module and every choice of conf/, and works away from the checkout."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("vitlab", "hydra_plugins", "conf", "pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE")
LIBRARY = """
import hydra_plugins.hydra_submitit_launcher, hydra_plugins.vitlab_sweeper
from vitlab.config.choices import CONF, choice, options
print(CONF)
for group in ("model", "dataset", "augment", "recipe"):
    print(len([choice(group, name) for name in options(group) if not name.startswith("from_")]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources, built by pip with the setuptools that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", ".", "-w", "../built"]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "built").iterdir()
    return built


def test_the_wheel_holds_every_file(wheel):
    expected = {str(f.relative_to(ROOT)) for room in ("vitlab", "hydra_plugins") for f in (ROOT / room).rglob("*.py")}
    expected |= {f"vitlab/{f.relative_to(ROOT)}" for f in (ROOT / "conf").rglob("*.*")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        needed = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    assert names == expected
    lines = (
        line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    )
    assert [need for need in needed if "extra ==" not in need] == [line for line in lines if line]


def test_the_library_works_away_from_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{LIBRARY}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    conf, *counts = done.stdout.splitlines()
    assert Path(conf) == tmp_path / "site/vitlab/conf" and all(int(count) >= 5 for count in counts)
