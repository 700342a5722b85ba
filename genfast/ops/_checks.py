"""Checks of arguments: each error names the argument, what was got and what is wanted."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genfast._register import HALF, autocast_to_float32

_FLOATING = (torch.float32, torch.float64, *HALF)


def tensor(name: str, x: Any) -> None:
    """Refuse what is not a dense tensor."""
    if not isinstance(x, Tensor):
        hint = ": torch.from_numpy makes one" if type(x).__module__ == "numpy" else ""
        raise TypeError(f"{name}: got {type(x).__name__}, want a torch.Tensor{hint}")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: got a tensor of layout {x.layout}, want a dense one: x.to_dense()")


def floating(name: str, x: Any) -> None:
    """Refuse what is not a tensor of a dtype that the kernels know."""
    tensor(name, x)
    if x.dtype not in _FLOATING:
        raise TypeError(f"{name}: got {x.dtype}, want float32, float64, float16 or bfloat16")


def same_dtype_and_device(like: Tensor, first: str, **tensors: Any) -> None:
    """Refuse tensors of another dtype or device than `like`, which is called `first`.

    Under autocast half types count as float32, to which they are raised.
    """
    dtype, device = like.dtype, like.device
    for name, x in tensors.items():
        tensor(name, x)
        if x.device != device:
            raise ValueError(f"{name}: got a tensor on {x.device}, want {device} like {first}")
        if x.dtype != dtype and not (autocast_to_float32(like) and _raised(x.dtype) == _raised(dtype) == torch.float32):
            raise TypeError(f"{name}: got {x.dtype}, want {dtype} like {first}")


def _raised(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype


def shape(name: str, x: Tensor, want: Sequence[int | None], meaning: str, *values: object) -> None:
    """Refuse a tensor of another shape; None stands for any size. `values` go into the braces of `meaning`."""
    got = x.shape
    if got == want:
        return
    if len(got) != len(want) or any(w is not None and s != w for s, w in zip(got, want, strict=True)):
        raise ValueError(f"{name}: got shape {list(got)}, want {meaning.format(*values)}")


def rows(name: str, x: Tensor) -> tuple[Tensor, torch.Size]:
    """x as rows `[N, D]`, and its leading dimensions."""
    if x.dim() == 0:
        raise ValueError(f"{name}: got a scalar, want rows [..., D]")
    if x.dim() == 2:
        return x, x.shape[:1]
    n = 1
    for s in x.shape[:-1]:
        n *= s
    return x.reshape(n, x.shape[-1]), x.shape[:-1]


def restore(out: Tensor, log_det: Tensor, x: Tensor, batch: torch.Size) -> tuple[Tensor, Tensor]:
    """Results over rows in the leading dimensions of the argument x: the inverse of `rows`."""
    if x.dim() == 2:
        return out, log_det
    return out.reshape(x.shape), log_det.reshape(batch)


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over x: float32, or float64 where x is."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def sums(x: Tensor) -> Tensor:
    """A new tensor for one sum over each row of x `[N, ...]`."""
    return x.new_empty(x.shape[0], dtype=accumulate_dtype(x))  # an int: a torch.Size costs a microsecond more
