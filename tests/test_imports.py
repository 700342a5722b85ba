"""Imports run one way, through the whole package and its benchmarks."""

import ast
from pathlib import Path

import pytest

import genfast

ROOT = Path(genfast.__file__).parent.parent

# A part imports those that stand on an earlier line, itself, and nothing else of genfast.
ORDER = [
    ("reference", "_"),  # _: the files genfast/_*.py, which may use each other, without circles
    ("data", "ops"),
    ("boltzmann", "flows", "vae", "energy", "autoregressive", "patch"),  # none of these imports another
    ("recipes",),
    ("sklearn",),
    ("training",),
    ("benchmarks",),
    ("cli",),
    ("__main__",),
]
RANK = {part: i for i, line in enumerate(ORDER) for part in line}


def modules():
    """The source of each module, by its dotted name."""
    found = {}
    for path in sorted(path for folder in ("genfast", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if not name.startswith("genfast.benchmarks")}


MODULES = modules()


def imported(name, path):
    """Modules of the package that a module imports, wherever in it, but for type checkers."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(id(inner) for part in node.body for inner in ast.walk(part))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            # What a package's own file does when it is imported counts too, unless a module below it is meant.
            targets = [target if target in MODULES else base for target in inner]
        else:
            continue
        yield from (target for target in targets if target in MODULES)


def part(name):
    if not name.startswith("genfast."):
        return name.split(".")[0]
    first = name.split(".")[1]
    return "_" if first.startswith("_") and first != "__main__" else first


GRAPH = {name: set(imported(name, path)) - {name} for name, path in MODULES.items()}


def test_every_part_has_a_place():
    missing = {part(name) for name in MODULES} - RANK.keys() - {"genfast"}
    assert not missing, f"say in ORDER where {missing} stands"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "genfast"])
def test_imports_run_one_way(name):
    own = part(name)
    for target in GRAPH[name]:
        # `from genfast import __version__` is free: genfast itself imports nothing until it is asked.
        if target != "genfast" and part(target) != own:
            assert RANK[part(target)] < RANK[own], f"{name} imports {target}"


def test_no_module_imports_itself_through_others():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(GRAPH[name]):
            # A package's file that only gathers the names of its modules may be imported by one of them, for another.
            if not name.startswith(f"{target}."):
                visit(target)
        path.pop()
        done.add(name)

    for name in MODULES:
        visit(name)


def test_importing_genfast_imports_nothing_heavy():
    import subprocess
    import sys

    from tests.cli.conftest import environment

    code = (
        "import sys, genfast, genfast.recipes, genfast.cli.start; genfast.recipes.summary('rbm');"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'typer') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
