"""Promises about the sources that no run of the program would notice being broken."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


def imports(path):
    """Names of the modules that a file imports, wherever it does, and of what it takes from them."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_torch_header_is_included(path):
    included = re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert not [name for name in included if re.match(r"(torch|ATen|c10|caffe2)\b", name)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_build_does_not_ask_for_torch():
    import tomllib

    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert not [name for name in requires if name.startswith("torch")]


def test_references_import_torch_only():
    for path in (ROOT / "genfast" / "reference").glob("*.py"):
        for name in imports(path):
            top = name.split(".")[0]
            allowed = top == "torch" or top in sys.stdlib_module_names or name.startswith("genfast.reference")
            assert allowed, (path, name)
