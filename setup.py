"""Adds conf/ to the wheel, as the data of vitlab.conf; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["vitlab", "vitlab.*", "hydra_plugins"]), "vitlab.conf"],
    package_dir={"vitlab.conf": "conf"},
    package_data={"vitlab.conf": ["**/*.yaml", "**/*.csv"]},
)
