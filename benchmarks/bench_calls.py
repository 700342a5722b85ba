"""Calls so small that what surrounds the arithmetic is what they cost, against the eager operations they replace.

The cases are the functions `calls(options)` of the other benchmarks.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from .timing import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Toy sizes of every op. The goals are those of a CPU."""
    for found in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda module: module.name):
        if found.name.startswith("bench_") and found.name != "bench_calls":
            calls = getattr(importlib.import_module(f".{found.name}", __package__), "calls", None)
            if calls is not None:
                yield from calls(options)
