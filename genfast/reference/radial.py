"""Radial flow in plain PyTorch."""

import torch
from torch import Tensor


def radial_flow(z: Tensor, center: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """K radial layers; see `genfast.ops.radial_flow` for formula and shapes."""
    log_det = z.new_zeros(z.shape[:-1])
    for c, a, b in zip(center, alpha, beta, strict=True):
        q, change = _layer(torch.linalg.vector_norm(z - c, dim=-1), a, b, z.shape[-1])
        z = c + q.unsqueeze(-1) * (z - c)
        log_det = log_det + change
    return z, log_det


def radial_flow_inverse(x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `radial_flow`; see `genfast.ops.radial_flow_inverse`."""
    log_det = x.new_zeros(x.shape[:-1])
    for c, a, b in zip(center.flip(0), alpha.flip(0), beta.flip(0), strict=True):
        y = torch.linalg.vector_norm(x - c, dim=-1)
        s = a + b - y  # the root r >= 0 of r^2 + s r = a y
        root = torch.sqrt(s * s + 4 * a * y)
        r = torch.where(s > 0, 2 * a * y / (root + s.abs()), (root + s.abs()) / 2)
        q, change = _layer(torch.where((a > 0) & (a + b >= 0), r, torch.nan), a, b, x.shape[-1])
        x = c + (x - c) / torch.where(q == 0, 1, q).unsqueeze(-1)  # q = 0 at the center, where x = c
        log_det = log_det - change
    return x, log_det


def _layer(r: Tensor, alpha: Tensor, beta: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """q = 1 + beta h and log|det| of one layer, at the distance r from its center."""
    h = 1 / (alpha + r)
    q, m = (alpha + beta + r) * h, beta * h  # = 1 + m, without cancellation near 0
    log_det = torch.log(torch.abs(1 + alpha * m * h))
    if dim > 1:
        near = m.abs() < 0.5  # there log q is that of 1 + m: D - 1 roundings of q would add up
        log_q = torch.where(near, torch.log1p(torch.where(near, m, 0)), torch.log(torch.where(near, 1, q).abs()))
        log_det = log_det + (dim - 1) * log_q
    return q, log_det
