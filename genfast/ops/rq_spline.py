"""Monotone rational-quadratic splines: each direction and each gradient in one kernel."""

import math
from typing import Any

from torch import Tensor

from genfast._register import differentiable
from genfast.ops import _checks as check
from genfast.reference import rq_spline as reference


# The parameters are three tensors, or one of rows [widths | heights | slopes].
def _outputs(
    x: Tensor, widths: Tensor | None, heights: Tensor | None, slopes: Tensor | None, params: Tensor | None,
    bound: float, min_width: float, min_height: float, min_slope: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=check.accumulate_dtype(x))


def _reference(
    x: Tensor, widths: Tensor | None, heights: Tensor | None, slopes: Tensor | None, params: Tensor | None,
    bound: float, min_width: float, min_height: float, min_slope: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if params is not None:
        bins = (params.shape[-1] + 1) // 3
        widths, heights, slopes = params.split([bins, bins, bins - 1], -1)
    return reference.rational_quadratic_spline(
        x, widths, heights, slopes, bound=bound, min_bin_width=min_width, min_bin_height=min_height,
        min_derivative=min_slope, inverse=inverse,
    )  # fmt: skip


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
    the backward. No parameters, however extreme, give a NaN; slopes are limited to :math:`2^{-30} \dots 2^{30}`, and
    bins are at least :math:`2^{-30}` of the square (:math:`2^{-50}` in float64).

    Args:
        x: numbers of any shape `[...]`; float32 or float64, or float16/bfloat16 (computed in float32).
        widths: raw widths `[..., K]`; the leading dimensions are those of x or broadcast to them.
        heights: raw heights `[..., K]`.
        derivatives: raw slopes `[..., K - 1]`. More are accepted as nflows does: with K or more, the K-th gives the
            slope at the right end of the last bin instead of 1; those after it are not read and get no gradient.
        params: in place of the three, one tensor `[..., 3 K - 1]` of rows [widths | heights | derivatives], as a
            network puts it out. It is read, and its gradient written, without taking it apart.
        bound: B, the half side of the square.
        tails: what lies outside the square; "linear", the identity, is what there is.
        min_bin_width: the least share m of the square's width that a bin takes.
        min_bin_height: the same for heights.
        min_derivative: the least slope m_d at a knot.
        inverse: apply the inverse map.

    Returns:
        y: `[...]`, the mapped numbers. NaN where x or a parameter in use is NaN.
        log_det: `[...]`, log dy/dx of the map just applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is missing or is not a floating-point tensor, or dtypes differ.
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
        rows: tuple[Any, ...] = (*_separate(x, widths, heights, derivatives), None)
        bins = rows[0].shape[-1]
    elif widths is None and heights is None and derivatives is None:
        packed, bins = _packed(x, params)
        rows = (None, None, None, packed)
    else:
        raise TypeError("params: got it and widths, heights or derivatives too, want one or the other")
    _check_options(bins, bound, tails, min_bin_width, min_bin_height, min_derivative)
    flat = x if x.dim() == 1 else x.reshape(-1)
    y, log_det = _op(
        flat, *rows, float(bound), float(min_bin_width), float(min_bin_height), float(min_derivative), bool(inverse)
    )
    return (y, log_det) if x.dim() == 1 else (y.reshape(x.shape), log_det.reshape(x.shape))


def _separate(x: Tensor, widths: Any, heights: Any, derivatives: Any) -> tuple[Tensor, ...]:
    check.same_dtype_and_device(x, "x", widths=widths, heights=heights, derivatives=derivatives)
    if widths.dim() == 0 or widths.shape[-1] == 0:
        raise ValueError(f"widths: got shape {list(widths.shape)}, want [..., K] with K >= 1")
    bins = int(widths.shape[-1])
    rows = (
        _rows("widths", widths, x, bins, "K"),
        _rows("heights", heights, x, bins, f"K = {bins} of widths"),
        _rows("derivatives", derivatives, x, None, f"at least K - 1 = {bins - 1}"),
    )
    if rows[2].shape[-1] < bins - 1:
        raise ValueError(f"derivatives: got {rows[2].shape[-1]} a number, want at least K - 1 = {bins - 1}")
    return rows


def _packed(x: Tensor, params: Any) -> tuple[Tensor, int]:
    check.same_dtype_and_device(x, "x", params=params)
    size = params.shape[-1] if params.dim() else 0
    if size % 3 != 2:
        raise ValueError(f"params: got shape {list(params.shape)}, want [..., 3 K - 1] with K >= 1")
    return _rows("params", params, x, size, f"{size}"), (size + 1) // 3


def _rows(name: str, p: Tensor, x: Tensor, count: int | None, meaning: str) -> Tensor:
    """Parameters as `[N, count]`, one row for each number of x."""
    lead, want = p.shape[:-1], x.shape
    ok = p.dim() > 0 and (count is None or p.shape[-1] == count)
    if ok and lead != want:
        padded = (1,) * (len(want) - len(lead)) + tuple(lead)
        ok = len(padded) == len(want) and all(s in (1, w) for s, w in zip(padded, want, strict=True))
        p = p.expand(*want, p.shape[-1]) if ok else p
    if not ok:
        shape = ", ".join(map(str, [*want, meaning]))
        raise ValueError(f"{name}: got shape {list(p.shape)}, want [{shape}], or what broadcasts to it")
    return p if p.dim() == 2 else p.reshape(x.numel(), p.shape[-1])


def _check_options(
    bins: int, bound: float, tails: str, min_bin_width: float, min_bin_height: float, min_derivative: float
) -> None:
    if tails != "linear":
        raise ValueError(f"tails: got {tails!r}, want 'linear' (the identity outside [-bound, bound])")
    if not 0 < bound < math.inf:
        raise ValueError(f"bound: got {bound}, want a positive finite number")
    for name, least in (("min_bin_width", min_bin_width), ("min_bin_height", min_bin_height)):
        if not 0 <= least * bins <= 1:
            raise ValueError(f"{name}: got {least}, want between 0 and 1 / K = {1 / bins:g}")
    if not 0 <= min_derivative < 1:
        raise ValueError(f"min_derivative: got {min_derivative}, want between 0 and 1, and less than 1")
