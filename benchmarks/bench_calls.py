"""Calls so small that what surrounds the arithmetic is what they cost, against the eager operations they replace.

The cases are the functions `calls(options)` of the other benchmarks.
"""

from collections.abc import Iterator

from .runner import available, module
from .timing import Case, Options


def cases(options: Options) -> Iterator[Case]:
    """Toy sizes of every op. The goals are those of a CPU."""
    for name in available():
        calls = getattr(module(name), "calls", None)
        if calls is not None:
            yield from calls(options)
