"""Monotone splines of linear, quadratic and cubic pieces: each direction and its gradients in one kernel."""

from typing import Any

import torch
from torch import Tensor

from genfast._differentiable import differentiable
from genfast._register import HALF, like
from genfast.ops import _checks as check
from genfast.ops import _shared_rows as shared
from genfast.ops import _splines as common
from genfast.reference import poly_spline as reference

MOST_BINS = 1024  # of the kernels (csrc/ops/poly_spline/poly_spline.h), as are the numbers of the kinds
KINDS = ("linear", "quadratic", "cubic")


def _outputs(
    x: Tensor, params: Tensor, bins: int, left: float, right: float, bottom: float, top: float, min_width: float,
    min_height: float, kind: int, closed: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(x), x.new_empty(x.shape, dtype=torch.float32) if x.dtype in HALF else like(x)


def _reference(
    x: Tensor, params: Tensor, bins: int, left: float, right: float, bottom: float, top: float, min_width: float,
    min_height: float, kind: int, closed: bool, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    options: dict[str, Any] = {
        "box": (left, right, bottom, top), "tails": None if closed else "linear", "inverse": inverse
    }  # fmt: skip
    if kind == 0:
        return reference.linear_spline(x, params, **options)
    options |= {"min_bin_width": min_width, "min_bin_height": min_height}
    if kind == 1:
        return reference.quadratic_spline(x, *params.split([bins, params.shape[-1] - bins], -1), **options)
    return reference.cubic_spline(x, *params.split([bins, bins, 2], -1), **options)


_op = differentiable(
    "poly_spline", _outputs, outputs=("y", "log_det"), reference=_reference, rows=("x", "params")
)  # fmt: skip


def linear_spline(
    x: Tensor,
    pdf: Tensor,
    *,
    bound: float | Tensor = 3.0,
    tails: str | None = "linear",
    left: float | None = None,
    right: float | None = None,
    bottom: float | None = None,
    top: float | None = None,
    check_domain: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Map each number through a monotone piecewise linear function of its own: the simplest spline.

    [-B, B] is cut into K equal bins of densities softmax(pdf), and y is the cumulative density,

    .. math:: y = -B + 2B\,(p_0 + \dots + p_{k-1} + \theta p_k), \qquad \log dy/dx = \log (K p_k),

    in bin k at the share :math:`\theta` of it. The conventions are those of nflows' `linear_spline` and
    `unconstrained_linear_spline`. The derivative jumps at the knots, and at the ends of the square. Bins have a
    probability of at least :math:`2^{-30}` (:math:`2^{-50}` in float64), so that log_det is finite.

    Args:
        x: numbers of any shape `[...]`; float32 or float64, or float16/bfloat16 (computed in float32).
        pdf: logits `[..., K]` of the bins, 1 to 1024; the leading dimensions are those of x or broadcast to them.
        bound: B, the half side of the square: 2^-30 to 2^30 in float32 and bfloat16, 2^-200 to 2^200 in float64, and
            2^-14 to 65504 in float16. Or a tensor of positive numbers that broadcasts to x, `[D]` for one a feature,
            which has a gradient; where it is not positive the results are NaN.
        tails: what lies outside the square: "linear", the identity, or None: NaN.
        left: with `tails=None`, a box in place of the square: the left end of x, -B by default.
        right: the right end of x; B by default.
        bottom: what `left` is mapped to; -B by default.
        top: what `right` is mapped to; B by default. log_det counts the sides of the box, which nflows' does not.
        check_domain: with `tails=None`, refuse numbers outside the box. It looks at the numbers, for which a GPU has to
            be waited for, so it is not the default, and not done under a transform or a compiler.
        inverse: apply the inverse map.

    Returns:
        y: `[...]`, the mapped numbers. NaN where x or a parameter is NaN.
        log_det: `[...]`, log dy/dx of the map just applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is not a floating-point tensor, dtypes differ, or an option no number.
        ValueError: a shape does not fit, tensors lie on different devices, an option is out of range, a box is empty or
            given to linear tails, or with `check_domain` a number lies outside.

    Source:
        Müller, McWilliams, Rousselle, Gross & Novák, "Neural importance sampling", ACM Trans. Graphics 38 (2019),
        section 4.3.

    Example:
        >>> x, pdf = torch.rand(64, 2), torch.randn(64, 2, 10)
        >>> y, log_det = genfast.ops.linear_spline(x, pdf, tails=None, left=0, right=1, bottom=0, top=1)
    """
    check.floating("x", x)
    check.same_dtype_and_device(x, "x", pdf=pdf)
    bins = pdf.shape[-1] if pdf.dim() else 0
    if bins == 0:
        raise ValueError(f"pdf: got shape {list(pdf.shape)}, want [..., K] with K >= 1")
    shared.check_shape("pdf", pdf, x, bins, "K")
    box = (left, right, bottom, top)
    return _apply("pdf", x, pdf, bins, 0, bound, tails, box, 0.0, 0.0, check_domain, inverse)


def quadratic_spline(
    x: Tensor,
    widths: Tensor | None = None,
    heights: Tensor | None = None,
    *,
    params: Tensor | None = None,
    bound: float | Tensor = 3.0,
    tails: str | None = "linear",
    left: float | None = None,
    right: float | None = None,
    bottom: float | None = None,
    top: float | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    check_domain: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Map each number through a monotone piecewise quadratic function of its own: the derivative is piecewise linear.

    On axes of length 1, the bins have widths :math:`s = m + (1 - mK)\,\mathrm{softmax}(w)`, and the derivative at the
    knots is :math:`n_j = m_h + (1 - m_h) V_j / A` with :math:`V = \mathrm{softplus}(h) + 0.001` and A the area under
    them, linear between. In bin k at the share :math:`\theta`,

    .. math:: y = y_k + s_k (n_k \theta + (n_{k+1} - n_k)\,\theta^2 / 2), \qquad
        \log dy/dx = \log (n_k + (n_{k+1} - n_k)\,\theta).

    The conventions are those of nflows' `quadratic_spline` and `unconstrained_quadratic_spline`. With linear tails the
    heights are those of the K - 1 inner knots, and the derivative at both ends follows from them by nflows' formula
    (:math:`c\,(1 - (s_0 + s_{K-1}) / 4) = (s_0 V_1 + s_{K-1} V_{K-1}) / 4 + \sum_{0<j<K-1} s_j (V_j + V_{j+1}) / 2`),
    which is near 1, not 1: only there it jumps. The inverse is a root in closed form without cancellation, so it is
    right where a piece is nearly linear, where nflows' divides 0 by 0.

    Args:
        x: numbers of any shape `[...]`; float32 or float64, or float16/bfloat16 (computed in float32).
        widths: raw widths `[..., K]`, K up to 1024; the leading dimensions are those of x or broadcast to them.
        heights: raw derivatives at the knots: `[..., K - 1]` with linear tails, `[..., K + 1]` with none; with none
            K - 1 are taken too.
        params: in place of the two, one tensor of rows [widths | heights], `[..., 2 K - 1]` with linear tails and
            `[..., 2 K + 1]` with none, as a network puts it out. Separate ones are put together first.
        bound: as in `linear_spline`.
        tails: what lies outside the square: "linear", the identity, or None: NaN.
        left: with `tails=None`, a box in place of the square: the left end of x, -B by default.
        right: the right end of x; B by default.
        bottom: what `left` is mapped to; -B by default.
        top: what `right` is mapped to; B by default. log_det counts the sides of the box, which nflows' does not.
        min_bin_width: the least share m of the width that a bin takes.
        min_bin_height: the least derivative m_h of the map of an axis of length 1.
        check_domain: as in `linear_spline`.
        inverse: apply the inverse map.

    Returns:
        y: `[...]`, the mapped numbers. NaN where x or a parameter is NaN.
        log_det: `[...]`, log dy/dx of the map just applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is missing or is not a floating-point tensor, dtypes differ, or an option no number.
        ValueError: a shape does not fit, tensors lie on different devices, a minimum leaves no room, an option is out
            of range, a box is empty or given to linear tails, or with `check_domain` a number lies outside.

    Source:
        Müller, McWilliams, Rousselle, Gross & Novák, "Neural importance sampling", ACM Trans. Graphics 38 (2019),
        section 4.4.

    Example:
        >>> x, widths, heights = torch.randn(64, 2), torch.randn(64, 2, 8), torch.randn(64, 2, 7)
        >>> y, log_det = genfast.ops.quadratic_spline(x, widths, heights)
        >>> x_again, _ = genfast.ops.quadratic_spline(y, widths, heights, inverse=True)
    """
    check.floating("x", x)
    if params is not None and not (widths is None and heights is None):
        raise TypeError("params: got it and widths or heights too, want one or the other")
    more = -1 if tails == "linear" else 1
    if params is None:
        bins, (widths, heights) = common.separate(x, widths=widths, heights=heights)
        least = 2 if more < 0 else 1
        if bins < least:
            raise ValueError(f"widths: got K = {bins}, want K >= {least} with tails={tails!r}")
        allowed = (bins + more,) if more < 0 else (bins + 1, bins - 1)
        if heights.dim() and bins > 1 and heights.shape[-1] in allowed:
            more = heights.shape[-1] - bins
        name = "K - 1" if more < 0 else "K + 1"
        shared.check_shape("heights", heights, x, bins + more, f"{name} = {bins + more}")
        params = _joined(x, widths, heights)
    else:
        bins = common.packed_bins(x, params, 2, more, 2 if more < 0 else 1)
    box = (left, right, bottom, top)
    return _apply("params", x, params, bins, 1, bound, tails, box, min_bin_width, min_bin_height, check_domain, inverse)


def cubic_spline(
    x: Tensor,
    widths: Tensor | None = None,
    heights: Tensor | None = None,
    derivatives: Tensor | None = None,
    *,
    params: Tensor | None = None,
    bound: float | Tensor = 3.0,
    tails: str | None = "linear",
    left: float | None = None,
    right: float | None = None,
    bottom: float | None = None,
    top: float | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    check_domain: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Map each number through a monotone piecewise cubic function of its own, whose derivative is continuous within.

    The square :math:`[-B, B]^2` is cut into K bins of widths :math:`2B\,(m + (1 - mK)\,\mathrm{softmax}(w))_k`, heights
    alike, of slopes :math:`\delta_k`, height over width. At an inner knot the derivative is the mean of both slopes,
    each weighted with the width of the other bin, but at most twice the smaller one; at the ends it is
    :math:`3\,\mathrm{sigmoid}(d)` times the slope. Each piece is the cubic with these derivatives. With a and b the
    derivatives at its ends over :math:`\delta_k`, at the share :math:`\theta` of it,

    .. math:: y = y_k + (y_{k+1} - y_k)\,\theta\,(a (1 - \theta)^2 + \theta\,(\theta + (3 - b)(1 - \theta))).

    The conventions are those of nflows' `cubic_spline` and `unconstrained_cubic_spline`. The inverse is found by
    Newton's method within an interval that holds the root, to the accuracy of the dtype everywhere: nflows' roots by
    trigonometric functions are wrong where the pieces are nearly quadratic, and where two roots meet. A derivative
    within a bin of less than :math:`2^{-30}` of its slope is taken for that in log_det.

    Args:
        x: numbers of any shape `[...]`; float32 or float64, or float16/bfloat16 (computed in float32).
        widths: raw widths `[..., K]`, K up to 1024; the leading dimensions are those of x or broadcast to them.
        heights: raw heights `[..., K]`.
        derivatives: raw derivatives `[..., 2]` at the left and the right end, in nflows two tensors `[..., 1]`.
        params: in place of the three, one tensor of rows [widths | heights | derivatives], `[..., 2 K + 2]`, as a
            network puts it out. Separate ones are put together first.
        bound: as in `linear_spline`.
        tails: what lies outside the square: "linear", the identity, or None: NaN. The derivative jumps at the ends.
        left: with `tails=None`, a box in place of the square: the left end of x, -B by default.
        right: the right end of x; B by default.
        bottom: what `left` is mapped to; -B by default.
        top: what `right` is mapped to; B by default. log_det counts the sides of the box, which nflows' does not.
        min_bin_width: the least share m of the width that a bin takes.
        min_bin_height: the same for heights.
        check_domain: as in `linear_spline`.
        inverse: apply the inverse map.

    Returns:
        y: `[...]`, the mapped numbers. NaN where x or a parameter is NaN.
        log_det: `[...]`, log dy/dx of the map just applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is missing or is not a floating-point tensor, dtypes differ, or an option no number.
        ValueError: a shape does not fit, tensors lie on different devices, the minima leave no room for K bins, an
            option is out of range, a box is empty or given to linear tails, or with `check_domain` a number lies
            outside.

    Source:
        Durkan, Bekasov, Murray & Papamakarios, "Cubic-spline flows", ICML workshop INNF 2019; the interpolation is that
        of Steffen, Astronomy and Astrophysics 239 (1990).

    Example:
        >>> x, w, h, d = torch.randn(64, 2), torch.randn(64, 2, 8), torch.randn(64, 2, 8), torch.randn(64, 2, 2)
        >>> y, log_det = genfast.ops.cubic_spline(x, w, h, d)
        >>> x_again, _ = genfast.ops.cubic_spline(y, w, h, d, inverse=True)
    """
    check.floating("x", x)
    if params is not None and not (widths is None and heights is None and derivatives is None):
        raise TypeError("params: got it and widths, heights or derivatives too, want one or the other")
    if params is None:
        bins, (widths, heights, derivatives) = common.separate(
            x, widths=widths, heights=heights, derivatives=derivatives
        )
        shared.check_shape("heights", heights, x, bins, f"K = {bins} of widths")
        shared.check_shape("derivatives", derivatives, x, 2, "2")
        params = _joined(x, widths, heights, derivatives)
    else:
        bins = common.packed_bins(x, params, 2, 2)
    box = (left, right, bottom, top)
    return _apply("params", x, params, bins, 2, bound, tails, box, min_bin_width, min_bin_height, check_domain, inverse)


def _joined(x: Tensor, *parts: Any) -> Tensor:
    lead = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*lead, p.shape[-1]) for p in parts], -1)


def _apply(
    name: str, x: Tensor, params: Tensor, bins: int, kind: int, bound: Any, tails: Any, sides: tuple[Any, ...],
    min_width: Any, min_height: Any, check_domain: Any, inverse: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if tails is not None and tails != "linear":
        raise ValueError(f"tails: got {tails!r}, want 'linear' (the identity outside) or None")
    if bins > MOST_BINS:
        raise ValueError(f"{name}: got K = {bins}, want {MOST_BINS} or less")
    scale = None
    if isinstance(bound, Tensor):
        scale, bound = bound, 1.0
        common.check_bound(scale, x)
    numbers = {"bound": bound, "min_bin_width": min_width, "min_bin_height": min_height}
    common.check_kinds(x, {"inverse": inverse, "check_domain": check_domain}, numbers)
    common.check_least("min_bin_width", min_width, bins)
    most = 1 if kind == 1 else 1 / bins
    if not 0 <= min_height <= most:
        wanted = "1" if kind == 1 else f"1 / K = {most:g}"
        raise ValueError(f"min_bin_height: got {min_height}, want between 0 and {wanted}")
    closed = tails is None
    box = common.box(x, bound, *sides, closed=closed, scaled=scale is not None)
    if check_domain:
        common.check_domain(x, scale, box, closed, inverse)

    def apply(x: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        (rows,) = given
        size = rows.shape[-1]
        y, log_det = _op(
            x.reshape(-1), rows.expand(*x.shape, size).reshape(-1, size), bins, *box, float(min_width),
            float(min_height), kind, closed, inverse,
        )  # fmt: skip
        return y.reshape(x.shape), log_det.reshape(x.shape)

    return apply(x, (params,)) if scale is None else common.scaled(apply, x, (params,), scale, closed=closed)
