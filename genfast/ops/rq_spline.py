"""Monotone rational-quadratic splines: each direction and each gradient in one kernel."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from genfast._differentiable import differentiable
from genfast._register import HALF, autocast_to_float32, like
from genfast.ops import _checks as check
from genfast.ops import _shared_rows as shared
from genfast.reference import rq_spline as reference


# Numbers [G, M] read rows of parameters [G, P, ...], number i of its group row (i / inner) % P: so broadcasting is said
# without a copy, and G is what a batch folds into. The parameters are three tensors, or one of [widths | heights |
# slopes].
def _outputs(
    x: Tensor, widths: Tensor | None, heights: Tensor | None, slopes: Tensor | None, params: Tensor | None,
    inner: int, bound: float, min_width: float, min_height: float, min_slope: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(x), x.new_empty(x.shape, dtype=torch.float32) if x.dtype in HALF else like(x)


def _reference(
    x: Tensor, widths: Tensor | None, heights: Tensor | None, slopes: Tensor | None, params: Tensor | None,
    inner: int, bound: float, min_width: float, min_height: float, min_slope: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parts = (widths, heights, slopes)
    if params is not None:
        bins = (params.shape[-1] + 1) // 3
        parts = params.split([bins, bins, bins - 1], -1)
    widths, heights, slopes = (p[:, None, :, None] for p in parts if p is not None)
    groups, _, rows = widths.shape[:3]
    y, log_det = reference.rational_quadratic_spline(
        x.reshape(groups, x.shape[1] // max(rows * inner, 1), rows, inner), widths, heights, slopes, bound=bound,
        min_bin_width=min_width, min_bin_height=min_height, min_derivative=min_slope, inverse=inverse,
    )  # fmt: skip
    return y.reshape(x.shape), log_det.reshape(x.shape)


_op = differentiable(
    "rq_spline", _outputs, outputs=("y", "log_det"), reference=_reference,
    rows=("x", "widths", "heights", "slopes", "params"),
)  # fmt: skip


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor | None = None,
    heights: Tensor | None = None,
    derivatives: Tensor | None = None,
    *,
    params: Tensor | None = None,
    bound: float = 3.0,
    tails: str = "linear",
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Map each number through a monotone rational-quadratic spline of its own.

    The square :math:`[-B, B]^2` is cut into K bins of widths :math:`2B\,(m + (1 - mK)\,\mathrm{softmax}(w))_k`, heights
    alike, and the slope at the K - 1 inner knots is :math:`m_d + \mathrm{softplus}(d_k)`; it is 1 at both ends, and
    outside the square the map is the identity. In the bin of left knot :math:`(x_k, y_k)`, with
    :math:`\theta = (x - x_k) / (x_{k+1} - x_k)`, :math:`t = \theta (1 - \theta)` and s the bin's height over its width,

    .. math:: y = y_k + (y_{k+1} - y_k)\,\frac{s\,\theta^2 + d_k t}{s + (d_k + d_{k+1} - 2 s)\,t}.

    The conventions are those of nflows' `unconstrained_rational_quadratic_spline` (its `tail_bound` is `bound` here).
    Forward and inverse are closed formulas, each one kernel, as are their gradients; only the arguments are kept for
    the backward. No finite parameters, however extreme, give a NaN; slopes are limited to :math:`2^{-30} \dots 2^{30}`,
    and bins are at least :math:`2^{-30}` of the square (:math:`2^{-50}` in float64). Infinite parameters mean their
    limit, where there is one: a width or height of -inf gives the least bin, a slope of either infinity the limit above
    or m_d; a width or height of +inf, or -inf in all bins, gives NaN.

    A round trip returns to x within the rounding of y (:math:`2^{-24} B` in float32, :math:`2^{-53} B` in float64) over
    the slope; in float32 that is 2e-6 B where the slope is between 1/20 and 20. What lies in a bin or on a slope near
    the limits above, as with minima of 0 and logits of size 10, does not come back: many x share one y.

    Args:
        x: numbers of any shape `[...]`; float32 or float64, or float16/bfloat16 (computed in float32).
        widths: raw widths `[..., K]`; the leading dimensions are those of x or broadcast to them. A row of parameters
            that many numbers share (`[K]`: one spline for all, `[D, K]`: one for each feature of x `[N, D]`) is read
            where it lies, and its gradient summed as it arises: no memory for each number, and less work.
        heights: raw heights `[..., K]`.
        derivatives: raw slopes `[..., K - 1]`. More are accepted as nflows does: with K or more, the K-th gives the
            slope at the right end of the last bin instead of 1; those after it are not read and get no gradient.
        params: in place of the three, one tensor `[..., 3 K - 1]` of rows [widths | heights | derivatives], as a
            network puts it out. It is read, and its gradient written, without taking it apart.
        bound: B, the half side of the square: 2^-30 to 2^30 in float32 and bfloat16, 2^-200 to 2^200 in float64, and
            2^-14 to 65504 in float16. A number, like all options: it has no gradient.
        tails: what lies outside the square; "linear", the identity, is what there is.
        min_bin_width: the least share m of the square's width that a bin takes.
        min_bin_height: the same for heights.
        min_derivative: the least slope m_d at a knot.
        inverse: apply the inverse map.

    Returns:
        y: `[...]`, the mapped numbers. NaN where x or a parameter in use is NaN.
        log_det: `[...]`, log dy/dx of the map just applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is missing or is not a floating-point tensor, dtypes differ, or an option no number.
        ValueError: a shape does not fit, tensors lie on different devices, the minima leave no room for K bins, or
            `bound`, `tails` or `min_derivative` is out of range.

    Source:
        Durkan, Bekasov, Murray & Papamakarios, "Neural spline flows", NeurIPS 2019, eq. 4-8; the spline is that of
        Gregory & Delbourgo, IMA J. Numer. Anal. 2 (1982).

    Example:
        >>> x, w, h, d = torch.randn(64, 2), torch.randn(64, 2, 8), torch.randn(64, 2, 8), torch.randn(64, 2, 7)
        >>> y, log_det = genfast.ops.rational_quadratic_spline(x, w, h, d)
        >>> x_again, _ = genfast.ops.rational_quadratic_spline(y, w, h, d, inverse=True)
        >>> y.shape, log_det.shape
        (torch.Size([64, 2]), torch.Size([64, 2]))
    """
    check.floating("x", x)
    if params is None:
        given = _separate(x, widths, heights, derivatives)
        bins = given[0].shape[-1]
    elif widths is None and heights is None and derivatives is None:
        given, bins = _packed(x, params)
    else:
        raise TypeError("params: got it and widths, heights or derivatives too, want one or the other")
    _check_options(x, bins, bound, tails, min_bin_width, min_bin_height, min_derivative, inverse)
    numbers, rows, inner = shared.flatten(x, given)
    parameters = (*rows, None) if params is None else (None, None, None, *rows)
    y, log_det = _op(
        numbers, *parameters, inner, float(bound), float(min_bin_width), float(min_bin_height), float(min_derivative),
        inverse,
    )  # fmt: skip
    return (y, log_det) if x.dim() == 2 and numbers is x else (y.reshape(x.shape), log_det.reshape(x.shape))


def _separate(x: Tensor, widths: Any, heights: Any, derivatives: Any) -> tuple[Tensor, ...]:
    check.same_dtype_and_device(x, "x", widths=widths, heights=heights, derivatives=derivatives)
    if widths.dim() == 0 or widths.shape[-1] == 0:
        raise ValueError(f"widths: got shape {list(widths.shape)}, want [..., K] with K >= 1")
    bins = int(widths.shape[-1])
    shared.check_shape("widths", widths, x, bins, "K")
    shared.check_shape("heights", heights, x, bins, f"K = {bins} of widths")
    shared.check_shape("derivatives", derivatives, x, None, f"at least K - 1 = {bins - 1}")
    if derivatives.shape[-1] < bins - 1:
        raise ValueError(f"derivatives: got {derivatives.shape[-1]} a number, want at least K - 1 = {bins - 1}")
    return widths, heights, derivatives


def _packed(x: Tensor, params: Any) -> tuple[tuple[Tensor, ...], int]:
    check.same_dtype_and_device(x, "x", params=params)
    size = params.shape[-1] if params.dim() else 0
    if size % 3 != 2:
        raise ValueError(f"params: got shape {list(params.shape)}, want [..., 3 K - 1] with K >= 1")
    shared.check_shape("params", params, x, size, f"{size}")
    return (params,), (size + 1) // 3


_BOUNDS = {
    torch.float64: (2.0**-200, 2.0**200), torch.float32: (2.0**-30, 2.0**30), torch.bfloat16: (2.0**-30, 2.0**30),
    torch.float16: (2.0**-14, 65504.0),
}  # fmt: skip


def _check_options(
    x: Tensor, bins: int, bound: Any, tails: str, min_bin_width: Any, min_bin_height: Any, min_derivative: Any,
    inverse: Any,
) -> None:  # fmt: skip
    if tails != "linear":
        raise ValueError(f"tails: got {tails!r}, want 'linear' (the identity outside [-bound, bound])")
    if type(inverse) is not bool:
        raise TypeError(f"inverse: got {type(inverse).__name__}, want a bool")
    numbers = {
        "bound": bound, "min_bin_width": min_bin_width, "min_bin_height": min_bin_height,
        "min_derivative": min_derivative,
    }  # fmt: skip
    for name, value in numbers.items():
        if not isinstance(value, (int, float, Real, torch.SymFloat)):
            raise TypeError(f"{name}: got {type(value).__name__}, want a number (it has no gradient)")
    dtype = torch.float32 if x.dtype != torch.float64 and autocast_to_float32(x) else x.dtype
    low, high = _BOUNDS[dtype]
    if not low <= bound <= high:
        raise ValueError(f"bound: got {bound}, want {low:.3g} to {high:.3g} for {dtype}")
    for name, least in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
        if not 0 <= least * bins <= 1:
            raise ValueError(f"{name}: got {least}, want between 0 and 1 / K = {1 / bins:g}")
    if not 0 <= min_derivative < 1:
        raise ValueError(f"min_derivative: got {min_derivative}, want between 0 and 1, and less than 1")
