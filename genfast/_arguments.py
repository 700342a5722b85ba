"""Checks of the arguments of modules."""

import numbers

import torch
from torch import Tensor


def integer(name: str, value: object, *, at_least: int = 1) -> int:
    """`value` as it is, where it is an integer of at least `at_least`.

    Raises:
        ValueError: it is not; the message names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}: got {value!r}, want an integer >= {at_least}")
    return value


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float, where it is a constant from `low` to `high`; tensors of one element count, without gradient.

    Raises:
        TypeError: it is no number, or a tensor that requires a gradient (which a constant does not get).
        ValueError: it is out of range.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise TypeError(f"{name}: got a tensor that requires a gradient, want a constant, which gets none")
        if value.numel() != 1 or value.is_complex():
            raise TypeError(f"{name}: got {value.dtype} of shape {list(value.shape)}, want a number")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {type(value).__name__}, want a number")
    result = float(value)
    if not low <= result <= high:
        raise ValueError(f"{name}: got {value!r}, want a number from {low:g} to {high:g}")
    return result


def real(name: str, x: object, size: int | None = None) -> None:
    """Refuse what is not a dense tensor `[..., size]` of real numbers.

    Raises:
        TypeError: no dense tensor, or complex numbers.
        ValueError: another last dimension.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, want a tensor")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: got a tensor of layout {x.layout}, want a dense one: x.to_dense()")
    if x.is_complex():
        raise TypeError(f"{name}: got {x.dtype}, want real numbers")
    if size is not None and (x.ndim == 0 or x.shape[-1] != size):
        raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {size}]")


def floating(name: str, x: object, size: int | None = None) -> None:
    """Refuse what is not a floating-point tensor `[..., size]`.

    Raises:
        TypeError: no tensor, or other numbers.
        ValueError: another last dimension.
    """
    real(name, x, size)
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise TypeError(f"{name}: got {x.dtype}, want a floating-point tensor")
