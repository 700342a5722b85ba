"""Monotone rational-quadratic splines (Durkan et al., Neural Spline Flows, 2019) in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Slopes at the knots are kept in this range, so that no product that occurs overflows float32.
MIN_SLOPE, MAX_SLOPE = 2.0**-30, 2.0**30


def _bins(logits: Tensor, bound: float, min_size: float) -> tuple[Tensor, Tensor]:
    """Left knots and sizes of the bins, both [..., K]."""
    n = logits.shape[-1]
    # also where no minimum is asked for, a bin is not empty
    least = max(min_size, 2.0**-50 if logits.dtype == torch.float64 else 2.0**-30)
    sizes = 2 * bound * (least + (1 - min_size * n) * logits.softmax(-1))
    knots = F.pad(sizes.cumsum(-1)[..., :-1], (1, 0)) - bound
    return knots, sizes


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.expand(*index.shape[:-1], values.shape[-1]).gather(-1, index).squeeze(-1)


def _unit(t: Tensor) -> Tensor:
    """t clamped to [0, 1] without cutting the gradient where rounding alone left the interval."""
    return t + (t.clamp(0, 1) - t).detach()


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    bound: float = 3.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `genfast.ops.rational_quadratic_spline`; x [...], parameters [..., K] that broadcast to it."""
    out_dtype = x.dtype
    if out_dtype in (torch.float16, torch.bfloat16):
        x, widths, heights, derivatives = (t.float() for t in (x, widths, heights, derivatives))
    n = widths.shape[-1]
    left, width = _bins(widths, bound, min_bin_width)
    bottom, height = _bins(heights, bound, min_bin_height)
    slopes = (min_derivative + F.softplus(derivatives[..., :n])).clamp(MIN_SLOPE, MAX_SLOPE)
    slopes = F.pad(slopes, (1, max(0, n - derivatives.shape[-1])), value=1.0)  # knots 0 .. K

    inside = (x >= -bound) & (x <= bound)
    v = torch.where(inside, x, torch.zeros_like(x))
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
    flat = torch.where(x.isnan(), x, torch.zeros_like(x))
    return torch.where(inside, y, x).to(out_dtype), torch.where(inside, log_det, flat)
