"""Planar flow in plain PyTorch."""

import torch
from torch import Tensor


def planar_flow(z: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """K planar layers; see `genfast.ops.planar_flow` for formula and shapes."""
    log_det = z.new_zeros(z.shape[:-1])
    for w_k, u_k, b_k in zip(w, u, b, strict=True):
        h = torch.tanh(z @ w_k + b_k)
        z = z + u_k * h.unsqueeze(-1)
        log_det = log_det + torch.log(torch.abs(1 + (1 - h * h) * (w_k @ u_k)))
    return z, log_det


def planar_flow_inverse(x: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `planar_flow`; see `genfast.ops.planar_flow_inverse`."""
    log_det = x.new_zeros(x.shape[:-1])
    for w_k, u_k, b_k in zip(w.flip(0), u.flip(0), b.flip(0), strict=True):
        wu = w_k @ u_k
        # the rounding of u and of the sum may leave w.u just below -1
        wu = torch.where(wu < -1 - 17 * torch.finfo(x.dtype).eps * (w_k * u_k).abs().sum(), wu, wu.clamp(min=-1))
        h = torch.tanh(solve(x @ w_k + b_k, wu))
        x = x - u_k * h.unsqueeze(-1)
        log_det = log_det - torch.log(torch.abs(1 + (1 - h * h) * wu))
    return x, log_det


def solve(y: Tensor, wu: Tensor) -> Tensor:
    """The root a of a + wu tanh(a) = y; NaN where wu < -1, where there may be three."""
    with torch.no_grad():
        low, width = y - wu.abs(), 2 * wu.abs()
        parts = torch.arange(1, 16, dtype=y.dtype, device=y.device) / 16
        for _ in range(16):  # each finds 4 bits, and two Newton steps follow
            a = low.unsqueeze(-1) + width.unsqueeze(-1) * parts
            below = (a + wu.unsqueeze(-1) * torch.tanh(a) <= y.unsqueeze(-1)).sum(-1)
            width = width / 16
            low = low + width * below
        a = torch.where(wu < -1, torch.nan, low + width / 2)
    # One Newton step with a held fixed carries the derivatives of the root: da = (dy - tanh(a) dwu) / (1 + wu h').
    # A second one carries the second derivatives.
    for _ in range(2):
        h = torch.tanh(a)
        a = a - (a + wu * h - y) / (1 + wu * (1 - h * h))
    return a


def planar_constrain_u(w: Tensor, u: Tensor) -> Tensor:
    """u moved along w so that w.u > -1; see `genfast.ops.planar_constrain_u`."""
    dtype = w.dtype
    w, u = (x.to(torch.promote_types(dtype, torch.float32)) for x in (w, u))
    # With w = m v, m = max|w| held fixed (the value does not depend on it), nothing overflows unless the result does.
    m = w.detach().abs().amax(-1, keepdim=True) if w.shape[-1] else w.new_zeros(*w.shape[:-1], 1)
    safe = m >= torch.finfo(w.dtype).tiny
    m = torch.where(safe, m, 1)
    v = w / m
    vu = (v * u).sum(-1, keepdim=True)
    t = m * vu
    # softplus(t) - 1 - t = softplus(-t) - 1: of the two forms, the one without a difference of large numbers.
    below = torch.where(t >= 0, -t, t)  # not -|t|, whose derivative at 0 is 0
    softplus = torch.nn.functional.softplus(below)
    shift = torch.where(t >= 0, (softplus - 1) / m, (softplus - 1) / m - vu)
    square = torch.where(safe, (v * v).sum(-1, keepdim=True), 1)
    out = u + torch.where(safe, shift * v / square, 0)
    # What rounding left along w, where u nearly cancels, is measured and removed; w.u_hat + 1 stays above the rounding
    # of u_hat and of any sum of its D products, so that the layer is invertible as it is stored.
    v, vu, softplus, square, rough = (x.detach() for x in (v, vu, softplus, square, out))
    stored = torch.finfo(dtype)
    relative = 0.5 * stored.eps + (0.5 * w.shape[-1] + 8) * torch.finfo(w.dtype).eps
    want = torch.where(t.detach() >= 0, vu, 0) + (softplus - 1) / m
    got = (v * rough).sum(-1, keepdim=True)
    magnitude = (v * rough).abs().sum(-1, keepdim=True) + (want - got).abs()
    rounding = relative * magnitude + stored.tiny * stored.eps * v.abs().sum(-1, keepdim=True)
    error = torch.maximum(want, rounding - 1 / m) - got
    out = out + torch.where(safe, error * v / square, 0)
    if dtype != w.dtype:  # a half type may be too small for u_hat
        out = torch.where(out.isfinite(), out.clamp(stored.min, stored.max), out)
    return out.to(dtype)
