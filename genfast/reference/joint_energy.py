"""The joint energy of an RBM's states in plain PyTorch: exact for the weights in fixed point that its chains use."""

import math

import torch
from torch import Tensor

from genfast.reference.rbm import quantise

__all__ = ["rbm_joint_energy"]


def rbm_joint_energy(v: Tensor, h: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """E(v, h) = -a.v - b.h - v'W h of states 0/1, `v [N, n_visible]` and `h [N, n_hidden]`, as float64 `[N]`.

    W, a and b are rounded to multiples of 2^e as `genfast.reference.rbm.quantise` says, so that E is an exact integer
    times 2^e whatever the order of summation. NaN where they are not finite and, on other devices than the CPU, where a
    state is neither 0 nor 1.

    Raises:
        ValueError: on the CPU, a state is neither 0 nor 1.
    """
    with torch.no_grad():
        good = ((v == 0) | (v == 1)).all(1) & ((h == 0) | (h == 1)).all(1)
        if v.device.type == "cpu" and not bool(good.all()):
            raise ValueError("v, h: expected states that are 0 or 1, got other values")
        if not all(bool(x.isfinite().all()) for x in (W, vbias, hbias)):
            return torch.full((v.shape[0],), torch.nan, dtype=torch.float64, device=v.device)
        qw, qv, qh, e = quantise(W, vbias, hbias)
        x, y = v.double(), h.double()  # integers below 2^53 are exact in float64
        total = x @ qv.double() + ((x @ qw.double() + qh.double()) * y).sum(1)
        return torch.where(good, -total * math.ldexp(1.0, e), torch.nan)
