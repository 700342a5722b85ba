"""What the splines share: checks of parameters and options, the box they live on, a bound for each feature."""

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from genfast._register import HALF, autocast_to_float32, is_plain
from genfast.ops import _checks as check
from genfast.ops import _shared_rows as shared

Box = tuple[float, float, float, float]

_BOUNDS = {
    torch.float64: (2.0**-200, 2.0**200), torch.float32: (2.0**-30, 2.0**30), torch.bfloat16: (2.0**-30, 2.0**30),
    torch.float16: (2.0**-14, 65504.0),
}  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether it is a plain number, and no tensor, which would have a gradient."""
    return type(value) is float or isinstance(value, (int, float, Real, torch.SymFloat))


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype of x, or that to which autocast raises it."""
    return torch.float32 if x.dtype != torch.float64 and autocast_to_float32(x) else x.dtype


def bounds(x: Tensor) -> tuple[float, float]:
    """The least and the largest half side of a square that the dtype carries."""
    return _BOUNDS[computed_in(x)]


def separate(x: Tensor, **given: Any) -> tuple[int, tuple[Tensor, ...]]:
    """The number of bins, that of `widths`, of parameters that are given apart, and these."""
    check.same_dtype_and_device(x, "x", **given)
    widths = given["widths"]
    if widths.dim() == 0 or widths.shape[-1] == 0:
        raise ValueError(f"widths: got shape {list(widths.shape)}, want [..., K] with K >= 1")
    bins = int(widths.shape[-1])
    shared.check_shape("widths", widths, x, bins, "K")
    return bins, tuple(given.values())


def packed_bins(x: Tensor, params: Any, times: int, more: int, least: int = 1) -> int:
    """The number K of bins of rows of `times` K + `more` numbers."""
    check.same_dtype_and_device(x, "x", params=params)
    size = params.shape[-1] if params.dim() else 0
    bins: int = (size - more) // times
    if times * bins + more != size or bins < least:
        row = f"{times} K" + (f" {'+' if more > 0 else '-'} {abs(more)}" if more else "")
        raise ValueError(f"params: got shape {list(params.shape)}, want [..., {row}] with K >= {least}")
    shared.check_shape("params", params, x, size, f"{size}")
    return bins


def check_kinds(x: Tensor, flags: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Refuse flags that are no bools and numbers that are none, and a `bound` that the dtype does not carry."""
    for name, value in flags.items():
        if type(value) is not bool:
            raise TypeError(f"{name}: got {type(value).__name__}, want a bool")
    for name, value in numbers.items():
        if not is_number(value):
            raise TypeError(f"{name}: got {type(value).__name__}, want a number (it has no gradient)")
    (low, high), bound = bounds(x), numbers["bound"]
    if not low <= bound <= high:
        raise ValueError(f"bound: got {bound}, want {low:.3g} to {high:.3g} for {computed_in(x)}")


def check_least(name: str, least: float, bins: int) -> None:
    """Refuse a share that leaves no room for so many bins."""
    if not 0 <= least * bins <= 1:
        raise ValueError(f"{name}: got {least}, want between 0 and 1 / K = {1 / bins:g}")


def box(
    x: Tensor, bound: float, left: Any, right: Any, bottom: Any, top: Any, *, closed: bool, scaled: bool
) -> Box:  # fmt: skip
    """(left, right, bottom, top), those that are not given from the bound."""
    low, high = bounds(x)
    given: dict[str, Any] = {"left": left, "right": right, "bottom": bottom, "top": top}
    for name, value in given.items():
        if value is None:
            continue
        if not is_number(value):
            raise TypeError(f"{name}: got {type(value).__name__}, want a number (it has no gradient)")
        if not closed:
            raise ValueError(f"{name}: got {value}, want none with these tails (a box is for tails=None)")
        if scaled:
            raise ValueError(f"{name}: got {value} and a tensor as bound, want one or the other")
        if not -high <= value <= high:
            raise ValueError(f"{name}: got {value}, want -{high:.3g} to {high:.3g} for {computed_in(x)}")
    sides = [float(-bound if n in ("left", "bottom") else bound) if v is None else float(v) for n, v in given.items()]
    for (name, _), start, end in zip([*given.items()][1::2], sides[::2], sides[1::2], strict=True):
        if not end - start >= 2 * low:
            raise ValueError(f"{name}: got {end}, want more than the other end {start} by {2 * low:.3g} or more")
    return sides[0], sides[1], sides[2], sides[3]


def check_bound(bound: Tensor, x: Tensor) -> None:
    """Refuse a tensor that is no bound for x. Values are looked at where that is for free."""
    check.same_dtype_and_device(x, "x", bound=bound)
    lead = bound.shape
    if len(lead) > x.dim() or any(b not in (1, s) for b, s in zip(lead, x.shape[x.dim() - len(lead) :], strict=True)):
        raise ValueError(f"bound: got shape {list(lead)}, want what broadcasts to {list(x.shape)} of x")
    if bound.device.type == "cpu" and _has_values(bound) and not bool((bound > 0).all()):
        raise ValueError(f"bound: got {bound.min().item():.3g} in it, want positive numbers")


def check_domain(x: Tensor, bound: Tensor | None, box: Box, closed: bool, inverse: bool) -> None:
    """Refuse numbers outside a closed spline."""
    if not closed:
        raise ValueError("check_domain: got True, want it with tails=None only (others are defined everywhere)")
    if not _has_values(x) or x.numel() == 0:
        return
    start, end = box[2:] if inverse else box[:2]
    outside = (x.abs() > bound) if bound is not None else (x < start) | (x > end)
    if bool(outside.any()):
        low, high = x.min().item(), x.max().item()
        where = "the bounds" if bound is not None else f"[{start:g}, {end:g}]"
        raise ValueError(f"x: got numbers from {low:g} to {high:g}, want them within {where} of a closed spline")


def scaled(
    spline: Callable[..., tuple[Tensor, Tensor]], x: Tensor, given: tuple[Tensor, ...], bound: Tensor, *, closed: bool
) -> tuple[Tensor, Tensor]:
    """B f(x / B) for a spline f on [-1, 1]. log_det is that of f, and slopes are those of f."""
    dtype = computed_in(x)
    if x.dtype in HALF:
        x, bound, *rest = (t.float() for t in (x, bound, *given))
        given = tuple(rest)
    valid = bound > 0
    inside = (x.abs() <= bound) & valid
    # where x lies outside, 0 in its place keeps infinity, and what it would do to gradients, out
    y, log_det = spline(x.masked_fill(~inside, 0) / bound.masked_fill(~valid, 1), given)
    nan = torch.full_like(x, torch.nan)
    identity = torch.zeros_like(valid) if closed else valid
    y = torch.where(inside, y * bound, torch.where(identity, x, nan))
    log_det = torch.where(inside, log_det, torch.where(identity & ~x.isnan(), torch.zeros_like(x), nan))
    return y.to(dtype), log_det


def _has_values(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and not x.is_meta and is_plain((x,))
