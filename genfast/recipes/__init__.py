"""Recipes: how each model is trained, one file a model.

`genfast/recipes/<model>.py` is all that the command line, `genfast.fit` and `genfast.load` know of a model: its
options, the data it takes, how it is built, its objective, optimiser, metrics and pictures, and what sampling it means.
A file put here is a model; there is no list of them. See docs/adding_a_model.md.
"""

import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genfast._errors import RunError

if TYPE_CHECKING:
    from genfast.recipes._base import Recipe


def names() -> list[str]:
    """The models that have a recipe, in the order of the alphabet."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def summary(name: str) -> str:
    """What a model is, in one line: the first line of its recipe's docstring, read without importing it."""
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    if spec is None or spec.origin is None:
        return ""
    source = Path(spec.origin).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def load(name: str) -> "type[Recipe[Any]]":
    """The recipe of a model.

    Raises:
        RunError: there is none.
    """
    if name not in names():
        raise RunError(f"unknown model {name!r}; there are {', '.join(names())}")
    recipe: type[Recipe[Any]] = importlib.import_module(f"{__name__}.{name}").Recipe
    return recipe
