"""Monotone splines of polynomial pieces (linear, quadratic, cubic) in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from genfast.reference.rq_spline import _bins, _pick, _unit

LEAST_DENSITY = 1e-3  # what is added to the softplus of the quadratic spline's raw densities
LEAST = 2.0**-30  # below which no derivative within a bin falls, over the bin's mean

Box = tuple[float, float, float, float]


def _wide(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    half = x.dtype in (torch.float16, torch.bfloat16)
    return tuple(t.float() if half else t for t in (x, *parameters))


def _evaluate(kind: str, theta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """g and dg/dtheta of a piece from (0, 0) to (1, 1) with the slopes a and b at its ends."""
    phi = 1 - theta
    t = theta * phi
    if kind == "linear":
        return theta, torch.ones_like(theta)
    if kind == "quadratic":
        return theta * theta + a * t, a * phi + b * theta
    g = theta * (a * phi * phi + theta * (theta + (3 - b) * phi))
    return g, a * phi * phi + b * theta * theta + 2 * t * (3 - a - b)


def _solve(kind: str, xi: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The theta of g = xi."""
    if kind == "linear":
        return xi
    if kind == "quadratic":  # in r = theta / phi: eta r^2 + (a eta - b xi) r - xi = 0
        eta = 1 - xi
        p = a * eta - b * xi
        rising = p >= 0
        q = torch.where(rising, p, -p) + (p * p + 4 * xi * eta).sqrt()
        return torch.where(rising, 2 * xi, q) / (q + 2 * torch.where(rising, xi, eta))
    with torch.no_grad():
        low, high = torch.zeros_like(xi), torch.ones_like(xi)
        theta = 0.5 * (low + high)
        for i in range(36):  # 30 bisections, then Newton steps that stay within
            g, m = _evaluate(kind, theta, a, b)
            low, high = torch.where(g < xi, theta, low), torch.where(g < xi, high, theta)
            theta = 0.5 * (low + high) if i < 30 else torch.clamp(theta - (g - xi) / m.clamp(min=LEAST), low, high)
    for _ in range(2):  # Newton steps: the first carries the derivatives of the root, the second the second ones
        g, m = _evaluate(kind, theta, a, b)
        theta = theta - (g - xi) / m.clamp(min=LEAST)
    return theta


def _spline(
    kind: str, x: Tensor, bins: tuple[Tensor, ...], a: Tensor, b: Tensor, box: Box, tails: str | None, inverse: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """bins: left, width, bottom, height, each [..., K]; a, b: the slopes at both ends of each, over its mean."""
    start, end = box[2:] if inverse else box[:2]
    inside = (x >= start) & (x <= end)
    v = torch.where(inside, x, torch.full_like(x, start))
    index = (v.unsqueeze(-1) >= bins[2 if inverse else 0][..., 1:]).sum(-1, keepdim=True)
    left, width, bottom, height = (_pick(t, index) for t in bins)
    a, b = _pick(a, index), _pick(b, index)
    theta = _solve(kind, _unit((v - bottom) / height), a, b) if inverse else _unit((v - left) / width)
    g, m = _evaluate(kind, theta, a, b)
    log_det = (height / width).log() + m.clamp(min=LEAST).log()
    y, log_det = (left + width * theta, -log_det) if inverse else (bottom + height * g, log_det)
    outside = torch.full_like(x, torch.nan if tails is None else 0.0)
    flat = torch.where(x.isnan(), x, outside)
    return torch.where(inside, y, outside if tails is None else x).to(dtype), torch.where(inside, log_det, flat)


def _box(bound: float, box: Box | None) -> Box:
    return box or (-bound, bound, -bound, bound)


def linear_spline(
    x: Tensor, pdf: Tensor, *, bound: float = 3.0, tails: str | None = "linear", box: Box | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `genfast.ops.linear_spline`; `box` is (left, right, bottom, top)."""
    dtype = x.dtype
    x, pdf = _wide(x, pdf)
    left, right, bottom, top = box = _box(bound, box)
    bins = (*_bins(torch.zeros_like(pdf), left, right, 0.0), *_bins(pdf, bottom, top, 0.0))
    ones = torch.ones_like(pdf)
    return _spline("linear", x, bins, ones, ones, box, tails, inverse, dtype)


def quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, *, bound: float = 3.0, tails: str | None = "linear",
    box: Box | None = None, min_bin_width: float = 1e-3, min_bin_height: float = 1e-3, inverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `genfast.ops.quadratic_spline`."""
    dtype = x.dtype
    x, widths, heights = _wide(x, widths, heights)
    left, right, bottom, top = box = _box(bound, box)
    _, s = _bins(widths, 0.0, 1.0, min_bin_width)
    v = F.softplus(heights).clamp(max=2.0**30) + LEAST_DENSITY
    if v.shape[-1] == s.shape[-1] - 1:
        mean = (v[..., :-1] + v[..., 1:]) / 2
        outer = (s[..., 0] * v[..., 0] + s[..., -1] * v[..., -1]) / 4
        ends = (outer + (mean * s[..., 1:-1]).sum(-1)) / (1 - (s[..., 0] + s[..., -1]) / 4)
        v = torch.cat([ends.unsqueeze(-1), v, ends.unsqueeze(-1)], -1)
    area = ((v[..., :-1] + v[..., 1:]) / 2 * s).sum(-1, keepdim=True)
    n = min_bin_height + (1 - min_bin_height) * v / area
    mean = (n[..., :-1] + n[..., 1:]) / 2
    h = mean * s + (2.0**-50 if x.dtype == torch.float64 else 2.0**-30)
    bins = (
        (s.cumsum(-1) - s) * (right - left) + left, s * (right - left),
        (h.cumsum(-1) - h) * (top - bottom) + bottom, h * (top - bottom),
    )  # fmt: skip
    return _spline("quadratic", x, bins, n[..., :-1] / mean, n[..., 1:] / mean, box, tails, inverse, dtype)


def cubic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, *, bound: float = 3.0,
    tails: str | None = "linear", box: Box | None = None, min_bin_width: float = 1e-3, min_bin_height: float = 1e-3,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `genfast.ops.cubic_spline`."""
    dtype = x.dtype
    x, widths, heights, derivatives = _wide(x, widths, heights, derivatives)
    left, right, bottom, top = box = _box(bound, box)
    left_knots, w = _bins(widths, left, right, min_bin_width)
    bottom_knots, h = _bins(heights, bottom, top, min_bin_height)
    s = h / w
    before, after = s[..., :-1], s[..., 1:]
    mean = (w[..., 1:] * before + w[..., :-1] * after) / (w[..., :-1] + w[..., 1:])
    inner = torch.minimum(mean, 2 * torch.minimum(before, after))
    ends = (3 * derivatives.sigmoid()).clamp(min=LEAST)
    a = torch.cat([ends[..., :1], inner / after], -1)
    b = torch.cat([inner / before, ends[..., 1:]], -1)
    return _spline("cubic", x, (left_knots, w, bottom_knots, h), a, b, box, tails, inverse, dtype)
