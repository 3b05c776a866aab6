"""Imports go one way: config, draws ← data, models ← train ← study ← run.py; explain and analysis stand beside."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "config": {"config"},
    "draws": set(),
    "dunnett": set(),
    "data": {"config", "draws", "data"},
    "models": {"config", "draws", "models"},
    "train": {"config", "draws", "data", "models", "train"},
    "study": {"config", "draws", "data", "models", "train", "study", "dunnett"},
    "explain": {"config", "draws", "data", "models", "explain"},
    "analysis": {"config", "study", "analysis", "dunnett"},
}
LIGHT = {"config", "draws", "analysis", "study/identity", "study/plan", "study/record", "data/class_list"}
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
    for module in imports(ast.parse(file.read_text())):
        parts = module.split(".")
        if parts[0] == "vitlab" and len(parts) > 1:
            assert parts[1] in ALLOWED[room], f"{place} imports {module}"
            if room == "analysis" and parts[1] == "study":
                assert parts[2:3] == ["record"], f"{place} imports {module}: analysis knows records only"
        assert parts[0] != "hydra" or room == "config", f"{place} imports {module}"


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_light_modules_start_fast(file: Path):
    place = str(file.relative_to(ROOT / "vitlab").with_suffix(""))
    if any(place == light or place.startswith(light + "/") for light in LIGHT):
        at_import = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        named = {m.split(".")[0] for n in at_import for m in imports(ast.Module(body=[n], type_ignores=[]))}
        assert not named & HEAVY, f"{place} imports {named & HEAVY} when it is imported"
