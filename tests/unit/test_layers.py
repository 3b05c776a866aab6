"""Imports go one way: core ← config ← data, models ← train ← study ← cli; explain and analysis stand apart."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "core": {"core"},
    "config": {"core", "config"},
    "data": {"core", "config", "data"},
    "models": {"core", "config", "models"},
    "train": {"core", "config", "data", "models", "train"},
    "study": {"core", "config", "data", "models", "train", "study"},
    "explain": {"core", "config", "data", "models", "explain"},
    "analysis": {"core", "config", "study", "analysis"},
    "cli": {"core", "config", "data", "models", "train", "study", "explain", "analysis", "cli"},
}
LIGHT = {
    "config", "core/random", "analysis", "cli", "study/identity", "study/plan", "study/record",
    "study/studies", "study/contents", "study/mixture", "core/errors", "core/integrity", "core/archives",
    "data/sources/catalogue",
}  # fmt: skip
SLOW_TO_IMPORT = {"cli/evaluate_task", "cli/export_task", "cli/fractal_task", "cli/pack_task", "cli/preview_task"}
"""Imported only when their task runs."""
HEAVY = {"torch", "timm", "torchvision"}


def imports(tree: ast.AST):
    """Every module that a file names in an import, at whatever depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files():
    return sorted((ROOT / "vitlab").rglob("*.py"))


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_left(file: Path):
    place = file.relative_to(ROOT / "vitlab").with_suffix("")
    room = place.parts[0]
    if room == "__init__":
        return
    for module in imports(ast.parse(file.read_text(encoding="utf-8"))):
        parts = module.split(".")
        if parts[0] == "vitlab" and len(parts) > 1:
            assert parts[1] in ALLOWED[room], f"{place} imports {module}"
            if room == "analysis" and parts[1] == "study":
                known = ("record", "studies", "contents", "mixture")
                assert parts[2] in known, f"{place} imports {module}: analysis knows records only"
        assert parts[0] != "hydra" or room in ("config", "cli"), f"{place} imports {module}"


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_light_modules_start_fast(file: Path):
    place = str(file.relative_to(ROOT / "vitlab").with_suffix(""))
    if place not in SLOW_TO_IMPORT and any(place == light or place.startswith(light + "/") for light in LIGHT):
        at_import = [
            n for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        named = {m.split(".")[0] for n in at_import for m in imports(ast.Module(body=[n], type_ignores=[]))}
        assert not named & HEAVY, f"{place} imports {named & HEAVY} when it is imported"


def test_no_two_modules_have_one_name():
    names = [file.stem for file in files() if file.stem != "__init__"]
    assert sorted(names) == sorted(set(names))
