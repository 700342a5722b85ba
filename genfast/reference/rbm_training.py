"""Training of an RBM in plain PyTorch, as a careful user would write it: the baseline of `genfast demo`.

No autograd: the gradient is known in closed form. Products are fused with their bias (addmm), states are drawn by
torch.bernoulli, and the parameters are updated in place.
"""

import torch
from torch import Tensor

__all__ = ["contrastive_step", "gibbs"]


def gibbs(v: Tensor, W: Tensor, vbias: Tensor, hbias: Tensor, n_steps: int) -> Tensor:
    """`n_steps` sweeps of block Gibbs sampling from the states v `[N, n_visible]`; the last visible states."""
    for _ in range(n_steps):
        h = torch.bernoulli(torch.addmm(hbias, v, W).sigmoid_())
        v = torch.bernoulli(torch.addmm(vbias, h, W.T).sigmoid_())
    return v


def contrastive_step(
    v_data: Tensor,
    chains: Tensor,
    W: Tensor,
    vbias: Tensor,
    hbias: Tensor,
    *,
    lr: float,
    k: int = 1,
) -> Tensor:
    """One step of contrastive divergence by gradient descent, changing W, vbias and hbias in place.

    Args:
        v_data: 0/1 data `[N, n_visible]`.
        chains: states to start from `[M, n_visible]`: the data for CD-k, the last chains for PCD-k.
        W: weights `[n_visible, n_hidden]`.
        vbias: `[n_visible]`.
        hbias: `[n_hidden]`.
        lr: learning rate.
        k: Gibbs sweeps.

    Returns:
        The chains after k sweeps.
    """
    with torch.no_grad():
        v_model = gibbs(chains, W, vbias, hbias, k)
        h_data = torch.addmm(hbias, v_data, W).sigmoid_()
        h_model = torch.addmm(hbias, v_model, W).sigmoid_()
        rate_data, rate_model = lr / v_data.shape[0], lr / v_model.shape[0]
        W.addmm_(v_data.T, h_data, alpha=rate_data).addmm_(v_model.T, h_model, alpha=-rate_model)
        vbias.add_(v_data.sum(0), alpha=rate_data).sub_(v_model.sum(0), alpha=rate_model)
        hbias.add_(h_data.sum(0), alpha=rate_data).sub_(h_model.sum(0), alpha=rate_model)
    return v_model
