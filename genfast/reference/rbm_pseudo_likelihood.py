"""The pseudo-log-likelihood of a restricted Boltzmann machine in plain PyTorch: a rank-one update for each unit."""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["rbm_pseudo_likelihood"]


def rbm_pseudo_likelihood(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor) -> Tensor:
    """sum_i log p(v_i | the other units) of 0/1 states v `[N, n_visible]`; returns `[N]`.

    Flipping unit i changes the hidden fields x = b + vW by s W_i, s = 1 - 2 v_i, and so minus the free energy by
    u_i = s a_i + sum_j (softplus(x_j + s W_ij) - softplus(x_j)); then p(v_i | the others) = sigmoid(-u_i).
    """
    x = v @ W + hbias
    # -logsigmoid(-x) is softplus without torch's linear cut-off
    here = functional.logsigmoid(-x)
    total = torch.zeros_like(v[:, 0])
    for i in range(W.shape[0]):
        s = 1 - 2 * v[:, i : i + 1]
        change = (here - functional.logsigmoid(-(x + s * W[i]))).sum(1)
        total = total + functional.logsigmoid(-(s[:, 0] * vbias[i] + change))
    return total
