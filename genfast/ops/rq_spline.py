"""Monotone rational-quadratic splines: each direction and each gradient in one kernel."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genfast._differentiable import differentiable
from genfast._register import HALF, like
from genfast.ops import _checks as check
from genfast.ops import _shared_rows as shared
from genfast.ops import _splines as common
from genfast.reference import rq_spline as reference

# What the kernels call them, by number (csrc/ops/rq_spline/rq_spline.h). "own": all slopes given, identity outside.
TAILS = ("linear", "circular", None, "own")
DIALECTS = ("nflows", "nflows with enable_identity_init", "zuko", "pyro")


# Numbers [G, M] read rows of parameters [G, P, ...], number i of its group row (i / inner) % P: so broadcasting is said
# without a copy, and G is what a batch folds into. The parameters are three tensors, or one of [widths | heights |
# slopes].
def _outputs(
    x: Tensor, widths: Tensor | None, heights: Tensor | None, slopes: Tensor | None, params: Tensor | None,
    inner: int, left: float, right: float, bottom: float, top: float, min_width: float, min_height: float,
    min_slope: float, tails: int, dialect: int, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(x), x.new_empty(x.shape, dtype=torch.float32) if x.dtype in HALF else like(x)


def _reference(
    x: Tensor, widths: Tensor | None, heights: Tensor | None, slopes: Tensor | None, params: Tensor | None,
    inner: int, left: float, right: float, bottom: float, top: float, min_width: float, min_height: float,
    min_slope: float, tails: int, dialect: int, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    parts = (widths, heights, slopes)
    if params is not None:
        bins = (params.shape[-1] + 1) // 3  # for rows of 3 K - 1, 3 K and 3 K + 1
        parts = params.split([bins, bins, params.shape[-1] - 2 * bins], -1)
    widths, heights, slopes = (p[:, None, :, None] for p in parts if p is not None)
    groups, _, rows = widths.shape[:3]
    y, log_det = reference.rational_quadratic_spline(
        x.reshape(groups, x.shape[1] // max(rows * inner, 1), rows, inner), widths, heights, slopes,
        box=(left, right, bottom, top), tails=TAILS[tails], dialect=DIALECTS[dialect].split()[0],
        min_bin_width=min_width, min_bin_height=min_height, min_derivative=min_slope,
        enable_identity_init=dialect == 1, inverse=inverse,
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
    bound: float | Tensor = 3.0,
    tails: str | Sequence[str] | None = "linear",
    left: float | None = None,
    right: float | None = None,
    bottom: float | None = None,
    top: float | None = None,
    dialect: str = "nflows",
    min_bin_width: float | None = None,
    min_bin_height: float | None = None,
    min_derivative: float = 1e-3,
    enable_identity_init: bool = False,
    check_domain: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Map each number through a monotone rational-quadratic spline of its own.

    The square :math:`[-B, B]^2` is cut into K bins of widths :math:`2B\,(m + (1 - mK)\,\mathrm{softmax}(w))_k`, heights
    alike, and the slope at a knot is :math:`m_d + \mathrm{softplus}(d_k)`. In the bin of left knot :math:`(x_k, y_k)`,
    with :math:`\theta = (x - x_k) / (x_{k+1} - x_k)`, :math:`t = \theta (1 - \theta)` and s the bin's height over its
    width,

    .. math:: y = y_k + (y_{k+1} - y_k)\,\frac{s\,\theta^2 + d_k t}{s + (d_k + d_{k+1} - 2 s)\,t}.

    Forward and inverse are closed formulas, each one kernel, as are their gradients; only the arguments are kept for
    the backward. No finite parameters, however extreme, give a NaN; slopes are limited to :math:`2^{-30} \dots 2^{30}`,
    and bins are at least :math:`2^{-30}` of the square (:math:`2^{-50}` in float64). Infinite parameters mean their
    limit, where there is one: a width or height of -inf gives the least bin, a slope of either infinity the limit above
    or m_d; a width or height of +inf, or -inf in all bins, gives NaN.

    **Tails** say what lies outside [-B, B], and which slopes are given:

    ============== ================================= ================================================================
    tails          outside                           derivatives
    ============== ================================= ================================================================
    ``"linear"``   the identity                      K - 1, of the inner knots; the slope at both ends is 1
    ``"circular"`` the identity                      K; the first is that of both ends, as on a circle of length 2B
    ``None``       NaN (see `check_domain`)          K + 1, of all knots; a box ``[left, right] x [bottom, top]``
    a sequence     the identity                      K + 1 each; ``"linear"`` or ``"circular"`` for each feature (the
                                                     last dimension of x): one that is fixed or shared is not read
    ============== ================================= ================================================================

    **Dialects** say how raw parameters are read, each as the library of that name does:

    * ``"nflows"`` (and normflows): as above, m = 1e-3; ``enable_identity_init`` as in nflows.
    * ``"zuko"``: :math:`\mathrm{softmax}(c_2(w))` without a minimum and slopes :math:`e^{c_1(d)}`, with the soft clip
      :math:`c_i(w) = w / (1 + |i\,w / \ln m_d|)`. Infinite parameters count as very large ones.
    * ``"pyro"``: as nflows, but linear tails meet a slope of :math:`1 - m_d`. (Pyro's spline function takes what its
      modules have put through softmax and softplus; here the parameters are what they put into these.)

    A round trip returns to x within the rounding of y (:math:`2^{-24} B` in float32, :math:`2^{-53} B` in float64) over
    the slope; in float32 that is 2e-6 B where the slope is between 1/20 and 20. What lies in a bin or on a slope near
    the limits above, as with minima of 0 and logits of size 10, does not come back: many x share one y.

    Args:
        x: numbers of any shape `[...]`; float32 or float64, or float16/bfloat16 (computed in float32).
        widths: raw widths `[..., K]`; the leading dimensions are those of x or broadcast to them. A row of parameters
            that many numbers share (`[K]`: one spline for all, `[D, K]`: one for each feature of x `[N, D]`) is read
            where it lies, and its gradient summed as it arises: no memory for each number, and less work.
        heights: raw heights `[..., K]`.
        derivatives: raw slopes, as many as `tails` wants. Linear tails accept more as nflows does: with K or more, the
            K-th gives the slope at the right end of the last bin; those after it are not read and get no gradient.
        params: in place of the three, one tensor of rows [widths | heights | derivatives], as a network puts it out:
            `[..., 3 K - 1]` with linear tails, `3 K` with circular ones, else `3 K + 1`. It is read, and its gradient
            written, without taking it apart.
        bound: B, the half side of the square: 2^-30 to 2^30 in float32 and bfloat16, 2^-200 to 2^200 in float64, and
            2^-14 to 65504 in float16. Or a tensor of positive numbers that broadcasts to x, `[D]` for one a feature,
            which has a gradient; where it is not positive the results are NaN. Other options are plain numbers.
        tails: see above.
        left: with `tails=None`, a box in place of the square: the left end of x, -B by default.
        right: the right end of x; B by default.
        bottom: what `left` is mapped to; -B by default.
        top: what `right` is mapped to; B by default.
        dialect: see above.
        min_bin_width: the least share m of the width that a bin takes; by default 1e-3, in zuko's dialect 0.
        min_bin_height: the same for heights.
        min_derivative: the least slope m_d at a knot; zuko calls it `slope`.
        enable_identity_init: parameters of 0 are slopes of 1, by a softplus of another sharpness:
            :math:`m_d + \mathrm{softplus}(\beta d) / \beta`, :math:`\beta = \ln 2 / (1 - m_d)`. With linear tails the
            slope at the ends is then about 1.29, because nflows' is.
        check_domain: with `tails=None`, refuse numbers outside the box. It looks at the numbers, for which a GPU has to
            be waited for, so it is not the default, and not done under a transform or a compiler.
        inverse: apply the inverse map.

    Returns:
        y: `[...]`, the mapped numbers. NaN where x or a parameter in use is NaN.
        log_det: `[...]`, log dy/dx of the map just applied, in nats; float32 for half types.

    Raises:
        TypeError: an argument is missing or is not a floating-point tensor, dtypes differ, or an option no number.
        ValueError: a shape does not fit, tensors lie on different devices, the minima leave no room for K bins, an
            option is out of range, a box is empty or given to tails that have none, or with `check_domain` a number
            lies outside.

    Source:
        Durkan, Bekasov, Murray & Papamakarios, "Neural spline flows", NeurIPS 2019, eq. 4-8; the spline is that of
        Gregory & Delbourgo, IMA J. Numer. Anal. 2 (1982). Circular ones: Rezende et al., "Normalizing flows on tori and
        spheres", ICML 2020.

    Example:
        >>> x, w, h, d = torch.randn(64, 2), torch.randn(64, 2, 8), torch.randn(64, 2, 8), torch.randn(64, 2, 7)
        >>> y, log_det = genfast.ops.rational_quadratic_spline(x, w, h, d)
        >>> x_again, _ = genfast.ops.rational_quadratic_spline(y, w, h, d, inverse=True)
        >>> y.shape, log_det.shape
        (torch.Size([64, 2]), torch.Size([64, 2]))

        An angle for each of two features, the same splines for all:

        >>> angle, params = torch.rand(64, 2) * 2 * math.pi - math.pi, torch.randn(2, 3 * 8)
        >>> y, log_det = genfast.ops.rational_quadratic_spline(angle, params=params, bound=math.pi, tails="circular")
    """
    check.floating("x", x)
    if params is not None and not (widths is None and heights is None and derivatives is None):
        raise TypeError("params: got it and widths, heights or derivatives too, want one or the other")
    mixed = tails != "linear" and _check_tails(tails, x)
    kind = 3 if mixed else TAILS.index(tails)
    if params is None:
        given, bins = _separate(x, widths, heights, derivatives, kind)
    else:
        given, bins = (params,), common.packed_bins(x, params, 3, _WANTED_SLOPES[kind][0])
    usual = dialect == "nflows" and enable_identity_init is False
    code = 0 if usual else _check_dialect(dialect, enable_identity_init)
    if min_bin_width is None:
        min_bin_width = 0.0 if code == 2 else 1e-3
    if min_bin_height is None:
        min_bin_height = 0.0 if code == 2 else 1e-3
    scale = None
    if isinstance(bound, Tensor):
        scale, bound = bound, 1.0
        common.check_bound(scale, x)
    check_options(x, bins, bound, min_bin_width, min_bin_height, min_derivative, inverse, check_domain, code)
    if left is right is bottom is top is None:
        box = (-float(bound), float(bound), -float(bound), float(bound))
    else:
        box = common.box(x, bound, left, right, bottom, top, closed=tails is None, scaled=scale is not None)
    if check_domain:
        common.check_domain(x, scale, box, tails is None, inverse)
    if mixed:
        if params is not None:
            given = tuple(params.split([bins, bins, bins + 1], -1))
        given = (*given[:2], _mixed_slopes(given[2], tails, code, min_derivative))  # type: ignore[arg-type]
    options = (*box, float(min_bin_width), float(min_bin_height), float(min_derivative), kind, code, inverse)
    if scale is None:
        return _apply(x, given, options)
    return common.scaled(lambda x, given: _apply(x, given, options), x, given, scale, closed=tails is None)


def _apply(x: Tensor, given: tuple[Tensor, ...], options: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    numbers, rows, inner = shared.flatten(x, given)
    parameters = (None, None, None, *rows) if len(rows) == 1 else (*rows, None)
    y, log_det = _op(numbers, *parameters, inner, *options)
    return (y, log_det) if x.dim() == 2 and numbers is x else (y.reshape(x.shape), log_det.reshape(x.shape))


# How many more slopes than bins the tails want.
_WANTED_SLOPES = ((-1, "at least K - 1"), (0, "K"), (1, "K + 1"), (1, "K + 1"))


def _separate(x: Tensor, widths: Any, heights: Any, derivatives: Any, kind: int) -> tuple[tuple[Tensor, ...], int]:
    bins, given = common.separate(x, widths=widths, heights=heights, derivatives=derivatives)
    shared.check_shape("heights", heights, x, bins, f"K = {bins} of widths")
    more, name = _WANTED_SLOPES[kind]
    wanted = f"{name} = {bins + more}"
    shared.check_shape("derivatives", derivatives, x, None, wanted)
    count = derivatives.shape[-1]
    if count < bins + more or (kind != 0 and count != bins + more):
        of = "" if kind == 0 else f" with tails={'a sequence' if kind == 3 else repr(TAILS[kind])}"
        raise ValueError(f"derivatives: got {count} a number, want {wanted}{of}")
    return given, bins


def _check_tails(tails: Any, x: Tensor) -> bool:
    """Whether each feature has its own."""
    if tails is None or tails in ("linear", "circular"):
        return False
    if isinstance(tails, (list, tuple)) and all(t in ("linear", "circular") for t in tails):
        features = x.shape[-1] if x.dim() else 0
        if len(tails) != features:
            raise ValueError(f"tails: got {len(tails)}, want one for each of the {features} features of x")
        return True
    raise ValueError(f"tails: got {tails!r}, want 'linear', 'circular', None, or one of the first two a feature")


def _mixed_slopes(slopes: Tensor, tails: Sequence[str], code: int, min_derivative: float) -> Tensor:
    """All raw slopes of features with tails of their own: fixed at the ends, or there the first."""
    edge = reference.edge_slope(DIALECTS[code].split()[0], min_derivative, code == 1)
    if code != 2 and edge <= min_derivative:
        raise ValueError(f"min_derivative: got {min_derivative} with dialect='pyro' and mixed tails, want below 0.5")
    beta = math.log(2) / (1 - min_derivative) if code == 1 else 1.0
    raw = math.log(edge) if code == 2 else math.log(math.expm1(beta * (edge - min_derivative))) / beta
    slopes = slopes.expand(*torch.broadcast_shapes(slopes.shape[:-1], (len(tails),)), slopes.shape[-1])
    circular = torch.tensor([t == "circular" for t in tails], device=slopes.device).unsqueeze(-1)
    ends = torch.where(circular, slopes[..., :1], torch.full_like(slopes[..., :1], raw))
    return torch.cat([ends, slopes[..., 1:-1], ends], -1)


def _check_dialect(dialect: Any, enable_identity_init: Any) -> int:
    if dialect not in ("nflows", "zuko", "pyro"):
        raise ValueError(f"dialect: got {dialect!r}, want 'nflows', 'zuko' or 'pyro'")
    if type(enable_identity_init) is not bool:
        raise TypeError(f"enable_identity_init: got {type(enable_identity_init).__name__}, want a bool")
    if enable_identity_init and dialect != "nflows":
        raise ValueError(f"enable_identity_init: got True with dialect={dialect!r}, want it with 'nflows' only")
    return DIALECTS.index(dialect) + enable_identity_init


def check_options(
    x: Tensor, bins: int, bound: Any, min_bin_width: Any, min_bin_height: Any, min_derivative: Any, inverse: Any,
    check_domain: Any = False, code: int = 0,
) -> None:  # fmt: skip
    """Refuse options of another type or out of range."""
    least = {"min_bin_width": min_bin_width, "min_bin_height": min_bin_height}
    numbers = {"bound": bound, **least, "min_derivative": min_derivative}
    common.check_kinds(x, {"inverse": inverse, "check_domain": check_domain}, numbers)
    for name, value in least.items():
        common.check_least(name, value, bins)
    if not 0 <= min_derivative < 1:
        raise ValueError(f"min_derivative: got {min_derivative}, want between 0 and 1, and less than 1")
    if min_derivative == 0 and code == 2:
        raise ValueError("min_derivative: got 0 with dialect='zuko', want more than 0 (its logarithm is taken)")
