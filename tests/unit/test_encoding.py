"""Text is UTF-8 whatever the locale says: every call that opens text names its encoding.

ruff's PLW1514 knows `open` and paths whose type it can see; this reads every call of that name.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARY = {"Image", "files", "os", "tarfile", "zipfile"}
"""Modules whose `open` returns no text, and ours whose text is UTF-8."""


def files():
    rooms = ("vitlab", "hydra_plugins", "tests", "benchmarks")
    return [*ROOT.glob("*.py"), *(f for room in rooms for f in sorted((ROOT / room).rglob("*.py")))]


def without_encoding(tree: ast.AST):
    """Calls that open text, or a process whose output is text, and leave its encoding to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function, keywords = node.func, {k.arg: k.value for k in node.keywords}
        named = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        if "encoding" in keywords or owner in BINARY:
            continue
        method = isinstance(function, ast.Attribute)
        if (named in ("read_text", "write_text") and method) or named in ("fdopen", "FileHandler"):
            yield node
        elif named in ("NamedTemporaryFile", "TemporaryFile"):
            mode = keywords.get("mode") or (node.args[0] if node.args else None)
            if "b" not in str(getattr(mode, "value", "w+b")):
                yield node
        elif named == "open":
            position = 0 if method and owner != "gzip" else 1
            mode = keywords.get("mode") or (node.args[position] if len(node.args) > position else None)
            if method and owner != "gzip" and mode is not None and not isinstance(mode, ast.Constant):
                continue  # `archive.open(member)`, which gives bytes
            if "b" not in str(getattr(mode, "value", "r")) and owner != "gzip":
                yield node
        elif named in ("run", "Popen", "check_output", "check_call") and {"text", "universal_newlines"} & set(keywords):
            yield node


@pytest.mark.parametrize("file", files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_text_is_opened_as_utf_8(file):
    found = [
        f"line {n.lineno}: {ast.unparse(n)}" for n in without_encoding(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    ("code", "wrong"),
    [("path.read_text()", True), ("path.write_text(x)", True), ("open(f)", True), ("open(f, 'w')", True),
     ("path.open('a')", True), ("subprocess.run(x, text=True)", True), ("path.open('rb')", False),
     ("open(f, mode='wb')", False), ("path.read_text(encoding='utf-8')", False), ("Image.open(f)", False),
     ("tempfile.TemporaryFile('w')", True), ("tempfile.TemporaryFile()", False), ("archive.open(member)", False),
     ("read_text(path)", False), ("subprocess.run(x)", False), ("open(f, encoding='utf-8')", False)],
)  # fmt: skip
def test_the_check_sees_what_it_should(code, wrong):
    assert bool(list(without_encoding(ast.parse(code)))) == wrong
