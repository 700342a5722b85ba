"""Sylvester flow in plain PyTorch."""

import torch
from torch import Tensor

from genfast.reference.planar import solve


def sylvester_flow(z: Tensor, q: Tensor, r1: Tensor, r2: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """K Sylvester layers; see `genfast.ops.sylvester_flow` for formula and shapes."""
    r1, r2 = r1.triu(), r2.triu()
    u, w, t = q @ r1, q @ r2.mT, _diagonal(r1) * _diagonal(r2)
    log_det = z.new_zeros(z.shape[:-1])
    for u_k, w_k, t_k, b_k in zip(u, w, t, b, strict=True):
        h = torch.tanh(z @ w_k + b_k)
        z = z + h @ u_k.mT
        log_det = log_det + torch.log(torch.abs(1 + (1 - h * h) * t_k)).sum(-1)
    return z, log_det


def sylvester_flow_inverse(x: Tensor, q: Tensor, r1: Tensor, r2: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `sylvester_flow`; see `genfast.ops.sylvester_flow_inverse`."""
    r1, r2 = r1.triu(), r2.triu()
    u, w, square = q @ r1, q @ r2.mT, r2 @ r1
    log_det = x.new_zeros(x.shape[:-1])
    for u_k, w_k, t_k, b_k in zip(u.flip(0), w.flip(0), square.flip(0), b.flip(0), strict=True):
        t = t_k.diagonal()
        t = torch.where(t < -1 - 17 * torch.finfo(x.dtype).eps * t.abs(), t, t.clamp(min=-1))
        # a + square tanh(a) = x w + b, from the last unit
        y = x @ w_k + b_k
        units: list[Tensor] = []
        for i in reversed(range(t.shape[0])):
            y_i = y[..., i]
            if units:
                y_i = y_i - torch.stack(units, -1) @ t_k[i, i + 1 :]
            units.insert(0, torch.tanh(solve(y_i, t[i])))
        h = torch.stack(units, -1) if units else y
        x = x - h @ u_k.mT
        log_det = log_det - torch.log(torch.abs(1 + (1 - h * h) * t)).sum(-1)
    return x, log_det


def _diagonal(r: Tensor) -> Tensor:
    return r.diagonal(dim1=-2, dim2=-1)
