"""Exact sums over all states of a small machine."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_UNITS = 25
_CHUNK = 1 << 12


def all_states(n_units: int, start: int, stop: int, *, device: torch.device) -> Tensor:
    """The binary states number `start` to `stop` of `n_units` units, unit 0 the lowest bit: `[stop - start, n]`."""
    index = torch.arange(start, stop, device=device)
    return ((index[:, None] >> torch.arange(n_units, device=device)) & 1).double()


def log_partition_rbm(W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """The log of sum_{v, h} exp(a.v + b.h + v'W h), summing out the larger layer in closed form; float64."""
    W, vbias, hbias = W.double(), vbias.double(), hbias.double()
    if W.shape[0] < W.shape[1]:
        W, vbias, hbias = W.T, hbias, vbias
    n_units = W.shape[1]
    if n_units > MAX_UNITS:
        raise ValueError(
            f"log_partition: the smaller layer has {n_units} units, want at most {MAX_UNITS} for exact enumeration"
        )
    log_z = torch.full((), -torch.inf, dtype=torch.float64, device=W.device)
    for start in range(0, 1 << n_units, _CHUNK):
        h = all_states(n_units, start, min(start + _CHUNK, 1 << n_units), device=W.device)
        terms = h @ hbias + F.softplus(torch.addmm(vbias, h, W.T)).sum(1)
        log_z = torch.logaddexp(log_z, torch.logsumexp(terms, 0))
    return log_z
