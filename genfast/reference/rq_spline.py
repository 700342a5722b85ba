"""Monotone rational-quadratic splines (Durkan et al., Neural Spline Flows, 2019) in plain PyTorch."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Slopes at the knots are kept in this range, so that no product that occurs overflows float32.
MIN_SLOPE, MAX_SLOPE = 2.0**-30, 2.0**30


def _bins(logits: Tensor, start: float, end: float, min_size: float) -> tuple[Tensor, Tensor]:
    """Left knots and sizes of the bins, both [..., K]."""
    n = logits.shape[-1]
    # also where no minimum is asked for, a bin is not empty
    least = max(min_size, 2.0**-50 if logits.dtype == torch.float64 else 2.0**-30)
    sizes = (end - start) * (least + (1 - min_size * n) * logits.softmax(-1))
    knots = F.pad(sizes.cumsum(-1)[..., :-1], (1, 0)) + start
    return knots, sizes


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.expand(*index.shape[:-1], values.shape[-1]).gather(-1, index).squeeze(-1)


def _unit(t: Tensor) -> Tensor:
    """t clamped to [0, 1] without cutting the gradient where rounding alone left the interval."""
    return t + (t.clamp(0, 1) - t).detach()


def _soft_clip(t: Tensor, limit: float) -> Tensor:
    """t / (1 + |t| / limit); infinity counts as a large number."""
    t = t.clamp(-(2.0**60), 2.0**60)
    return t / (1 + (t / limit).abs())


def edge_slope(dialect: str, min_derivative: float, enable_identity_init: bool = False) -> float:
    """The slope at the ends of linear tails."""
    if dialect == "pyro":
        return 1 - min_derivative
    if not enable_identity_init:
        return 1.0
    # nflows pads raw slopes with that of a slope of 1, which softplus with another beta then takes to another slope
    beta = math.log(2) / (1 - min_derivative)
    return min_derivative + math.log1p(math.expm1(1 - min_derivative) ** beta) / beta


def _slopes(
    raw: Tensor, bins: int, tails: str | None, dialect: str, min_derivative: float, enable_identity_init: bool
) -> Tensor:
    """The slopes at the knots 0 .. K."""
    if tails == "linear":
        raw = raw[..., :bins]
    if dialect == "zuko":
        slopes = _soft_clip(raw, -math.log(min_derivative)).exp()
    else:
        beta = math.log(2) / (1 - min_derivative) if enable_identity_init else 1.0
        slopes = min_derivative + F.softplus(beta * raw) / beta
    slopes = slopes.clamp(MIN_SLOPE, MAX_SLOPE)
    if tails == "circular":
        return torch.cat([slopes, slopes[..., :1]], -1)
    if tails == "linear":
        edge = edge_slope(dialect, min_derivative, enable_identity_init)
        return F.pad(slopes, (1, max(0, bins - raw.shape[-1])), value=edge)
    return slopes


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    bound: float = 3.0,
    tails: str | None = "linear",
    box: tuple[float, float, float, float] | None = None,
    dialect: str = "nflows",
    min_bin_width: float | None = None,
    min_bin_height: float | None = None,
    min_derivative: float = 1e-3,
    enable_identity_init: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.rational_quadratic_spline`; x [...], parameters [..., K] that broadcast to it.

    `box` is (left, right, bottom, top). `tails` may be "own" too: all K + 1 slopes, and the identity outside.
    """
    out_dtype = x.dtype
    if out_dtype in (torch.float16, torch.bfloat16):
        x, widths, heights, derivatives = (t.float() for t in (x, widths, heights, derivatives))
    least = 0.0 if dialect == "zuko" else 1e-3
    min_bin_width, min_bin_height = (least if m is None else m for m in (min_bin_width, min_bin_height))
    x_start, x_end, y_start, y_end = box or (-bound, bound, -bound, bound)
    if dialect == "zuko":
        limit = -0.5 * math.log(min_derivative)
        widths, heights = _soft_clip(widths, limit), _soft_clip(heights, limit)
    left, width = _bins(widths, x_start, x_end, min_bin_width)
    bottom, height = _bins(heights, y_start, y_end, min_bin_height)
    slopes = _slopes(derivatives, widths.shape[-1], tails, dialect, min_derivative, enable_identity_init)

    start, end = (y_start, y_end) if inverse else (x_start, x_end)
    inside = (x >= start) & (x <= end)
    v = torch.where(inside, x, torch.full_like(x, start))
    index = (v.unsqueeze(-1) >= (bottom if inverse else left)[..., 1:]).sum(-1, keepdim=True)
    left, width, bottom, height = (_pick(t, index) for t in (left, width, bottom, height))
    delta = height / width
    a = _pick(slopes, index) / delta
    b = _pick(slopes, index + 1) / delta

    # With theta in [0, 1] the place within the bin, phi = 1 - theta: y = bottom + height N / D, dy/dx = delta M / D^2,
    #   N = theta^2 + a theta phi,  D = theta^2 + phi^2 + (a + b) theta phi,  M = b theta^2 + 2 theta phi + a phi^2.
    if inverse:
        # N / D = xi is a quadratic in theta / phi: eta r^2 + p r - xi = 0. Its discriminant is a sum of squares.
        xi = _unit((v - bottom) / height)
        eta = 1 - xi
        p = a * eta - b * xi
        rising = p >= 0
        q = torch.where(rising, p, -p) + (p * p + 4 * xi * eta).sqrt()
        theta = torch.where(rising, 2 * xi, q) / (q + 2 * torch.where(rising, xi, eta))
    else:
        theta = _unit((v - left) / width)
    phi = 1 - theta
    t = theta * phi
    den = theta * theta + phi * phi + (a + b) * t
    log_det = delta.log() + (b * theta * theta + 2 * t + a * phi * phi).log() - 2 * den.log()
    if inverse:
        y, log_det = left + width * theta, -log_det
    else:
        y = bottom + height * (theta * theta + a * t) / den
    outside = torch.full_like(x, torch.nan if tails is None else 0.0)
    flat = torch.where(x.isnan(), x, outside)
    beyond = outside if tails is None else x
    return torch.where(inside, y, beyond).to(out_dtype), torch.where(inside, log_det, flat)
