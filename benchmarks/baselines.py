"""What genfast is compared with: helpers that several benchmarks share.

A baseline is what a careful user of PyTorch would write, not a straw man: no needless copies, no Python loop where one
operation does, and torch.compile at its best (static shapes, nothing left over from the previous case).
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch

__all__ = ["compiled", "peer"]

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """torch.compile of a function, for one shape, in one graph, compiled afresh."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def peer(name: str) -> ModuleType | None:
    """The module of another library, or None, said once, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        library = name.split(".", 1)[0]
        print(f"{library} is not installed and is left out (pip install 'genfast[bench]')", file=sys.stderr)
        return None
