"""What a Boltzmann machine takes as states: one check for all kinds of units and all methods."""

import dataclasses
import math

import torch
from torch import Tensor

from genfast._arguments import real
from genfast._tracing import has_values


@dataclasses.dataclass(frozen=True)
class Values:
    """The values of a kind of units: their interval, and the states in it where there are but a few."""

    low: float
    high: float
    states: tuple[float, ...] = ()
    wanted: str = ""
    means: str = ""
    """What is wanted where means of states are taken too."""
    hint: str = ""
    n_classes: int = 1
    """Length of a unit's one-hot vector."""


BITS = Values(
    0, 1, (0, 1), "0 or 1", "0 or 1, or probabilities in between",
    "(genfast.data.Dataset.binarized(), or (x > threshold).float(), makes images 0/1)",
)  # fmt: skip
SPINS = Values(
    -1, 1, (-1, 1), "-1 or 1", "-1 or 1, or means in between", "(2 * x - 1 makes -1 and 1 of 0 and 1)"
)  # fmt: skip
REALS = Values(-math.inf, math.inf, (), "finite numbers", "finite numbers")
POSITIVE = Values(0, math.inf, (), "finite numbers >= 0", "finite numbers >= 0")


def one_hot_values(n_classes: int) -> Values:
    """Those of units of n_classes classes."""
    return Values(
        0, 1, (0, 1), "one-hot states, 0 or 1", "one-hot states or probabilities of the classes, 0 to 1",
        "(genfast.boltzmann.units.Softmax.one_hot makes them of the classes' numbers)", n_classes,
    )  # fmt: skip


def probabilities(name: str, x: Tensor, n_units: int, dtype: torch.dtype) -> Tensor:
    """x `[..., n_units]` in dtype: 0/1 states in any dtype, or probabilities of 1 in between; see `checked`."""
    return checked(name, x, n_units, dtype, BITS, states=False)


def binary(name: str, x: Tensor, n_units: int, dtype: torch.dtype) -> Tensor:
    """The same for x of 0 and 1 alone."""
    return checked(name, x, n_units, dtype, BITS, states=True)


def checked(name: str, x: Tensor, size: int, dtype: torch.dtype, values: Values, *, states: bool) -> Tensor:
    """x `[..., size]` in dtype, where it holds states of a kind of units or, but for `states`, means of such.

    On the CPU other values are refused, in one pass over x. Elsewhere (on a GPU, where looking would wait, and inside
    torch.compile and transforms) they become NaN.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: another last dimension, or other values.
    """
    real(name, x, size)
    if x.dtype == torch.bool and values is BITS:
        return x.to(dtype)
    few = states and bool(values.states)
    if x.device.type != "cpu" or not has_values(x):
        good = _are_states(x, values) if few else (x >= values.low) & (x <= values.high) & (x.abs() != math.inf)
        if values.n_classes > 1:
            good = good & (_class_sums(x, values) - 1).abs().le(_SLACK).repeat_interleave(values.n_classes, -1)
        x = x if x.dtype == dtype else x.to(dtype)
        return torch.where(good, x, torch.nan)
    if x.numel():
        wanted = values.wanted if states else values.means
        hint = f" {values.hint}" if values.hint else ""
        low, high = (t.item() for t in torch.aminmax(x.detach()))
        if not (values.low <= low and high <= values.high and math.isfinite(low) and math.isfinite(high)):
            got = f"values from {low:g} to {high:g}" if low <= high else "NaN"
            raise ValueError(f"{name}: got {got}, want {wanted}{hint}")
        exact = not x.is_floating_point() and values.states == (0, 1)
        if few and not exact and not bool(_are_states(x, values).all()):
            raise ValueError(
                f"{name}: got values between {values.low:g} and {values.high:g}, want {wanted} alone{hint}"
            )
        if values.n_classes > 1:
            _check_classes(name, x, values, f"{wanted}{hint}")
    return x if x.dtype == dtype else x.to(dtype)


_SLACK = 0.02  # of probabilities in bfloat16


def _class_sums(x: Tensor, values: Values) -> Tensor:
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    units: Tensor = x.unflatten(-1, (-1, values.n_classes))
    return units.sum(-1)


def _check_classes(name: str, x: Tensor, values: Values, wanted: str) -> None:
    sums = _class_sums(x.detach(), values)
    worst = sums.flatten()[(sums - 1).abs().argmax()].item()
    if not abs(worst - 1) <= _SLACK:
        raise ValueError(
            f"{name}: got a unit whose {values.n_classes} classes sum to {worst:g}, want 1 in each unit: {wanted}"
        )


def _are_states(x: Tensor, values: Values) -> Tensor:
    first, second = values.states
    return (x == first) | (x == second)


def uniform(shape: torch.Size, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Numbers in [0, 1) on the device and in the dtype of `like`, drawn where the generator lives."""
    at = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=at, dtype=like.dtype).to(like.device)


def drawn(v: Tensor, generator: torch.Generator | None) -> Tensor:
    """0/1 states of which each unit is 1 with the probability v; 0/1 states stay as they are."""
    at = v.device if generator is None else generator.device
    return (torch.rand(v.shape, generator=generator, device=at).to(v.device) < v).to(v.dtype)
