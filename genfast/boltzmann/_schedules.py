"""Temperatures: numbers above 0, and schedules of simulated annealing."""

import math

import torch
from torch import Tensor

from genfast._arguments import integer, number, real


def positive(name: str, value: object) -> float:
    """A finite number above 0.

    Raises:
        TypeError: no number.
        ValueError: it is not in that range.
    """
    result = number(name, value, -math.inf, math.inf)
    if not 0 < result < math.inf:
        raise ValueError(f"{name}: got {value!r}, want a finite number > 0")
    return result


def schedule(name: str, temperatures: Tensor) -> Tensor:
    """A schedule as float64 `[K]` on the CPU.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: another shape, or a temperature is not a finite number above 0.
    """
    real(name, temperatures)
    if temperatures.ndim != 1:
        raise ValueError(f"{name}: got shape {list(temperatures.shape)}, want [K]")
    ladder = temperatures.detach().double().cpu()
    for i, value in enumerate(ladder.tolist()):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value:g} at {i}, want finite numbers > 0")
    return ladder


def geometric_schedule(first: float, last: float, n: int) -> Tensor:
    """n temperatures from `first` to `last` with a constant ratio: `[n]`, float64.

    Raises:
        ValueError: a temperature is not a finite number > 0, or n is not an integer >= 1.

    Example:
        >>> geometric_schedule(8.0, 1.0, 4).tolist()
        [8.0, 4.0, 2.0, 1.0]
    """
    ends = math.log(positive("first", first)), math.log(positive("last", last))
    ladder = torch.linspace(*ends, integer("n", n), dtype=torch.float64).exp()
    return _with_ends(ladder, first, last)


def linear_schedule(first: float, last: float, n: int) -> Tensor:
    """n temperatures from `first` to `last` with a constant difference: `[n]`, float64.

    Raises:
        ValueError: a temperature is not a finite number > 0, or n is not an integer >= 1.

    Example:
        >>> linear_schedule(4.0, 1.0, 4).tolist()
        [4.0, 3.0, 2.0, 1.0]
    """
    ends = positive("first", first), positive("last", last)
    return _with_ends(torch.linspace(*ends, integer("n", n), dtype=torch.float64), first, last)


def _with_ends(ladder: Tensor, first: float, last: float) -> Tensor:
    ladder[0] = first
    ladder[-1] = last if len(ladder) > 1 else ladder[-1]
    return ladder
