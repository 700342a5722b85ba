"""What a Boltzmann machine takes as states: one check for all of its methods."""

import torch
from torch import Tensor

from genfast._arguments import real
from genfast._tracing import has_values

_HINT = "(genfast.data.Dataset.binarized(), or (x > threshold).float(), makes images 0/1)"


def probabilities(name: str, x: Tensor, n_units: int, dtype: torch.dtype) -> Tensor:
    """x `[..., n_units]` in dtype: 0/1 states in any dtype, or probabilities of 1 in between.

    On the CPU other values are refused, in one pass over x. Elsewhere (on a GPU, where looking would wait, and inside
    torch.compile and transforms) they become NaN.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: another last dimension, or values outside [0, 1] or NaN.
    """
    return _checked(name, x, n_units, dtype, states=False)


def binary(name: str, x: Tensor, n_units: int, dtype: torch.dtype) -> Tensor:
    """The same for x of 0 and 1 alone."""
    return _checked(name, x, n_units, dtype, states=True)


def _checked(name: str, x: Tensor, n_units: int, dtype: torch.dtype, *, states: bool) -> Tensor:
    real(name, x, n_units)
    if x.dtype == torch.bool:
        return x.to(dtype)
    if x.device.type != "cpu" or not has_values(x):
        good = (x == 0) | (x == 1) if states else (x >= 0) & (x <= 1)
        x = x if x.dtype == dtype else x.to(dtype)
        return torch.where(good, x, torch.nan)
    if x.numel():
        low, high = (t.item() for t in torch.aminmax(x.detach()))
        if not (low >= 0 and high <= 1):
            wanted = "0 or 1" if states else "0 or 1, or probabilities in between"
            got = f"values from {low:g} to {high:g}" if low <= high else "NaN"
            raise ValueError(f"{name}: got {got}, want {wanted} {_HINT}")
        if states and x.is_floating_point() and not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(f"{name}: got values between 0 and 1, want 0 or 1 alone {_HINT}")
    return x if x.dtype == dtype else x.to(dtype)


def drawn(v: Tensor, generator: torch.Generator | None) -> Tensor:
    """0/1 states of which each unit is 1 with the probability v; 0/1 states stay as they are."""
    at = v.device if generator is None else generator.device
    return (torch.rand(v.shape, generator=generator, device=at).to(v.device) < v).to(v.dtype)
