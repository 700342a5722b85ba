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


LAYERS = ("cli", "training", "recipes", "flows|boltzmann|data", "ops", "_register|_native|reference")
"""What stands further left uses what stands further right, and nothing uses what stands beside it."""


def test_dependencies_run_one_way():
    """Commands use training, that uses recipes, these use models, models use ops, ops use kernels; never otherwise."""
    layers = [layer.split("|") for layer in LAYERS]
    for i, layer in enumerate(layers):
        for package in layer:
            above = [other for others in layers[:i] for other in others]
            beside = [other for other in layer if other != package and package != "_register"]
            forbidden = tuple(f"genfast.{other}" for other in [*above, *beside])
            folder = ROOT / "genfast" / package
            for path in folder.rglob("*.py") if folder.is_dir() else folder.parent.glob(f"{package}.py"):
                for name in imports(path):
                    assert not f"{name}.".startswith(tuple(f"{module}." for module in forbidden)), (path, name)


def test_no_circle_of_imports():
    """Wherever in a file the import stands; but for the package itself, which every part may ask for its version."""
    modules = {}
    for path in [*(ROOT / "genfast").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] != ("genfast", "cli"):
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    del modules["genfast"]
    graph = {name: {m for m in imports(path) if m in modules and m != name} for name, path in modules.items()}
    for name, used in graph.items():  # taking something from a module of a package is not using the whole package
        graph[name] = {m for m in used if not any(other.startswith(f"{m}.") for other in used)}
    assert len(graph["benchmarks.__main__"]) > 3
    done = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for used in sorted(graph[name]):
                visit(used, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])
